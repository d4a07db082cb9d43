"""The first failure: which of many it is, and what is left behind by ranks that really fail."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.first_failure import (
    clear_failures,
    failure_lines,
    first_failure,
    place_among_causes,
    read_failures,
    tell_first_failure,
)
from pretrain.resilience.failures import Failure, describe_failure, record_failure, recorded_errors

LOST, HUNG = 82, 81
PEER_GONE = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:1"

# Four ranks: one gets into the trouble that its first argument says, the others notice or not.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from pretrain.resilience.ending import LOST_EXIT_CODE, end_process
from pretrain.resilience.failures import log_folder_of_launcher, recorded_errors

trouble, rank = sys.argv[1], int(os.environ["RANK"])
logs = log_folder_of_launcher(os.environ)
signal.signal(signal.SIGTERM, lambda number, frame: None)  # a request to stop, as for real ranks

def wait_for(names, count):
    while len(list(logs.parent.glob(names))) < count:
        time.sleep(0.005)

(logs.parent / f"there-{rank}").touch()
wait_for("there-*", 4)
if rank == 2:
    (logs.parent / "in-trouble").touch()
    if trouble == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "word":
        os._exit(7)
    with recorded_errors(rank, logs):
        raise MemoryError if trouble == "memory" else KeyError("no such thing\\nsecond line")
wait_for("in-trouble", 1)  # some notice before torchrun does
if rank == 0:
    with recorded_errors(rank, logs):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")
end_process(LOST_EXIT_CODE, rank, "rank 2 has died: its connection is closed", logs, list)
"""


def failure(rank: int, code: int, message: str = "made to fail", seconds: float = 0.0) -> Failure:
    return Failure(rank, "node", seconds, code, message, f"rank-{rank:05d}.log")


CAUSES = st.builds(
    failure,
    st.integers(0, 99),
    st.sampled_from([1, 7, HUNG, -9, -11, -7]),
    st.sampled_from(["ValueError: no", "out of memory", "", "no progress for 600 s"]),
    st.floats(0, 2e9),
)
CONSEQUENCES = st.builds(
    failure,
    st.integers(100, 199),
    st.sampled_from([LOST, -15, 143, -6]),
    st.sampled_from(["rank 3 has died", "made to fail"]),
    st.floats(0, 2e9),
) | st.builds(
    failure,
    st.integers(200, 299),
    st.just(1),
    st.sampled_from(
        [PEER_GONE, "DistBackendError: NCCL error: remote process exited", "DistNetworkError: x"]
    ),
    st.floats(0, 2e9),
)


@given(st.lists(CAUSES, min_size=1, max_size=5), st.lists(CONSEQUENCES, max_size=20), st.randoms())
def test_a_cause_comes_before_what_follows_from_it_whatever_the_clocks(causes, others, order):
    every = [*causes, *others]
    order.shuffle(every)
    first = sorted(every, key=place_among_causes)[0]
    assert first in causes
    assert first.unix_seconds == min(cause.unix_seconds for cause in causes)


def test_among_consequences_what_may_be_a_cause_comes_first():
    every = [failure(1, -15), failure(2, LOST), failure(3, 1, PEER_GONE), failure(4, -6)]
    assert [f.rank for f in sorted(every, key=place_among_causes)] == [3, 4, 2, 1]


def test_the_first_word_of_a_rank_counts_and_a_new_start_forgets(tmp_path):
    logs = tmp_path / "logs"
    assert record_failure(logs, 3, "first\nand more", 1, unix_seconds=10)
    assert record_failure(logs, 3, "later", -9)
    assert first_failure(tmp_path) == Failure(
        3, socket.gethostname(), 10.0, 1, "first", "rank-00003.log"
    )
    assert [path.name for path in (logs / "failures").iterdir()] == ["rank-00003.json"]
    clear_failures(tmp_path)
    clear_failures(tmp_path)
    assert first_failure(tmp_path) is None


def test_a_folder_that_cannot_be_written_hides_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyError), recorded_errors(0, tmp_path / "file" / "logs"):
        raise KeyError("the real one")
    assert not record_failure(tmp_path / "file", 0, "x", 1)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("train.seed is odd\nsecond"), "train.seed is odd"),
        (
            MemoryError(),
            "out of memory: use a smaller batch, a shorter sequence or a smaller model",
        ),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_become_one_line(error, line):
    assert describe_failure(error) == line


@given(
    st.dictionaries(
        st.sampled_from(["rank", "host", "unix_seconds", "exit_code", "message", "log", "more"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()),
    )
    | st.binary()
)
def test_damaged_words_are_left_out(tmp_path_factory, value):
    run = tmp_path_factory.mktemp("run")
    record_failure(run / "logs", 7, "the sound one", 1)
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    (run / "logs" / "failures" / "rank-00000.json").write_bytes(content)
    found = read_failures(run)
    assert 7 in [item.rank for item in found]
    assert len(failure_lines(run, found)) in (2, 3)


def test_what_is_told_is_safe_and_says_where_to_read_more(tmp_path, capsys):
    logs = tmp_path / "logs"
    record_failure(logs, 12, "rank 12: \x1b[31mred", 1, unix_seconds=time.time())
    record_failure(logs, 3, "lost", LOST)
    (logs / "rank-00012.out").write_text("terminate called")
    tell_first_failure(tmp_path)
    first, log, others = capsys.readouterr().err.splitlines()
    assert first.startswith(f"first failure: rank 12 on {socket.gethostname()} at ")
    assert first.endswith(": \\x1b[31mred")
    assert log == f"log: {logs}/rank-00012.log, {logs}/rank-00012.out"
    assert others == "(1 other rank ended because of it)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("killed", "was ended by SIGKILL: out of memory?"),
        ("memory", "out of memory: use a smaller batch, a shorter sequence or a smaller model"),
        ("word", "ended with exit code 7"),
    ],
)
def test_the_rank_in_trouble_is_found_among_four(tmp_path, trouble, message):
    """Under the launcher's own torchrun; the others fail in their own ways, some of them before."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from launch.local import run_workers\n"
        "run = Path(sys.argv[1])\n"
        "worker = [str(run / 'worker.py'), sys.argv[2]]\n"
        "run_workers(worker, processes=4, stop_marker=run / 'stopped.json', run=run)\n"
    )
    (tmp_path / "worker.py").write_text(WORKER)
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), trouble],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    first = first_failure(tmp_path)
    assert first is not None
    assert (first.rank, first.message) == (2, message), read_failures(tmp_path)
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("first failure: ")]
    assert told.startswith("first failure: rank 2 on ")
    assert told.endswith(message)
    assert result.stderr.count("was ended by") == told.count("was ended by"), "it is told once"


PRINTING = """
import os, sys
from pathlib import Path
from launch.rank_output import send_output_to_file
print("before")
rank = int(sys.argv[1])
send_output_to_file(rank, Path(sys.argv[2]), os.environ, most_bytes=100, files=3)
print("from Python", "x" * 200)
os.system("echo from a child")
os.write(2, b"from C\\n")
os.kill(os.getpid(), 9)
"""


def test_what_other_ranks_print_goes_to_files_that_are_cut(tmp_path):
    def start(rank: int, wanted: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", PRINTING, str(rank), str(tmp_path)],
            env=os.environ | {"SPADE_RANK_OUTPUT": wanted, "NUMBER": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout

    assert "from C" in start(0, "file")
    assert "from C" in start(1, "")
    assert not list(tmp_path.iterdir())
    assert start(1, "file") == "before\n"
    text = (tmp_path / "rank-00001.out").read_text()
    assert text.splitlines()[0].startswith("from Python")
    assert text.splitlines()[1:] == ["from a child", "from C"]
    for _ in range(4):
        start(1, "file")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["rank-00001.out", "rank-00001.out.1", "rank-00001.out.2"]
    assert all(path.read_text() == text for path in tmp_path.iterdir())


def test_logs_are_put_aside_and_workers_of_the_loader_leave_them_alone(tmp_path):
    from pretrain.ranks import Ranks
    from pretrain.run_folder import RunFolder
    from pretrain.telemetry.settings import TelemetrySettings
    from pretrain.worker import _prepare

    settings = TelemetrySettings(log_megabytes=0.002, log_files=3)
    names = ("spade", "DeepSpeed", "py.warnings")
    before = [(logging.getLogger(n).handlers, logging.getLogger(n).propagate) for n in names]
    try:
        logger = _prepare(RunFolder(tmp_path), Ranks(5, 8, 1, "torchrun"), settings)
        for number in range(100):
            logger.info("line %03d %s", number, "x" * 60)
        child = os.fork()
        if child == 0:
            try:
                for number in range(100):
                    logger.info("of the child %03d %s", number, "y" * 60)
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        logger.info("the last line")
    finally:
        logging.captureWarnings(False)
        for name, (handlers, propagate) in zip(names, before, strict=True):
            for handler in logging.getLogger(name).handlers:
                handler.close()
            logging.getLogger(name).handlers = handlers
            logging.getLogger(name).propagate = propagate
    logs = tmp_path / "logs"
    found = sorted(path.name for path in logs.iterdir())
    assert found == ["rank-00005.log", "rank-00005.log.1", "rank-00005.log.2"]
    newest = (logs / "rank-00005.log").read_text()
    assert newest.endswith("the last line\n")
    texts = [(logs / name).read_text() for name in reversed(found)]
    own = [line for text in texts for line in text.splitlines() if " line 0" in line]
    numbers = [int(line.split(" line ")[1][:3]) for line in own]
    assert numbers == list(range(numbers[0], 100)), "nothing is lost between two files"
    assert max(len(text) for text in texts if "of the child" not in text) <= 2000


def test_torchruns_own_word_is_told_where_no_launcher_listens():
    code = (
        "import signal, sys\n"
        "from types import SimpleNamespace as Child\n"
        "from launch.torchrun import tell_failure\n"
        "for code in (-9, -15, 0, 75, 1, -40): tell_failure(4, Child(exitcode=code, timestamp=1))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "SPADE_LOG_FOLDER"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines() == [
        "error: rank 4 was ended by SIGKILL: out of memory?",
        f"error: rank 4 was ended by {signal.Signals(40).name}"
        if 40 in list(signal.Signals)
        else "error: rank 4 was ended by signal 40",
    ]
