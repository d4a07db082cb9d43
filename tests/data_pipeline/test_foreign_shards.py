"""Tars made by others as data sets: indexed, read, refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import webdataset
from foreign_tars import END, header, hostile_tars, member, padded, pax, write_tar
from foreign_texts import direct, read_documents, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.foreign.dataset import index_dataset
from data_pipeline.foreign.tars import MAXIMUM_EXTENSION_BYTES, FileSource, scan_tar
from data_pipeline.foreign.text_member import MAXIMUM_TEXT_BYTES, TextMember, UnusableText
from data_pipeline.progress import Progress
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

LONG = "folder/" * 30 + "a-name-that-is-longer-than-any-field-of-a-header"


@pytest.fixture(scope="session")
def tokenizer_folder(prose_data: Path) -> Path:
    return prose_data / "tokenizer"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(tokenizer_folder)


def write_webdataset(path: Path, documents: list[str], suffix: str, **more: Any) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for number, text in enumerate(documents):
            value = text if suffix == "txt" else {"text": text, "id": number}
            writer.write({"__key__": f"folder/sample{number:05d}", suffix: value} | more)


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_ids_equal_those_of_the_documents(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: DocumentTokenizer, suffix: str
) -> None:
    """Tars by webdataset's own writer, which carry a PAX header before every member."""
    documents = texts(60)
    for part in range(3):
        write_webdataset(
            tmp_path / f"part_{part}.of-3.tar",
            documents[part * 20 : part * 20 + 20],
            suffix,
            cls=b"7",
            jpg=b"\xff\xd8 no picture",
        )
    before = {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    text_member = TextMember(suffix=suffix)
    summary = index_dataset(tmp_path, tokenizer_folder, text_member)
    assert (summary.tars, summary.documents) == (3, 60)
    assert summary.passed_over == {"cls": 60, "jpg": 60}
    expected = direct(tokenizer, documents)
    assert summary.tokens == sum(map(len, expected))
    assert read_documents(tmp_path, tokenizer, text_member) == expected
    assert {path: path.read_bytes() for path in tmp_path.glob("*.tar")} == before


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_formats_of_tarfile(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: DocumentTokenizer, tar_format: int
) -> None:
    documents = texts(5)
    names = ["a", "b.c/d", "ä-ö" if tar_format != tarfile.USTAR_FORMAT else "x", "e"]
    names.append(LONG if tar_format != tarfile.USTAR_FORMAT else "f/" * 60 + "g")
    members = {
        f"{name}.TXT": text.encode() for name, text in zip(names, documents, strict=True)
    } | {"__meta__": b"passed over", "noname": b"", ".txt": b"no key"}
    write_tar(tmp_path / "x.tar", members, tar_format)
    summary = index_dataset(tmp_path, tokenizer_folder)
    assert sum(summary.passed_over.values()) == 3
    assert read_documents(tmp_path, tokenizer, TextMember()) == direct(tokenizer, documents)


@pytest.mark.parametrize("tar_format", ["ustar", "gnu", "oldgnu", "posix", "v7"])
def test_formats_of_gnu_tar(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: DocumentTokenizer, tar_format: str
) -> None:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    documents = texts(20)
    long = LONG if tar_format in ("gnu", "oldgnu", "posix") else "folder/name"
    for number, text in enumerate(documents):
        path = tmp_path / "files" / f"{long}{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "data").mkdir()
    subprocess.run(
        ["tar", f"--format={tar_format}", "--sort=name", "-cf", tmp_path / "data" / "x.tar", "."],
        cwd=tmp_path / "files",
        check=True,
    )
    index_dataset(tmp_path / "data", tokenizer_folder)
    found = read_documents(tmp_path / "data", tokenizer, TextMember())
    assert found == direct(tokenizer, documents)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z/äß]{1,150}", fullmatch=True).filter(
            lambda name: not name.startswith("/") and not name.endswith("/")
        ),
        st.binary(max_size=2000),
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(max_examples=60)
def test_members_are_those_of_tarfile(members: dict[str, bytes], tar_format: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 0.5 if tar_format == tarfile.PAX_FORMAT else 5
            tar.addfile(info, io.BytesIO(data))
    size_bytes = buffer.tell()
    buffer.seek(0)
    found = list(scan_tar(FileSource(buffer), size_bytes, lambda name, size: True))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert [(item.name, item.offset_bytes, item.content) for item in found] == [
            (info.name, info.offset_data, tar.extractfile(info).read())  # type: ignore[union-attr]
            for info in tar
        ]


def test_old_and_large_headers_are_understood() -> None:
    data = (
        header(b"v7.txt", b"         5 \0", b"\0", magic=bytes(8))
        + padded(b"hello")
        + header(b"gnu.txt", b"\x80" + bytes(10) + b"\x05", magic=b"ustar  \0", prefix=b"times")
        + padded(b"hello")
        + header(b"folder/", b"0\0", b"5")
        + pax({"comment": "x"}, b"g")
        + pax({"size": "5", "mtime": "1.5", "path": "ä.txt"})
        + header(b"x", b"0\0")
        + padded(b"hello")
        + END * 10
    )
    found = list(scan_tar(FileSource(io.BytesIO(data)), len(data), lambda name, size: True))
    assert [item.name for item in found] == ["v7.txt", "gnu.txt", "ä.txt"]
    assert {item.content for item in found} == {b"hello"}


@pytest.mark.parametrize("name", hostile_tars())
def test_hostile_tars_are_refused_in_one_line(
    name: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x.tar").write_bytes(hostile_tars()[name])
    with pytest.raises(DataError) as caught:
        index_dataset(data, tokenizer_folder)
    assert str(data / "x.tar") in str(caught.value) or "no member .txt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "x.tar"]


def test_texts_that_cannot_be_used_are_counted_never_fatal(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: DocumentTokenizer
) -> None:
    members = {
        "a.json": b'{"text": "kept"}',
        "b.json": b'{"text": 5}',
        "c.json": b"no json",
        "d.json": b'{"text": "\\ud800"}',
        "e.json": b"[" * 100_000,
        "f.json": b"\xff",
        "g.json": b'{"text": " \\n"}',
        "h.json": b"1" * 10_000,
        "i.json": b'["text"]',
    }
    write_tar(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    write_tar(tmp_path / "y.tar", {"a.json": b"{}"}, tarfile.USTAR_FORMAT)
    summary = index_dataset(tmp_path, tokenizer_folder, TextMember(suffix="json"))
    assert summary.documents == 1
    assert sum(summary.left_out.values()) == 9
    assert summary.left_out["empty"] == 1
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["source"]["left_out"] == summary.left_out
    assert manifest["source"]["tars_without_text"] == 1
    assert read_documents(tmp_path, tokenizer, TextMember(suffix="json")) == direct(
        tokenizer, ["kept"]
    )


def test_a_text_beyond_the_bound_is_never_read(tmp_path: Path, tokenizer_folder: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(member(b"a.txt", b"small"))
        file.write(header(b"b.txt", b"%011o\0" % (MAXIMUM_TEXT_BYTES + 512)))
        file.seek(MAXIMUM_TEXT_BYTES + 512, os.SEEK_CUR)
        file.write(END)
    summary = index_dataset(tmp_path, tokenizer_folder)
    assert (summary.documents, sum(summary.left_out.values())) == (1, 1)


def test_headers_never_allocate_much() -> None:
    data = header(b"x", b"%011o\0" % (MAXIMUM_EXTENSION_BYTES + 1), b"x") + bytes(2**20) + END
    reads: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size or 0)
            return super().read(size)

    with pytest.raises(DataError, match="beyond all measure"):
        list(scan_tar(FileSource(Counting(data)), len(data), lambda name, size: True))
    assert max(reads) <= 2**20


def test_processes_and_interruptions_change_no_byte(tmp_path: Path, tokenizer_folder: Path) -> None:
    documents = texts(1200)
    for name in ("one", "two", "killed"):
        (tmp_path / name).mkdir()
        for part in range(4):
            part_of = documents[part * 300 : part * 300 + 300]
            write_tar(
                tmp_path / name / f"p{part}.tar",
                {f"{n}.txt": text.encode() for n, text in enumerate(part_of)},
                tarfile.USTAR_FORMAT,
            )
    seen: list[Progress] = []
    index_dataset(tmp_path / "one", tokenizer_folder, progress=seen.append)
    assert seen[-1].done == seen[-1].total
    index_dataset(tmp_path / "two", tokenizer_folder, processes=2)
    program = (
        "import sys; from pathlib import Path; from data_pipeline.foreign.dataset import *; "
        "index_dataset(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "killed"), str(tokenizer_folder)]
    )
    while not list((tmp_path / "killed").glob("*.idx")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.idx")}
    index_dataset(tmp_path / "killed", tokenizer_folder)
    assert kept
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in kept.items())

    def content(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert content("one") == content("two") == content("killed")


def test_an_index_is_made_anew_when_tar_options_or_index_change(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: DocumentTokenizer
) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"a.txt": b"first text", "a.json": b'{"text": "other"}'}, 0)
    index_dataset(tmp_path, tokenizer_folder)
    first = (tmp_path / "x.idx").read_bytes()
    index_dataset(tmp_path, tokenizer_folder, TextMember(suffix="json"))
    assert (tmp_path / "x.idx").read_bytes() != first
    index_dataset(tmp_path, tokenizer_folder)
    assert (tmp_path / "x.idx").read_bytes() == first
    (tmp_path / "x.idx").write_bytes(first[:-1])
    index_dataset(tmp_path, tokenizer_folder)
    assert (tmp_path / "x.idx").read_bytes() == first
    # A text of the same length, so that only its checksum tells.
    write_tar(path, {"a.txt": b"other text", "a.json": b'{"text": "other"}'}, 0)
    index_dataset(tmp_path, tokenizer_folder)
    assert read_documents(tmp_path, tokenizer, TextMember()) == direct(tokenizer, ["other text"])


def test_what_is_in_the_way_is_not_overwritten(
    tmp_path: Path, tokenizer_folder: Path, prose_data: Path
) -> None:
    write_tar(tmp_path / "x.tar", {"a.txt": b"text"}, tarfile.USTAR_FORMAT)
    (tmp_path / "x.idx").write_text("an index of another program")
    with pytest.raises(DataError, match="is in the way"):
        index_dataset(tmp_path, tokenizer_folder)
    (tmp_path / "x.idx").unlink()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="belongs to a data set of another kind"):
        index_dataset(tmp_path, tokenizer_folder)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "a b.tar").write_bytes(END)
    with pytest.raises(DataError, match="rename it"):
        index_dataset(tmp_path, tokenizer_folder)


def test_folders_without_texts_are_one_line(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file that ends with \.tar"):
        index_dataset(tmp_path, tokenizer_folder)
    write_tar(tmp_path / "x.tar", {"a.jpg": b"x", "b.jpg": b"x"}, tarfile.USTAR_FORMAT)
    with pytest.raises(DataError, match=r"found: 2 \.jpg\); name another with --text-member"):
        index_dataset(tmp_path, tokenizer_folder)
    with pytest.raises(DataError, match="only a folder of this machine"):
        index_dataset("s3://bucket/data", tokenizer_folder)
    with pytest.raises(DataError, match="no suffix"):
        TextMember(suffix="../txt")


@given(st.binary(max_size=400))
def test_any_content_gives_a_text_or_a_reason(content: bytes) -> None:
    for suffix in ("txt", "json"):
        try:
            text = TextMember(suffix=suffix).text_of(content)
        except UnusableText:
            continue
        text.encode()
        assert text.strip()
