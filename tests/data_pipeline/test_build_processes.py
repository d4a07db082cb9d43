"""Building by several processes, killed processes, and machines that refuse."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.building.build import BuildSummary, build_dataset
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

SHARD_TEXT_BYTES = 40_000
MPIEXEC = Path(sys.executable).with_name("mpiexec")

# What a command does under a launcher, and a place where a rank can be made to fail.
RANK = """
import json, os, sys
from pathlib import Path
from data_pipeline.building import build, shard_building
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
arguments = json.loads(sys.argv[1])
rank = int(os.environ.get("PMI_RANK", 0))
if arguments.get("fail_rank") == rank:
    def fail(*rest):
        raise {"data": build.DataError("no luck"), "bug": RuntimeError("a bug")}[arguments["kind"]]
    shard_building.write_shard = fail
try:
    summary = build.build_dataset(
        [Path(path) for path in arguments["inputs"]],
        DocumentTokenizer.load(Path(arguments["tokenizer"])),
        Path(arguments["out"]),
        heldout_fraction=0.1,
        shard_text_bytes=arguments["shard_text_bytes"],
    )
except build.DataError as error:
    sys.exit(f"error: {error}")
facts = (rank, summary.train.fingerprint, summary.shards_written, summary.shards_kept)
# Not printed: the ranks share one pipe, and a launcher may mix their lines.
Path(arguments["out"] + f".facts{rank}").write_text(json.dumps(facts))
"""

# The same, but slow enough to be interrupted at a chosen moment.
SLOW_RANK = RANK.replace(
    "try:\n",
    """
import time
Path(arguments["out"] + f".pid{rank}").write_text(str(os.getpid()))
write_shard = shard_building.write_shard
def slowly(documents):
    for document in documents:
        time.sleep(0.01)
        yield document
shard_building.write_shard = lambda a, b, documents, c: write_shard(a, b, slowly(documents), c)
try:
""",
)

# One rank crawls; each says how many shards it has written.
UNEVEN_RANK = RANK.replace(
    "try:\n",
    """
import time
write_shard, made = shard_building.write_shard, []
def crawl(documents):
    for document in documents:
        time.sleep(0.1 if rank == arguments["slow_rank"] else 0)
        yield document
def counted(folder, number, documents, dtype):
    made.append(number)
    return write_shard(folder, number, crawl(documents), dtype)
shard_building.write_shard = counted
try:
""",
    1,
).replace("facts = (rank,", "facts = (rank, len(made),")


@pytest.fixture
def reference(prose_corpus: Path, prose_data: Path, tmp_path: Path) -> BuildSummary:
    """The data set as one process makes it without interruption."""
    return build_dataset(
        [prose_corpus],
        DocumentTokenizer.load(prose_data / "tokenizer"),
        tmp_path / "reference",
        heldout_fraction=0.1,
        shard_text_bytes=SHARD_TEXT_BYTES,
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def facts_of(build_options: dict[str, Any]) -> list[list[Any]]:
    """What each rank of the last run has said, in order; heard once."""
    out = Path(build_options["out"])
    paths = sorted(out.parent.glob(f"{out.name}.facts*"))
    facts = [json.loads(path.read_text()) for path in paths]
    for path in paths:
        path.unlink()
    return facts


def command(build_options: dict[str, Any], ranks: int | None = None) -> list[str]:
    launcher = [] if ranks is None else [str(MPIEXEC), "-n", str(ranks)]
    return [*launcher, sys.executable, "-c", RANK, json.dumps(build_options)]


@pytest.fixture
def options(prose_corpus: Path, prose_data: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "inputs": [str(prose_corpus)],
        "tokenizer": str(prose_data / "tokenizer"),
        "out": str(tmp_path / "mpi"),
        "shard_text_bytes": SHARD_TEXT_BYTES,
    }


def test_a_full_disk_is_one_clear_line_and_loses_nothing(
    reference: BuildSummary, options: dict[str, Any], tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: the system refuses in the same way."""

    def run(limit_bytes: int) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        return subprocess.run(command(options), preexec_fn=limit, capture_output=True, text=True)

    refused = run(20_000)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "cannot write" in refused.stderr
    assert "run the same command again: what is finished is kept" in refused.stderr
    out = Path(options["out"])
    assert not list(out.rglob("*.tar"))
    assert not list(out.rglob("manifest.json"))
    assert run(2**30).returncode == 0
    assert tree(out) == tree(tmp_path / "reference")


def all_ended(pids: list[int]) -> bool:
    """Whether the processes end soon; one that is dead but not yet waited for has ended."""

    def is_running(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    deadline = time.monotonic() + 10
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")
class TestUnderMpi:
    @pytest.mark.parametrize("ranks", [1, 2, 3])
    def test_any_number_of_ranks_writes_the_same_bytes(
        self, reference: BuildSummary, options: dict[str, Any], tmp_path: Path, ranks: int
    ) -> None:
        run = subprocess.run(command(options, ranks), capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        expected = [reference.train.fingerprint, reference.shards_written, 0]
        assert facts_of(options) == [[rank, *expected] for rank in range(ranks)]
        assert tree(tmp_path / "mpi") == tree(tmp_path / "reference")
        subprocess.run(command(options, 4 - ranks), capture_output=True, timeout=120, check=True)
        assert facts_of(options)[0] == [
            *(0, reference.train.fingerprint, 0, reference.shards_written)
        ]

    @pytest.mark.parametrize("seed", range(4))
    def test_killed_at_any_moment_it_goes_on(
        self, reference: BuildSummary, options: dict[str, Any], tmp_path: Path, seed: int
    ) -> None:
        choose = random.Random(seed)
        launched = subprocess.Popen(
            [str(MPIEXEC), "-n", "2", sys.executable, "-c", SLOW_RANK, json.dumps(options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        out = Path(options["out"])
        deadline = time.monotonic() + 60
        # Somewhere between the first and the last shard.
        while len(list(out.rglob("*.tar"))) < 1 + seed and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(choose.random() * 0.1)
        pids = [int(Path(f"{out}.pid{rank}").read_text()) for rank in range(2)]
        os.kill(pids[seed % 2], signal.SIGKILL)
        assert launched.wait(timeout=60) != 0
        assert all_ended(pids)
        assert not (out / "train" / "manifest.json").exists()
        finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
        assert finished
        run = subprocess.run(
            command(options, 1 + seed % 3), capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        assert facts_of(options)[0][-1] == len(finished)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        assert tree(out) == tree(tmp_path / "reference")

    @pytest.mark.parametrize("seed", range(3))
    def test_killed_again_and_again_from_the_first_moment_on(
        self, reference: BuildSummary, options: dict[str, Any], tmp_path: Path, seed: int
    ) -> None:
        """Any rank, at any time: while it starts, scans, plans, writes."""
        choose = random.Random(seed)
        out = Path(options["out"])
        for _ in range(4):
            ranks = choose.choice((2, 3))
            for path in tmp_path.glob("mpi.pid*"):
                path.unlink()
            launched = subprocess.Popen(
                [
                    *(str(MPIEXEC), "-n", str(ranks), sys.executable, "-c", SLOW_RANK),
                    json.dumps(options),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            pid_file = Path(f"{out}.pid{choose.randrange(ranks)}")
            deadline = time.monotonic() + 60
            while not (pid_file.exists() and pid_file.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(choose.random() * 0.6)
            # It may have ended by itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
            launched.wait(timeout=60)
            # Nothing half-written stands under a final name.
            finished = {name: data for name, data in tree(out).items() if name.endswith(".tar")}
            assert finished.items() <= tree(tmp_path / "reference").items()
        run = subprocess.run(
            command(options, 1 + seed % 3), capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        assert tree(out) == tree(tmp_path / "reference")

    @pytest.mark.parametrize("slow_rank", [0, 1])
    def test_others_take_the_work_of_a_slow_rank(
        self, reference: BuildSummary, options: dict[str, Any], tmp_path: Path, slow_rank: int
    ) -> None:
        run = subprocess.run(
            [
                *(str(MPIEXEC), "-n", "2", sys.executable, "-c", UNEVEN_RANK),
                json.dumps({**options, "slow_rank": slow_rank}),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        made = {rank: count for rank, count, *_ in facts_of(options)}
        assert sum(made.values()) == reference.shards_written
        # An even share would be a half.
        assert made[slow_rank] <= reference.shards_written / 3
        assert tree(tmp_path / "mpi") == tree(tmp_path / "reference")

    def test_an_interrupt_ends_all_without_a_traceback(self, options: dict[str, Any]) -> None:
        launched = subprocess.Popen(
            [str(MPIEXEC), "-n", "2", sys.executable, "-c", SLOW_RANK, json.dumps(options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        out = Path(options["out"])
        deadline = time.monotonic() + 60
        while not list(out.rglob("*.tar")) and time.monotonic() < deadline:
            time.sleep(0.005)
        # As a terminal does it: to the launcher and to all it started.
        os.killpg(launched.pid, signal.SIGINT)
        _, errors = launched.communicate(timeout=60)
        assert launched.returncode != 0
        assert "Traceback" not in errors
        pids = [int(Path(f"{out}.pid{rank}").read_text()) for rank in range(2)]
        assert all_ended(pids)
        run = subprocess.run(command(options), capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [("data", "error on rank {rank} of 3: no luck"), ("bug", "RuntimeError: a bug")],
    )
    @pytest.mark.parametrize("rank", [0, 2])
    def test_one_failing_rank_ends_all(
        self, options: dict[str, Any], rank: int, kind: str, expected: str
    ) -> None:
        started_seconds = time.monotonic()
        run = subprocess.run(
            command({**options, "fail_rank": rank, "kind": kind}, 3),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode != 0
        assert time.monotonic() - started_seconds < 30
        assert run.stderr.count(expected.format(rank=rank)) == 1
        if kind == "data":
            assert run.stderr.count("\n") == 1
        assert not list(Path(options["out"]).rglob("manifest.json"))

    def test_an_error_of_the_first_rank_is_said_once(self, options: dict[str, Any]) -> None:
        run = subprocess.run(
            command({**options, "inputs": ["/nowhere"]}, 2),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode != 0
        assert run.stderr.count("the corpus path /nowhere does not exist") == 1


def test_a_long_line_takes_bounded_memory(prose_data: Path, tmp_path: Path) -> None:
    """24 MB on one line, through the path that 200 MB take: memory stays a few times the text."""
    text_bytes = 24_000_000
    (tmp_path / "line.txt").write_text(("lorem ipsum dolor sit amet " * 10**6)[:text_bytes])
    code = (
        "import resource, sys, json\nfrom pathlib import Path\n"
        "from data_pipeline.building.build import build_dataset\n"
        "from data_pipeline.tokenization.tokenizer import DocumentTokenizer\n"
        "tokenizer = DocumentTokenizer.load(Path(sys.argv[1]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "build_dataset([Path(sys.argv[2])], tokenizer, Path(sys.argv[3]), heldout_fraction=0)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    arguments = [prose_data / "tokenizer", tmp_path / "line.txt", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 8 * text_bytes
    assert verify_dataset(tmp_path / "out" / "train").is_sound
