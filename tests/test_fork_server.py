"""A forked process is what a fresh one would be, and ends as a fresh one would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from python_processes import ForkedProcess, FreshProcess

pytestmark = pytest.mark.slow

FACTS = """
import json, os, signal, sys, threading, types
import torch
print(json.dumps({
    "arguments": sys.argv[1:],
    "name": __name__,
    "module path": sys.path[0],
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "leads its session": os.getsid(0) == os.getpid(),
    "main thread": threading.current_thread() is threading.main_thread(),
    "threads": len(os.listdir("/proc/self/task")),
    "torch threads": torch.get_num_threads(),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "input": os.read(0, 1).decode(),
    "handlers": {each.name: str(signal.getsignal(each)).split(" at ")[0]
                 for each in signal.valid_signals() if hasattr(each, "name")},
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
}))
"""

ENDINGS = {
    "exit": ("import sys; sys.exit(3)", 3),
    "message": ("import sys; sys.exit('said in one line')", 1),
    "end": ("import atexit; atexit.register(print, 'the last word')", 0),
    "error": ("raise ValueError('a mistake')", 1),
    "at once": ("import os; os._exit(7)", 7),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "interrupted": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    "terminated": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "thread": ("import threading; threading.Timer(0.3, print, ['later']).start()", 0),
}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_forked_process_finds_what_a_fresh_one_finds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [write(tmp_path / "facts.py", FACTS), "one", "two words"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ONLY_HERE": "ö"}
    seen = []
    for start in (FreshProcess, ForkedProcess):
        process = start(arguments, environment)
        assert process.wait(60) == 0, process.output
        seen.append(json.loads(process.output))
    assert seen[1] == seen[0]
    assert seen[1]["descriptors"] == ["0", "1", "2", "3"]  # 3 lists the descriptors


def test_it_ends_as_a_fresh_one_ends(tmp_path):
    processes = {}
    for name, (script, _) in ENDINGS.items():
        arguments = [write(tmp_path / f"{name}.py", script)]
        processes[name] = [start(arguments, os.environ) for start in (FreshProcess, ForkedProcess)]
    for name, (fresh, forked) in processes.items():
        assert [fresh.wait(60), forked.wait(60)] == [ENDINGS[name][1]] * 2, name
        if "Traceback" in fresh.output:  # the frames that lead to the script differ
            assert forked.output.splitlines()[-1] == fresh.output.splitlines()[-1]
        else:
            assert forked.output == fresh.output, name


def test_processes_differ_where_fresh_ones_would(tmp_path):
    script = write(
        tmp_path / "draw.py",
        "import numpy, random, torch\nprint(random.random())\n"
        "print(numpy.random.rand())\nprint(torch.rand(()).item())",
    )
    processes = [ForkedProcess([script], os.environ) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    drawn = [process.output.split() for process in processes]
    for of_one_library in zip(*drawn, strict=True):
        assert len(set(of_one_library)) == 3


def test_it_can_be_stopped_watched_and_killed(tmp_path):
    script = write(tmp_path / "sleep.py", "import time\nprint('here', flush=True)\ntime.sleep(600)")
    process = ForkedProcess([script], os.environ)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    deadline = time.monotonic() + 20
    while process.output != "here\n":
        assert time.monotonic() < deadline, process.output
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)
    process.kill()  # of one that has ended: nothing happens


def test_nothing_outlives_tests_that_are_killed(tmp_path):
    sleeper = write(tmp_path / "sleep.py", "import time\ntime.sleep(600)")
    starter = (
        "import os, sys, time\nimport python_processes\n"
        "python_processes.WARM_MODULES = ('json',)\n"
        "process = python_processes.ForkedProcess([sys.argv[1]], os.environ)\n"
        "print(process.pid, python_processes.server().process.pid, flush=True)\ntime.sleep(600)\n"
    )
    tests = subprocess.Popen(
        [sys.executable, write(tmp_path / "starter.py", starter), sleeper],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent / "support")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tests.stdout is not None
    pids = list(map(int, tests.stdout.readline().split()))
    tests.kill()
    tests.wait()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
    tests.stdout.close()
