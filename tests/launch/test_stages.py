"""Stages are done once, again when their inputs or outputs change, and after a stop go on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.curves import compare_curves, last_step
from launch.failures import CommandError, Stopped
from launch.stages import RECORD_FILE, Stages, fingerprint, sole_user


class Work:
    """Writes its output and counts how often."""

    def __init__(self, output: Path) -> None:
        self.output, self.times = output, 0

    def __call__(self) -> dict[str, int]:
        self.times += 1
        self.output.write_text("made")
        return {"times": self.times}


@pytest.fixture
def do(tmp_path: Path) -> Callable[..., dict[str, int]]:
    def run(work: Work, **inputs: object) -> dict[str, int]:
        stages = Stages(tmp_path)  # anew each time, as a new process would
        return stages.run("stage", "A stage", inputs=inputs, outputs=[work.output], work=work)

    return run


def test_a_stage_is_done_once(do: Callable[..., dict[str, int]], tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    assert do(work, size=1) == do(work, size=1) == {"times": 1}
    assert work.times == 1


def test_other_inputs_or_a_lost_output_do_it_again(
    do: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    work = Work(tmp_path / "out")
    do(work, size=1)
    assert do(work, size=2) == {"times": 2}
    work.output.unlink()
    assert do(work, size=2) == {"times": 3}


def test_a_stopped_stage_is_not_recorded(do: Callable[..., dict[str, int]], tmp_path: Path) -> None:
    def stop() -> dict[str, int]:
        raise Stopped("asked to")

    stages = Stages(tmp_path)
    with pytest.raises(Stopped):
        stages.run("stage", "A stage", inputs={}, outputs=[], work=stop)
    work = Work(tmp_path / "out")
    assert do(work) == {"times": 1}


def test_the_record_keeps_the_order(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    for name, value in (("b", 1), ("a", 1), ("b", 2)):
        stages.run(name, name.upper(), inputs={"x": value}, outputs=[], work=dict)
    assert list(Stages(tmp_path).seconds()) == ["A", "B"], "a stage done again moves to the end"


def test_a_folder_of_other_inputs_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Stages(tmp_path).claim(folder, inputs={"size": 1})
    assert not folder.exists(), "nobody knows what it came from"
    folder.mkdir()
    Stages(tmp_path).claim(folder, inputs={"size": 1})
    assert folder.exists(), "half done, of the same inputs: the stage goes on in it"
    Stages(tmp_path).claim(folder, inputs={"size": 2})
    assert not folder.exists()


def test_a_damaged_record_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text("{")
    with pytest.raises(CommandError, match="remove it"):
        Stages(tmp_path)


def test_a_fingerprint_follows_content_not_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint({"a": "\ud800"}), "file names may be no valid Unicode"


def test_a_folder_has_one_user(tmp_path: Path) -> None:
    other = (
        "import sys; from pathlib import Path; from launch.stages import sole_user\n"
        "with sole_user(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "out")]
    with sole_user(tmp_path / "out"):
        held = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another command is working there" in held.stderr
    assert subprocess.run(command, check=False).returncode == 0


def metrics(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_last_step_is_read_from_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    padding = "x" * 300
    metrics(path, *({"step": step, "loss": 1.0, "pad": padding} for step in range(1, 201)))
    assert last_step(path) == 200
    with path.open("a") as stream:
        stream.write('{"step": 200, "eval/heldout/loss": 3}\n{"step": 201, "loss"')
    assert last_step(path) == 200, "evaluations and half lines do not count"


def test_curves_compare_to_the_last_bit(tmp_path: Path) -> None:
    loss = 0.1 + 0.2
    one = metrics(
        tmp_path / "one",
        {"step": 0, "eval/heldout/loss": 9.0},
        {"step": 1, "loss": loss, "tokens_per_second": 5.0},
        {"event": "resume", "step": 1},
        {"step": 2, "loss": 2.0},
    )
    same = metrics(
        tmp_path / "same",
        {"step": 0, "eval/heldout/loss": 9.0},
        {"step": 1, "loss": loss, "tokens_per_second": 7.0},
        {"step": 2, "loss": 2.0},
    )
    comparison = compare_curves(one, same)
    assert comparison.equal
    assert (comparison.steps, comparison.values) == (2, 3)
    other = metrics(tmp_path / "other", {"step": 1, "loss": 0.3}, {"step": 2, "loss": 2.0})
    differences = compare_curves(one, other).differences
    assert len(differences) == 2, "the last bit of step 1, and the missing evaluation"
    assert "0.30000000000000004" in differences[1]
    assert not compare_curves(tmp_path / "none", tmp_path / "neither").equal, "nothing is no proof"
