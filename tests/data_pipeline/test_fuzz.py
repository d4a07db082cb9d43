"""Everything that reads bytes of others: any bytes give an answer or one `DataError`.

The targets are those of ``python -m tests.fuzz``, which runs them under atheris; what it has found
lies in ``fuzz_cases/`` and is replayed here, each target in a process of bounded memory.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import FUNCTIONS, SEEDS, TARGETS, with_right_checksums

CASES = Path(__file__).parent / "fuzz_cases"
REPOSITORY = Path(__file__).parent.parent.parent
MEMORY_BYTES = 4 * 2**30

REPLAY = """
import sys
from pathlib import Path
from tests.fuzz.targets import TARGETS
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        TARGETS[path.parent.name](path.read_bytes())
        print(path.name)
"""


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def test_found_cases_stay_mended() -> None:
    cases = [path for path in CASES.rglob("*") if path.is_file()]
    assert {path.parent.name for path in cases} <= set(TARGETS)
    assert all(path.stat().st_size < 2**16 for path in cases)
    process = subprocess.run(
        [sys.executable, "-c", REPLAY, str(CASES)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit_memory,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert len(process.stdout.split()) == len(cases) > 0


@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_begins_with_what_is_taken(name: str) -> None:
    """Else it would only ever see the first check."""
    FUNCTIONS[name](SEEDS[name]()[0])


def _harms(data: bytes) -> st.SearchStrategy[bytes]:
    """A sound input with bytes overwritten, cut out, doubled, or cut off."""
    size = max(len(data), 1)
    edits = st.lists(
        st.tuples(
            st.sampled_from(["write", "cut", "double", "end"]),
            st.integers(0, size - 1),
            st.binary(min_size=1, max_size=24),
            st.integers(1, 1024),
        ),
        min_size=1,
        max_size=4,
    )

    def apply(changes: list[tuple[str, int, bytes, int]]) -> bytes:
        harmed = data
        for kind, at, noise, length in changes:
            if kind == "write":
                harmed = harmed[:at] + noise + harmed[at + len(noise) :]
            elif kind == "cut":
                harmed = harmed[:at] + harmed[at + length :]
            elif kind == "double":
                harmed = harmed[: at + length] + harmed[at:]
            else:
                harmed = harmed[:at]
        return harmed

    return edits.map(apply)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_give_an_answer_or_an_error(name: str) -> None:
    seeds = SEEDS[name]()

    @given(st.one_of(st.binary(max_size=2000), *map(_harms, seeds)))
    @settings(max_examples=100)
    def check(data: bytes) -> None:
        TARGETS[name](data)
        TARGETS[name](with_right_checksums(data))

    check()


def test_the_fuzzer_finds_what_is_planted(tmp_path: Path) -> None:
    """The harness itself can fail: a target with a mistake ends with a finding."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    program = (
        "import sys; from pathlib import Path; from tests.fuzz import targets, __main__ as run\n"
        "def planted(data):\n    assert len(data) < 5\n"
        "targets.TARGETS['planted'] = planted; targets.SEEDS['planted'] = lambda: [b'aa']\n"
        "run.fuzz_one('planted', 20000, 1, Path(sys.argv[1]), Path(sys.argv[1]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode != 0
    assert list(tmp_path.glob("crash-*")), process.stderr[-1000:]


@pytest.mark.slow
def test_a_short_run_of_the_fuzzer_finds_nothing() -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", "3000", "--seed", "7"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    total = re.search(r"^all\s+([\d,]+)", process.stdout, re.MULTILINE)
    assert total is not None
    assert int(total[1].replace(",", "")) >= 3000 * len(TARGETS)
