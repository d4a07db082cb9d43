"""The whole way on one machine: documents → shards → batches → steps → checkpoint → weights.

Every stage runs the command that a user would type, in a process of its own; this file only puts
them in order, tells what happens, and remembers what is done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.console import say
from launch.failures import EXIT_INTERRUPTED, CommandError, StageFailed, Stopped
from launch.local import number_of_cores, worker_environment
from launch.processes import run_supervised, stop_on_termination
from launch.quickstart_corpus import FILLED_DOCUMENTS, split_corpus, write_heldout_documents
from launch.quickstart_summary import relative, show_fills, summarize
from launch.quickstart_training import (
    STOPPED_BY_USER,
    prove,
    raise_if_stopped,
    train,
)
from launch.stages import Stages, fingerprint, sole_user

if TYPE_CHECKING:
    from pretrain.config import RunConfig

DEFAULT_PIECES = 8192
_PRESET = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        out: Folder for everything that is made.
        corpus: Files and folders of documents; none for the standard library's sources.
        processes: Ranks of the training, and of the shard writing.
        steps: Steps of the training; None for the preset's.
        pieces: Pieces of the tokenizer; None for 8,192 or what the corpus supports.
        prove_resume: Train a second time without the stop and compare.
    """

    out: Path
    corpus: tuple[Path, ...] = ()
    processes: int = 2
    steps: int | None = None
    pieces: int | None = None
    prove_resume: bool = False


def run_quickstart(options: Options) -> int:
    """Goes the whole way, or the rest of it after a stop.

    Args:
        options: What the user chose.

    Returns:
        Exit code: 0, or 1 where the default training did not beat the unigram baseline.

    Raises:
        Stopped: Somebody asked to stop; the same options go on.
        StageFailed: A stage failed and has said why.
        ValueError: The options or the corpus cannot be used.
        OSError: The folder cannot be written.
    """
    settings = _preset(options)  # before anything is made
    try:
        with stop_on_termination(), sole_user(options.out):
            return _Quickstart(options, settings).run()
    except KeyboardInterrupt:
        raise Stopped(STOPPED_BY_USER, EXIT_INTERRUPTED) from None
    except Stopped as stop:
        raise Stopped(STOPPED_BY_USER, stop.exit_code) from None


def _preset(options: Options) -> dict[str, Any]:
    """Reads configs/quickstart.yaml and puts this quickstart's places and steps into it."""
    from pretrain.yaml_text import read_yaml

    settings = read_yaml(_PRESET)
    data, training = options.out / "data", settings["train"]
    settings["name"] = "quickstart"
    settings["run_dir"] = str(options.out / "runs")
    for part in ("train", "heldout", "tokenizer"):
        settings["data"][part] = str(data / part)
    if options.steps is not None:
        scale = options.steps / training["max_steps"]
        training["max_steps"] = options.steps
        for section, key in (
            ("schedule", "warmup_steps"),
            ("schedule", "decay_steps"),
            ("evaluation", "every_steps"),
            ("checkpoint", "every_steps"),
        ):
            if settings[section].get(key):
                settings[section][key] = max(1, int(settings[section][key] * scale))
    batch, micro = training["global_batch_size"], training["micro_batch_size"]
    possible = [n for n in range(1, batch + 1) if batch % (micro * n) == 0]
    if options.processes not in possible:
        raise CommandError(
            f"--processes {options.processes}: a batch of {batch} in parts of {micro} cannot be "
            f"dealt out evenly; use {' or '.join(map(str, possible))}"
        )
    return settings


class _Quickstart:
    """The stages, in order; each hands its facts to those after it."""

    def __init__(self, options: Options, settings: dict[str, Any]) -> None:
        self._options = options
        self._settings = settings
        self._out = options.out
        self._stages = Stages(options.out)
        self._environment = worker_environment(1)

    def run(self) -> int:
        say(f"spade quickstart in {self._out}, {number_of_cores()} cores")
        corpus = self._corpus()
        tokenizer = self._tokenizer(corpus)
        shards = self._shards(corpus, tokenizer)
        self._verify(shards)
        config_path, config = self._configuration()
        training = self._train(config_path, config, shards)
        proof = self._prove(config_path, config, training)
        export = self._export(config, training)
        fills = self._fill(config, corpus, export)
        report = self._report(config, fills)
        return summarize(
            config=config,
            seconds=self._stages.seconds(),
            proof=proof,
            paths={**export, **report},
            must_beat_baseline=self._options.steps is None,
        )

    def _command(
        self,
        *arguments: str | Path,
        launcher: Sequence[str | Path] = (),
        capture: bool = False,
    ) -> str:
        """Runs one command of ours in a process of its own.

        Args:
            arguments: What follows ``spade``.
            launcher: What starts it as several ranks; nothing for one.
            capture: Return what it prints instead of passing it through.

        Raises:
            Stopped: Somebody asked to stop meanwhile.
            StageFailed: It failed; its own line says why.
        """
        result = run_supervised(
            [*launcher, sys.executable, "-m", "launch.cli", *arguments],
            environment=self._environment,
            capture_output=capture,
        )
        raise_if_stopped(result.signals)
        if result.exit_code != 0:
            raise StageFailed(
                f"'{self._stages.title}' failed with exit code {result.exit_code}: the reason "
                "stands above; once mended, the same command goes on from there"
            )
        return result.output

    def _corpus(self) -> dict[str, Any]:
        from data_pipeline.corpora.corpus import find_files, write_standard_library_corpus

        if self._options.corpus:
            files = [Path(file.location) for file in find_files(self._options.corpus)[0]]
            states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

            def look() -> dict[str, Any]:
                paths = [str(path.resolve()) for path in self._options.corpus]
                return split_corpus(paths, fingerprint({"files": states}))

            return self._stages.run(
                "corpus", "Corpus", inputs={"files": states}, outputs=files, work=look
            )
        folder = self._out / "corpus"

        def write() -> dict[str, Any]:
            path = write_standard_library_corpus(folder)
            say("the sources of Python's standard library: no download, about 800 long documents")
            return split_corpus([str(path)], fingerprint({"facts": _json(folder / "corpus.json")}))

        return self._stages.run(
            "corpus",
            "Corpus",
            inputs={"standard library": sys.version},
            outputs=[folder / "corpus.json"],
            work=write,
        )

    def _tokenizer(self, corpus: Mapping[str, Any]) -> dict[str, Any]:
        folder = self._out / "tokenizer"
        from data_pipeline.objectives.span_corruption import SpanCorruption
        from pretrain.data_settings import DataSettings

        objective = DataSettings(**self._settings["data"]).make_objective()
        assert isinstance(objective, SpanCorruption), "configs/quickstart.yaml says so"
        pieces = self._options.pieces
        # One of 128 ids more costs nothing, and a rounder vocabulary multiplies faster.
        sentinels = max(128, objective.spans)

        def make() -> dict[str, Any]:
            self._command(
                *("tokenizer", "train"),
                *(part for path in corpus["paths"] for part in ("--input", path)),
                *("--vocab-size", str(pieces or DEFAULT_PIECES)),
                *("--sentinels", str(sentinels)),
                *("--heldout-fraction", str(corpus["heldout_fraction"])),
                *(() if pieces else ("--allow-smaller",)),
                *("--out", folder),
            )
            return {"fingerprint": _json(folder / "tokenizer_manifest.json")["fingerprint"]}

        return self._stages.run(
            "tokenizer",
            "Tokenizer",
            inputs={"corpus": corpus, "pieces": pieces, "sentinels": sentinels},
            outputs=[folder / "tokenizer_manifest.json", folder / "spiece.model"],
            work=make,
        )

    def _shards(self, corpus: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
        folder = self._out / "data"
        processes = self._options.processes
        inputs = {"corpus": corpus, "tokenizer": tokenizer}

        def build() -> dict[str, Any]:
            self._stages.claim(folder, inputs=inputs)
            self._command(
                *("data", "build"),
                *(part for path in corpus["paths"] for part in ("--input", path)),
                *("--tokenizer", self._out / "tokenizer"),
                *("--heldout-fraction", str(corpus["heldout_fraction"])),
                *("--out", folder),
                launcher=self._mpi_launcher(processes),
            )
            return {part: _manifest_facts(folder / part) for part in ("train", "heldout")}

        return self._stages.run(
            "shards",
            f"Shards, by {processes} MPI ranks" if processes > 1 else "Shards",
            inputs=inputs,
            outputs=[folder / part / "manifest.json" for part in ("train", "heldout")],
            work=build,
        )

    def _mpi_launcher(self, processes: int) -> list[str | Path]:
        """Finds what starts the MPI ranks; says why where there is nothing."""
        from launch.mpi import examine_mpi, mpi_environment

        if processes == 1:
            return []
        mpi = examine_mpi(processes)
        if mpi.problem or mpi.mpiexec is None:
            say(f"one process writes the shards: {mpi.problem}")
            return []
        self._environment = {**mpi_environment(), **self._environment}
        say(f"mpiexec -n {processes} ({mpi.library})")
        return [mpi.mpiexec, "-n", str(processes)]

    def _verify(self, shards: Mapping[str, Any]) -> None:
        folder = self._out / "data"

        def verify() -> dict[str, Any]:
            for part in ("train", "heldout"):
                self._command("data", "verify", folder / part)
            return {}

        self._stages.run(
            "verify", "Every byte against the manifest", inputs=shards, outputs=[], work=verify
        )

    def _configuration(self) -> tuple[Path, RunConfig]:
        from pretrain.config import RunConfig
        from pretrain.run_folder import write_atomically
        from pretrain.yaml_text import to_yaml

        path = self._out / "config.yaml"
        write_atomically(path, to_yaml(self._settings))
        config = RunConfig.load(path)
        config.accumulation_steps(self._options.processes)
        return path, config

    def _train(
        self, config_path: Path, config: RunConfig, shards: Mapping[str, Any]
    ) -> dict[str, Any]:
        key = {"config": config.to_dict(), "shards": shards, "processes": self._options.processes}
        self._stages.claim(config.run_path, inputs=key)
        return self._stages.run(
            "train",
            f"Training on {self._options.processes} ranks, stopped half way and resumed",
            inputs=key,
            outputs=[config.run_path / "metrics.jsonl"],
            work=lambda: train(config_path, config, self._options.processes),
        )

    def _prove(
        self, config_path: Path, config: RunConfig, training: Mapping[str, Any]
    ) -> dict[str, Any]:
        if not self._options.prove_resume:
            say(
                "--prove-resume trains once more without the stop and compares the curves bit for "
                "bit"
            )
            return {}
        return self._stages.run(
            "prove",
            "Proof: the same training without a stop",
            inputs={"config": config.to_dict(), "training": training},
            outputs=[],
            work=lambda: prove(config_path, config, self._options.processes),
        )

    def _export(self, config: RunConfig, training: Mapping[str, Any]) -> dict[str, str]:
        from pretrain.run_folder import RunFolder

        folder = RunFolder(config.run_path).export_path

        def export() -> dict[str, str]:
            self._command("export", config.run_path, "--out", folder)
            return {"Hugging Face directory": relative(folder)}

        return self._stages.run(
            "export",
            "Export to Hugging Face",
            inputs={"config": config.to_dict(), "training": training},
            outputs=[folder / "config.json", folder / "model.safetensors"],
            work=export,
        )

    def _fill(
        self, config: RunConfig, corpus: Mapping[str, Any], export: Mapping[str, Any]
    ) -> dict[str, Any]:
        from pretrain.run_folder import RunFolder

        folder = RunFolder(config.run_path).export_path
        samples = self._out / "heldout_samples.jsonl"

        def fill() -> dict[str, Any]:
            write_heldout_documents(samples, corpus)
            output = self._command("generate", folder, "--mask", samples, "--json", capture=True)
            return {"fills": json.loads(output)["fills"]}

        facts = self._stages.run(
            "fill",
            f"Gaps in {FILLED_DOCUMENTS} held-out documents",
            inputs={"export": export, "config": config.to_dict(), "corpus": corpus},
            outputs=[samples],
            work=fill,
        )
        show_fills(facts["fills"])
        return facts

    def _report(self, config: RunConfig, fills: Mapping[str, Any]) -> dict[str, str]:
        from pretrain.report.report import write_report

        report, picture = write_report(config.run_path, fills["fills"])
        return {"report": relative(report), "loss curve": relative(picture)}


def _json(path: Path) -> dict[str, Any]:
    """Reads a small file that a stage before has written."""
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict), "our own files hold one object"
    return value


def _manifest_facts(folder: Path) -> dict[str, Any]:
    """Takes from a manifest what identifies a data set and what people ask for."""
    from data_pipeline.shards.manifest import Manifest

    manifest = Manifest.load(folder)
    return {
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "shards": len(manifest.shards),
        "fingerprint": manifest.fingerprint,
    }
