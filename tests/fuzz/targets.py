"""What is fuzzed: functions of bytes that may raise `DataError` and nothing else.

Each target takes any bytes. `DataError` with one line is an answer; any other exception, a hang, or
memory without bound is a finding. Seeds are sound inputs, from which a fuzzer starts.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_pipeline.errors import DamageError, DataError
from data_pipeline.files import canonical_json, parse_json_object
from data_pipeline.foreign.index import TextIndex
from data_pipeline.foreign.tars import FileSource, scan_tar
from data_pipeline.foreign.text_member import TextMember, UnusableText
from data_pipeline.reading.quarantine import QuarantineEntry
from data_pipeline.remote.locations import check_location, join_url, show_text, show_url
from data_pipeline.shards.manifest import FORMAT_VERSION, Manifest
from data_pipeline.shards.shard_index import BlockHasher, IndexBuilder, ShardIndex
from data_pipeline.shards.tar_format import (
    END_OF_TAR,
    document_key,
    member_header,
    metadata_json,
    npy_header,
    padding,
    scan_documents,
    tokens_from_npy,
)
from data_pipeline.tokenization.tokenizer import DocumentTokenizer, fingerprint_of

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}
# The same without the guard, which lets `DataError` through.
FUNCTIONS: dict[str, Target] = {}
SEEDS: dict[str, Callable[[], list[bytes]]] = {}
_DTYPE = np.dtype("<u2")
_STEM = "shard-000000"


def _target(seeds: Callable[[], list[bytes]]) -> Callable[[Target], Target]:
    def add(function: Target) -> Target:
        def guarded(data: bytes) -> None:
            try:
                function(data)
            except DataError as error:
                text = str(error)
                assert "\n" not in text, "a message has one line"
                assert len(text) < 5_000, f"a message of {len(text)} characters"

        name = function.__name__
        TARGETS[name], SEEDS[name], FUNCTIONS[name] = guarded, seeds, function
        return function

    return add


def sound_tar(documents: int = 3) -> bytes:
    """A shard of ours."""
    parts = []
    for position in range(documents):
        tokens = np.arange(position * 40 + 1, dtype=_DTYPE)
        key = document_key(_STEM, position)
        payload = npy_header(len(tokens), _DTYPE) + tokens.tobytes()
        metadata = metadata_json(f"name {position}")
        parts += [member_header(f"{key}.tokens.npy", len(payload)), payload, padding(len(payload))]
        parts += [member_header(f"{key}.json", len(metadata)), metadata, padding(len(metadata))]
    return b"".join([*parts, END_OF_TAR])


def sound_index() -> bytes:
    """An index of ours."""
    builder, hasher = IndexBuilder(_DTYPE), BlockHasher()
    hasher.update(sound_tar())
    for position in range(3):
        builder.add(512 * (1 + 4 * position), position * 40 + 1, position)
    return builder.finish(hasher).to_bytes()


def sound_manifest() -> dict[str, Any]:
    """A manifest of ours."""
    shard = {
        "file": "shard-000000.tar",
        "size_bytes": 10240,
        "documents": 3,
        "tokens": 123,
        "checksum": "0" * 32,
        "index_checksum": "1" * 32,
    }
    value = {
        "format_version": FORMAT_VERSION,
        "kind": "tokens",
        "dtype": "<u2",
        "vocab_size": 600,
        "piece_count": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tokenizer_fingerprint": "2" * 64,
        "documents": 3,
        "tokens": 123,
        "shards": [shard],
        "source": {"text_member": "txt", "text_field": "text"},
    }
    return {field.name: value[field.name] for field in dataclasses.fields(Manifest)}


def sound_text_manifest() -> dict[str, Any]:
    """A manifest of foreign tars."""
    manifest = sound_manifest() | {"kind": "text"}
    manifest["shards"] = [manifest["shards"][0] | {"file": "any.tar"}]
    return manifest


def sound_text_index() -> bytes:
    """An index of a foreign tar."""
    columns = [np.array(values, "<u8") for values in ((512, 2048), (600, 700), (9, 8), (1, 2))]
    return TextIndex(10240, "0" * 32, "1" * 32, *columns).to_bytes()


def foreign_tars() -> list[bytes]:
    """Sound tars as others write them."""
    import tarfile

    tars = []
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
            for name in ("a.txt", "a.json", "ä" * 40 + ".txt", "f/" * 60 + "b.txt"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 9, 1.5 if tar_format == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(b'{"t":"x"}'))
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        tars.append(buffer.getvalue())
    return tars


def with_right_checksums(data: bytes) -> bytes:
    """The same bytes, every block that looks like a header with the checksum it should have."""
    blocks = []
    for start in range(0, len(data), 512):
        block = data[start : start + 512]
        if len(block) == 512 and block[257:262] == b"ustar":
            blank = block[:148] + b" " * 8 + block[156:]
            block = block[:148] + b"%06o\0 " % sum(blank) + block[156:]
        blocks.append(block)
    return b"".join(blocks)


def _edited(value: dict[str, Any], data: bytes) -> dict[str, Any]:
    """A sound object with fields replaced as the data say, ten bytes for each."""
    choices: list[Any] = [None, True, -1, 0, 1.5, "", "x" * 40, [], {}, [[]], {"a": 1}, "../x.tar"]
    for start in range(0, len(data) - 9, 10):
        number = int.from_bytes(data[start + 2 : start + 10], "little", signed=True)
        new = choices[data[start + 1] % (2 * len(choices))] if _is_choice(data, start) else number
        holder = value
        names = sorted(value)
        if data[start] >= 128 and isinstance(value.get("shards"), list) and value["shards"]:
            holder = value["shards"][0]
            names = sorted(holder) if isinstance(holder, dict) else []
        if not names:
            continue
        name = names[data[start] % len(names)]
        if data[start + 1] == 255:
            holder.pop(name)
        else:
            holder[name] = new
    return value


def _is_choice(data: bytes, start: int) -> bool:
    return data[start + 1] % 24 < 12


@_target(lambda: [canonical_json(sound_manifest())])
def manifest(data: bytes) -> None:
    """The manifest as bytes."""
    value = parse_json_object(data, "manifest.json", "a manifest", "make it again")
    json.dumps(Manifest.from_dict(value).to_dict())


@_target(lambda: [b"", bytes(10), bytes(range(100)), b"\xff" * 40])
def manifest_fields(data: bytes) -> None:
    """A sound manifest with other fields."""
    assert Manifest.from_dict(_edited(sound_manifest(), data)).fingerprint


def _quarantine_entry() -> dict[str, Any]:
    damage = DamageError("why", shard_file="shard-000000.tar", ranges=((0, 5), (7, 9)))
    return QuarantineEntry("source", damage.shard_file, damage.ranges, str(damage)).to_json()


@_target(lambda: [canonical_json(sound_text_manifest())])
def text_manifest(data: bytes) -> None:
    """The manifest of foreign tars as bytes."""
    value = parse_json_object(data, "manifest.json", "a manifest", "make it again")
    TextMember.from_source(Manifest.from_dict(value).source)


@_target(lambda: [b"", bytes(10), bytes(range(100)), b"\xff" * 40])
def text_manifest_fields(data: bytes) -> None:
    """A sound manifest of foreign tars with other fields."""
    text_manifest(json.dumps(_edited(sound_text_manifest(), data)).encode())


@_target(lambda: [sound_index()])
def shard_index(data: bytes) -> None:
    """An index of ours."""
    index = ShardIndex.from_bytes(data)
    assert index.to_bytes() == data
    assert index.documents >= 0


@_target(lambda: [sound_text_index()])
def text_index(data: bytes) -> None:
    """An index of a foreign tar."""
    index = TextIndex.from_bytes(data)
    assert int(index.sizes_bytes.sum()) <= index.tar_bytes
    assert index.tokens >= 0


@_target(lambda: [sound_tar(), sound_tar(1), sound_tar(0)])
def own_tar(data: bytes) -> None:
    """A shard of ours: what is taken must be what the writer writes."""
    taken = 0
    for document in scan_documents(io.BytesIO(data), _STEM, len(data)):
        taken += len(document.payload)
        tokens_from_npy(document.payload, _DTYPE)
    assert taken <= len(data)


@_target(lambda: [sound_tar()])
def own_tar_checksums(data: bytes) -> None:
    """A shard of ours whose headers have right checksums."""
    own_tar(with_right_checksums(data))


@_target(foreign_tars)
def foreign_tar(data: bytes) -> None:
    """A tar of others."""
    end = 0
    for member in scan_tar(FileSource(io.BytesIO(data)), len(data), lambda name, size: size < 4096):
        assert member.offset_bytes >= end
        end = member.offset_bytes + member.size_bytes
        assert end <= len(data)
        assert not member.name.startswith("/")
        assert ".." not in member.name.split("/")


@_target(foreign_tars)
def foreign_tar_checksums(data: bytes) -> None:
    """A tar of others whose headers have right checksums."""
    foreign_tar(with_right_checksums(data))


@_target(lambda: [npy_header(5, _DTYPE) + bytes(10), npy_header(0, _DTYPE)])
def npy(data: bytes) -> None:
    """Content of a `.npy` member: only the one header that we write is taken."""
    for dtype in (np.dtype("<u2"), np.dtype("<u4")):
        tokens = tokens_from_npy(data, dtype)
        if tokens is not None:
            assert tokens.dtype == dtype
            assert npy_header(len(tokens), dtype) + tokens.tobytes() == data


@_target(lambda: [canonical_json(_quarantine_entry())])
def quarantine_entry(data: bytes) -> None:
    """What a checkpoint lists as damaged."""
    value = parse_json_object(data, "state.json", "a state", "make it again")
    assert QuarantineEntry.from_json(QuarantineEntry.from_json(value).to_json())


@_target(lambda: [b'{"text": "a"}', b"text", b'{"text": "\\ud800"}'])
def text_member(data: bytes) -> None:
    """Content of a text member."""
    for suffix in ("txt", "json"):
        try:
            text = TextMember(suffix=suffix).text_of(data)
        except UnusableText:
            continue
        assert text.strip()
        text.encode()


@_target(lambda: [b"s3://bucket/x", b"http://u:p@host/x?y", b"pipe:ls", b"a::b://c", b"x"])
def location(data: bytes) -> None:
    """A path or URL: what is taken has a scheme of ours, and no message shows a password."""
    text = data.decode("utf-8", "replace")
    show_text(text)
    show_url(text)
    place = check_location(text)
    if isinstance(place, str):
        assert "::" not in place
        assert join_url(place, "manifest.json").partition("?")[0].endswith("/manifest.json")


@cache
def _tokenizer_files() -> tuple[bytes, dict[str, Any]]:
    from data_pipeline.corpora.corpus import Document
    from data_pipeline.tokenization.tokenizer import train_tokenizer

    words = [f"word{number * 7919 % 1000} and {number}" for number in range(3000)]
    documents = [Document(name=str(part), text="\n".join(words)) for part in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(documents, vocab_size=400, sentinels=8, out=Path(folder))
        value = json.loads((Path(folder) / "tokenizer_manifest.json").read_bytes())
        return (Path(folder) / "spiece.model").read_bytes(), value


@_target(lambda: [canonical_json(_tokenizer_files()[1])])
def tokenizer_manifest(data: bytes) -> None:
    """The manifest of a tokenizer, beside a sound model."""
    value = parse_json_object(data, "tokenizer_manifest.json", "a manifest", "make it again")
    DocumentTokenizer(_tokenizer_files()[0], value)


@_target(lambda: [b"", bytes(10), bytes(range(100)), b"\xff" * 40])
def tokenizer_fields(data: bytes) -> None:
    """Other fields, and a fingerprint that fits them, as somebody with intent would write it."""
    model, sound = _tokenizer_files()
    value = _edited(dict(sound), data)
    if sound.keys() <= value.keys():
        value["fingerprint"] = fingerprint_of(model, value)
    DocumentTokenizer(model, value)


@_target(lambda: [_tokenizer_files()[0]])
def tokenizer_model(data: bytes) -> None:
    """Another model, and a fingerprint that fits it."""
    value = _tokenizer_files()[1]
    tokenizer = DocumentTokenizer(data, value | {"fingerprint": fingerprint_of(data, value)})
    ids = tokenizer.encode("word1 and 2\nünï \x00 文 </s> " + "x" * 50)
    tokenizer.decode(ids)


@_target(lambda: [b"", b"\x00\x00\x01", bytes(range(64))])
def stream_state(data: bytes) -> None:
    """The state of a stream through webdataset."""
    from data_pipeline.foreign.webdataset_stream import WebdatasetStream

    stream = _stream()
    state = _edited(stream.state_dict(), data)
    assert isinstance(stream, WebdatasetStream)
    stream.load_state_dict(state)
    assert xxhash.xxh3_64_hexdigest(canonical_json(stream.state_dict()))


@cache
def _stream() -> Any:
    from data_pipeline.foreign.webdataset_stream import WebdatasetStream

    folder = Path(tempfile.mkdtemp())
    (folder / "a.tar").write_bytes(END_OF_TAR)
    stream = WebdatasetStream(folder, DocumentTokenizer(*_tokenizer_files()), seed=0)
    (folder / "a.tar").unlink()
    folder.rmdir()
    return stream
