"""The common tests of `transformers` on our classes, where there is a checkout of them.

They are not in the wheel. Name a checkout of the installed version:

    SPADE_TRANSFORMERS_TESTS=~/transformers pytest tests/spade_model/test_transformers_suite.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("transformers")

CHECKOUT = os.environ.get("SPADE_TRANSFORMERS_TESTS")
SUITE = Path(__file__).resolve().parent.parent / "support" / "transformers_suite.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    CHECKOUT is None, reason="SPADE_TRANSFORMERS_TESTS names no checkout of transformers"
)
def test_nothing_of_the_common_tests_fails(tmp_path: Path) -> None:
    assert CHECKOUT is not None
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", CHECKOUT, f"--junit-xml={report}", str(SUITE)]
    # `tests` is the package of the checkout there, and `spade_model` comes from here.
    environment = os.environ | {"PYTHONPATH": str(SUITE.parents[2])}
    done = subprocess.run(
        command,
        cwd=Path(CHECKOUT).expanduser(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {
        f"{case.get('classname')}.{case.get('name')}: {child.get('message', '')[:200]}"
        for case in cases
        for child in case
        if child.tag in ("failure", "error")
    }
    assert not failed, "\n".join(sorted(failed))
    passed = [case for case in cases if not list(case)]
    assert len(passed) > 200, "the suite was not found"
    assert done.returncode == 0, done.stdout[-3000:]
