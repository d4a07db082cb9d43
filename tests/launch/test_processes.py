"""One supervised child: output, exit code, and the ways it can be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from launch.failures import Stopped
from launch.processes import run_supervised, stop_on_termination


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_exit_code_are_kept() -> None:
    result = run_supervised(python("print('é' * 100_000); exit(3)"), capture_output=True)
    assert result.exit_code == 3
    assert result.output == "é" * 100_000 + "\n"
    assert result.signals == ()


def test_environment_and_folder_are_the_childs(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['SPADE_TEST'], len(os.environ) < 5)"
    result = run_supervised(
        python(code), environment={"SPADE_TEST": "x"}, working_folder=tmp_path, capture_output=True
    )
    assert result.output.split()[:2] == [str(tmp_path), "x"]


def test_a_missing_program_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        run_supervised(["/no/such/program"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_reported(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    result = run_supervised(python("import time; time.sleep(60)"))
    assert result.signals == (number,)
    assert result.exit_code == -signal.SIGTERM
    assert result.seconds < 20
    assert signal.getsignal(number) is before


def test_a_child_that_will_not_stop_is_killed_after_its_grace() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
    result = run_supervised(python(code), grace_seconds=0.5)
    assert result.exit_code == -signal.SIGKILL
    assert result.seconds < 20


def test_what_a_child_leaves_running_is_ended(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():\n"
        "    time.sleep(0.01)\n"
    )
    mark = tmp_path / "pid"
    assert run_supervised([*python(code), str(mark)]).exit_code == 0
    assert not psutil.pid_exists(int(mark.read_text()))


def test_children_of_before_are_left_alone() -> None:
    with subprocess.Popen(python("import time; time.sleep(60)")) as mine:
        run_supervised(python("pass"))
        assert mine.poll() is None
        mine.kill()


def test_an_error_in_the_watcher_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("watcher")

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(RuntimeError, match="watcher"):
        run_supervised(python("import time; time.sleep(60)"), watch=fail)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_termination_becomes_an_exception_inside_the_block() -> None:
    def wait_for_it() -> None:
        with stop_on_termination():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Stopped) as caught:
        wait_for_it()
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
