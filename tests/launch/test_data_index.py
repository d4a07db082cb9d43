"""``spade data index`` from the command line."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import typer
from foreign_tars import END, header, write_tar
from typer.testing import CliRunner

from launch.commands import data_index


def run(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    application = typer.Typer()
    group = typer.Typer()
    data_index.register(group)
    application.add_typer(group, name="data")
    result = CliRunner().invoke(application, ["data", "index", *map(str, arguments)])
    return result.exit_code, result.output, result.exception


def test_tars_become_a_data_set(tmp_path: Path, prose_data: Path) -> None:
    members = {
        "a.json": json.dumps({"body": "first text"}).encode(),
        "a.jpg": b"x",
        "b.json": b"{}",
        "c.json": json.dumps({"body": "second text"}).encode(),
    }
    write_tar(tmp_path / "x.tar", members, tarfile.PAX_FORMAT)
    options = ("--tokenizer", prose_data / "tokenizer", "--text-member", "json")
    code, output, _ = run(tmp_path, *options, "--text-field", "body", "--processes", "2")
    assert code == 0, output
    assert "2 texts" in output
    assert "passed over: 1 .jpg" in output
    assert "left out: 1 texts (no text in field 'body')" in output
    assert "x.tar: b.json" in output
    code, output, _ = run(tmp_path, *options, "--text-field", "body", "--json")
    facts = json.loads(output)
    assert (code, facts["documents"], facts["tars"]) == (0, 2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "x.idx", "x.tar"]


def test_what_cannot_be_indexed_is_one_line(tmp_path: Path, prose_data: Path) -> None:
    (tmp_path / "x.tar").write_bytes(header(b"l.txt", b"0\0", b"2", link=b"/etc") + END)
    for location in (tmp_path, tmp_path / "missing", "pipe:touch x", "s3://bucket/data"):
        code, _, error = run(location, "--tokenizer", prose_data / "tokenizer")
        assert code == 1
        assert isinstance(error, ValueError)
        assert "\n" not in str(error)
