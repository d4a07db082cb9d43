"""The command as a user meets it: quick help, strict arguments, one line for an error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "numpy",
    "deepspeed",
    "transformers",
    "pydantic",
    "sentencepiece",
    "webdataset",
    "mpi4py",
    "matplotlib",
    "pyarrow",
    "psutil",
}
# Every command that stands in the help; a new one is added here with its first test.
COMMANDS = [
    ["quickstart"],
    ["tokenizer", "train"],
    ["data", "build"],
    ["data", "inspect"],
    ["data", "verify"],
    ["plan"],
    ["pretrain"],
    ["launch", "local"],
    ["launch", "slurm"],
    ["launch", "ssh"],
    ["launch", "mpi"],
    ["launch", "kubernetes"],
    ["jobs"],
    ["checkpoint", "list"],
    ["checkpoint", "verify"],
    ["checkpoint", "prune"],
    ["report"],
    ["export"],
    ["generate"],
    *(["import", name] for name in ("msrlongt5", "fairseq-lm", "t5", "pretraining")),
    ["finetune"],
    *(["finetune", name] for name in ("classify", "summarize", "lm", "lra", "make-listops")),
    ["evaluate"],
    *(["evaluate", name] for name in ("lm", "denoise", "classify", "summarize")),
    ["doctor"],
    ["schema"],
]


def spade(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **options.pop("environment", {})}  # type: ignore[dict-item]
    environment.pop("SPADE_TRACEBACK", None) if "keep" not in options else options.pop("keep")
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def check_one_line_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 1, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import launch.cli\n"
        "try: launch.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.perf_counter() - start, *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy: the best of three counts
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        last = output.splitlines()[-1].split()
        assert not HEAVY & set(last[1:])
        seconds.append(float(last[0]))
    assert min(seconds) < 1.0


def test_every_command_has_help_with_an_example() -> None:
    top = spade("--help")
    assert top.returncode == 0
    listed = {command[0] for command in COMMANDS}
    names = top.stdout.partition("Commands:")[2].partition("Example:")[0].splitlines()
    found = {line.split()[0] for line in names if line[:2] == "  " and line[2:3].strip()}
    assert found == listed, "only what works is listed, and all of it is tested"
    code = (
        "import sys, json, launch.cli\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    print('=====', *command)\n"
        "    assert launch.cli.run([*command, '--help']) == 0\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps([[], *COMMANDS])],
        capture_output=True,
        text=True,
        check=True,
    )
    for text in result.stdout.split("=====")[1:]:
        assert "Example: " in text, text
        assert "spade " in text.partition("Example: ")[2], text


def test_plain_output_carries_no_control_sequences() -> None:
    result = spade("--help")
    assert "\x1b" not in result.stdout
    assert not set("╭│─") & set(result.stdout), "frames are for terminals"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["pretrian"], "pretrian"),
        (["data", "verify"], "DIR"),
        (["data", "verify", "a", "b"], "b"),
        (["pretrain", "config.yaml", "train.max_steps"], "section.key=value"),
        (["pretrain", "config.yaml", "--json"], "--dry-run"),
        (["pretrain", "config.yaml", "--dry"], "--dry"),
        (["quickstart", "--processes", "two"], "--processes"),
        (["quickstart", "--steps", "1"], "--steps"),
        (["tokenizer", "train", "--out", "x"], "--input"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str], complaint: str) -> None:
    result = spade(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr
    assert "--help'" in result.stderr


def test_without_arguments_the_help_is_shown() -> None:
    result = spade()
    assert result.returncode == 2
    assert "quickstart" in result.stdout + result.stderr


def test_a_missing_configuration(tmp_path: Path) -> None:
    check_one_line_error(spade("pretrain", tmp_path / "none.yaml"), "none.yaml", "cannot be read")


def test_a_misspelt_key_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: trial\ntrain: {max_stepz: 3}\n")
    result = spade("pretrain", path)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), "one line a problem"
    assert any("max_stepz" in line and "did you mean max_steps" in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "verify", "MISSING"],
        ["data", "inspect", "MISSING"],
        ["jobs", "MISSING"],
        ["checkpoint", "list", "MISSING"],
        ["checkpoint", "verify", "MISSING"],
        ["checkpoint", "prune", "MISSING"],
        ["report", "MISSING"],
        ["tokenizer", "train", "--input", "MISSING", "--out", "OUT"],
        ["export", "MISSING", "--out", "OUT"],
        ["import", "msrlongt5", "--weights", "MISSING", "--config", "MISSING", "--out", "OUT"],
        ["quickstart", "--corpus", "MISSING", "--out", "OUT"],
        ["schema", "--out", "MISSING/schema.json"],
    ],
)
def test_a_missing_path_is_named(arguments: list[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    named = [a.replace("MISSING", missing).replace("OUT", str(tmp_path / "out")) for a in arguments]
    check_one_line_error(spade(*named), missing)


def test_an_empty_corpus_folder(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    result = spade("quickstart", "--corpus", tmp_path / "corpus", "--out", tmp_path / "out")
    check_one_line_error(result, str(tmp_path / "corpus"))


def test_a_batch_that_cannot_be_dealt_out_fails_before_anything_is_made(tmp_path: Path) -> None:
    result = spade("quickstart", "--processes", "3", "--out", tmp_path / "out")
    check_one_line_error(result, "--processes 3", "use 1 or 2")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named() -> None:
    # Root may write anywhere but into the kernel's own file systems.
    place = Path("/proc/spade")
    if not place.parent.is_dir():
        pytest.skip("no /proc on this system to be refused by")
    check_one_line_error(spade("quickstart", "--out", place), str(place))


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    check_one_line_error(spade("quickstart", "--out", tmp_path / "out"), str(tmp_path / "out"))


def test_a_traceback_appears_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    result = spade("pretrain", path, environment={"SPADE_TRACEBACK": "1"}, keep=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def wait_until_open(process: subprocess.Popen[str], path: Path) -> None:
    """Returns once a process has a file open: it has started and is at work."""
    folder = Path(f"/proc/{process.pid}/fd")
    if not folder.exists():
        pytest.skip("no /proc here to see what a process has open")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):  # a file may be closed while we look
            if path in [entry.readlink() for entry in folder.iterdir()]:
                return
        time.sleep(0.02)
    raise AssertionError(f"{path} was never opened")


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    pipe = tmp_path / "corpus.jsonl"
    pipe.write_text('{"id": "a", "text": "b"}\n' * 2_000_000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "launch.cli", "tokenizer", "train"),
            *("--input", str(pipe), "--out", str(tmp_path / "out")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_open(process, pipe)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "stopped by Ctrl-C\n"


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    pipe = subprocess.run(
        f"'{sys.executable}' -m launch.cli schema | head -c 10",
        shell=True,  # the shell's own pipe is what is tested
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert pipe.stderr == ""
    assert len(pipe.stdout) == 10


def test_the_schema_is_json_and_can_be_written(tmp_path: Path) -> None:
    schema = json.loads(spade("schema").stdout)
    assert {"name", "model", "train", "optimizer"} <= set(schema["properties"])
    path = tmp_path / "schema.json"
    assert spade("schema", "--out", path).returncode == 0
    assert json.loads(path.read_text()) == schema


def test_a_character_beyond_the_terminal_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "schéma-❄.json"
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = spade("schema", "--out", path, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "\\u2744" in result.stdout


def test_an_interrupt_within_compiled_text_changes_no_exit_code(tmp_path: Path) -> None:
    """Importing a dataclass compiles text; Ctrl-C just there must not change how we end."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from launch.cli import forget_interrupts\n"
        "try:\n"
        "    exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "if sys.argv[1:]:\n"
        "    forget_interrupts()\n"
        "sys.exit(130)\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    codes = [
        subprocess.run([*command, *arguments], env=environment, check=False).returncode
        for arguments in ([], ["forget"])
    ]
    assert codes[1] == 130
    if codes[0] == 130:
        pytest.fail("this Python needs no forget_interrupts any more: remove it")
