"""Runs the targets under atheris, each in a process of its own with bounded memory.

``python -m tests.fuzz --inputs 100000`` prints a row a target and keeps what it found under
``tests/data_pipeline/fuzz_cases/TARGET/``, where the tests replay it.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = Path(__file__).resolve().parent.parent / "data_pipeline" / "fuzz_cases"
MEMORY_BYTES = 4 * 2**30
_LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-max_len=20000")


def fuzz_one(name: str, inputs: int, seed: int, corpus: Path, found: Path) -> None:
    """Fuzzes one target; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["data_pipeline", "tests.fuzz"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    for number, data in enumerate(SEEDS[name]()):
        (corpus / f"seed-{number}").write_bytes(data)
    TARGETS[name](b"")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = [f"-runs={inputs}", f"-seed={seed}", f"-artifact_prefix={found}/", "-verbosity=1"]
    known = [str(CASES / name)] if (CASES / name).is_dir() else []
    atheris.Setup(["fuzz", *options, *_LIMITS, str(corpus), *known], TARGETS[name])
    atheris.Fuzz()


def run_target(name: str, inputs: int, seed: int) -> tuple[int, float, list[Path]]:
    """Inputs done, seconds taken, and files of what was found."""
    found = CASES / name
    found.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    started_seconds = time.perf_counter()
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, "--corpus", corpus]
        command += ["--inputs", str(inputs), "--seed", str(seed)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started_seconds
    new = sorted(set(found.iterdir()) - before)
    if process.returncode and not new:
        raise SystemExit(f"{name} ended with {process.returncode}:\n{process.stderr[-3000:]}")
    if new:
        print(process.stderr[-3000:], file=sys.stderr)
    elif not any(found.iterdir()):
        found.rmdir()
    done = re.findall(r"^#(\d+)\s", process.stderr, re.MULTILINE)
    return int(done[-1]) if done else 0, seconds, new


def main() -> int:
    """Runs what the command line asks for; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", help="one of the targets; repeatable")
    parser.add_argument("--inputs", type=int, default=20_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print('skipped: atheris is not installed (pip install "spade-pretrain[dev]")')
        return 0
    if options.one:
        fuzz_one(options.one, options.inputs, options.seed, options.corpus, CASES / options.one)
    from tests.fuzz.targets import TARGETS

    total, seconds, findings = 0, 0.0, 0
    print(f"{'target':24}{'inputs':>10}{'inputs/s':>10}{'found':>7}")
    for name in options.target or TARGETS:
        done, taken_seconds, new = run_target(name, options.inputs, options.seed)
        print(f"{name:24}{done:10,}{done / taken_seconds:10,.0f}{len(new):7}", flush=True)
        total, seconds, findings = total + done, seconds + taken_seconds, findings + len(new)
    print(f"{'all':24}{total:10,}{total / seconds:10,.0f}{findings:7}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
