"""The whole way, on a tiny corpus, with Ctrl-C at every stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from launch.failures import CommandError
from launch.quickstart import Options, _preset
from launch.quickstart_corpus import split_corpus, write_heldout_documents
from launch.quickstart_summary import show_fills

STAGES = ["Corpus", "Tokenizer", "Shards", "Every byte", "Training", "Proof", "Export", "Gaps"]


def test_fewer_steps_shrink_what_depends_on_them() -> None:
    whole, short = (_preset(Options(out=Path("x"), steps=steps)) for steps in (None, 10))
    assert short["train"]["max_steps"] == 10
    warmup = short["schedule"]["warmup_steps"]
    assert 1 <= warmup < whole["schedule"]["warmup_steps"]
    assert warmup + short["schedule"].get("decay_steps", 0) <= 10
    assert 1 <= short["evaluation"]["every_steps"] <= 10
    assert short["data"]["train"] == "x/data/train"
    assert short["run_dir"] == "x/runs"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_preset_suits_the_usual_numbers_of_ranks(processes: int) -> None:
    _preset(Options(out=Path("x"), processes=processes))


def corpus_of(path: Path, documents: int, *, characters: int = 10) -> Path:
    lines = [{"id": f"d{n}", "text": f"{n} " * (characters // 2)} for n in range(documents)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_small_corpus_holds_out_enough(tmp_path: Path) -> None:
    large = split_corpus([str(corpus_of(tmp_path / "large.jsonl", 500))], "x")
    assert large["heldout_fraction"] == 0.05
    small = split_corpus([str(corpus_of(tmp_path / "small.jsonl", 20))], "x")
    assert small["heldout_fraction"] > 0.05
    write_heldout_documents(tmp_path / "samples.jsonl", small)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3
    with pytest.raises(CommandError, match="too few"):
        split_corpus([str(corpus_of(tmp_path / "tiny.jsonl", 2))], "x")


def test_bad_documents_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = corpus_of(tmp_path / "corpus.jsonl", 100)
    with path.open("a") as stream:
        stream.write('{"id": "broken", "text": \n')
    split_corpus([str(path)], "x")
    assert "1 documents are left out" in capsys.readouterr().out


def test_fills_stand_between_their_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    spans = [{"truth": "x =", "generated": "\n"}, {"truth": "y", "generated": ""}]
    show_fills([{"name": "a.py", "masked_text": "l\n<extra_id_0> 1\n<extra_id_1>", "spans": spans}])
    assert capsys.readouterr().out.splitlines() == [
        "a.py:",
        "  l↵ [___]  1↵",
        "      was 'x =', the model says '↵'",
        "   1↵ [___] ",
        "      was 'y', the model says ''",
    ]
    literal = {"name": "b", "masked_text": "<extra_id_0> <extra_id_0>", "spans": spans[:1]}
    show_fills([literal])
    assert "  gap 0" in capsys.readouterr().out.splitlines()


def write_corpus(path: Path) -> Path:
    """Sixty of the standard library's files: long enough to mask, few enough to be quick."""
    from data_pipeline.corpora.corpus import write_standard_library_corpus

    whole = write_standard_library_corpus(path.parent / "library")
    with whole.open(encoding="utf-8") as stream, path.open("w", encoding="utf-8") as out:
        for _ in range(60):
            out.write(next(stream))
    return path


class Quickstart:
    """One start of the command, whose output is read while it comes."""

    def __init__(self, out: Path, corpus: Path) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.cli", "quickstart", "--out", str(out)),
                *("--corpus", str(corpus), "--steps", "6", "--prove-resume"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "SPADE_TRACEBACK"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for_stage(self, stage: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not any(line.startswith(f"== {stage}") for line in self.lines):
            assert self.process.poll() is None, "\n".join([*self.lines, self.errors()])
            assert time.monotonic() < deadline, f"{stage} not reached: {self.lines[-3:]}"
            time.sleep(0.02)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def interrupt(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        errors = self.errors()
        assert code == 130, "\n".join([*self.lines, errors])
        assert "Traceback" not in errors + "\n".join(self.lines)
        assert errors == "stopped; the same command goes on from there\n"
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == [], "no process is left behind"

    def finish(self, seconds: float = 480) -> str:
        code = self.process.wait(timeout=seconds)
        self._reader.join(timeout=10)
        assert code == 0, "\n".join([*self.lines, self.errors()])
        return "\n".join(self.lines)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_way_with_ctrl_c_at_every_stage(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the export needs the extra hf")
    corpus, out = write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "out"
    for number, stage in enumerate(STAGES):
        run = Quickstart(out, corpus)
        run.wait_for_stage(stage)
        time.sleep(0.15 * number)  # stages take longer towards the end
        run.interrupt()

    output = Quickstart(out, corpus).finish()
    for stage in STAGES[1:4]:
        after = output.partition(f"== {stage}")[2].splitlines()[1]
        assert after.startswith("done before"), f"{stage} is not done twice"
    assert "bit for bit the curve of a run without a stop (6 steps)" in output
    assert "--pieces" not in output
    assert "unigram baseline" in output
    run_folder = out / "runs" / "quickstart"
    for name in ("report.html", "loss.png", "export/model.safetensors", "metrics.jsonl"):
        assert (run_folder / name).stat().st_size > 0
    assert "Sample fills" in (run_folder / "report.html").read_text()

    again = Quickstart(out, corpus).finish(seconds=60)
    assert again.count("done before") == len(STAGES), "everything is there already"
