"""The files of a checkpoint: what other programs read, and what no header can do to us."""

from __future__ import annotations

import json
import os

import hypothesis.strategies as st
import pytest
import torch
import xxhash
from hypothesis import given
from safetensors.torch import load_file, save_file

from pretrain.checkpoints.checkpoint_format import file_checksum
from pretrain.checkpoints.tensor_file import TensorFile, write_tensors, write_text
from pretrain.errors import CheckpointError

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
TYPES += [torch.int16, torch.int8, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    """A tensor of any type and small shape, scalars and empty ones too."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    numbers = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(draw(SEEDS)))
    return numbers.to(draw(st.sampled_from(TYPES)))


SEEDS = st.integers(0, 1000)
NAMED = st.dictionaries(st.text("abc./", min_size=1, max_size=5), tensors(), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(values=NAMED, words=st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2))
def test_what_is_written_is_read_here_and_by_the_formats_own_library(folder, values, words):
    path = folder / "file"
    path.unlink(missing_ok=True)
    written = write_tensors(path, values, words)
    assert written.size_bytes == path.stat().st_size
    assert written.checksum == xxhash.xxh3_128(path.read_bytes()).hexdigest() == file_checksum(path)
    file = TensorFile(path)
    assert file.metadata == words
    for found in ({name: file.read(name) for name in file.names}, load_file(path)):
        assert found.keys() == values.keys()
        for name, value in values.items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert torch.equal(found[name], value)


@given(values=NAMED)
def test_a_file_of_the_formats_own_library_is_read(folder, values):
    save_file(values, folder / "foreign")
    file = TensorFile(folder / "foreign")
    assert all(torch.equal(file.read(name), value) for name, value in values.items())


def test_views_are_written_as_what_they_show(folder):
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(folder / "views", {"column": whole[:, 1], "turned": whole.t()}, {})
    file = TensorFile(folder / "views")
    assert torch.equal(file.read("column"), whole[:, 1])
    assert torch.equal(file.read("turned"), whole.t())
    part = torch.empty(3)
    file.read_into("turned", 4, part)
    assert torch.equal(part, whole.t().reshape(-1)[4:7])


def test_a_file_that_is_there_is_never_written_over(folder):
    write_text(folder / "text", "first")
    with pytest.raises(FileExistsError):
        write_text(folder / "text", "second")
    assert (folder / "text").read_text() == "first"


def with_header(path, header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 1}',
        b"9" * 5000,
        [],
        {"__metadata__": 3},
        {"a": 3},
        {"a": {}},
        {"a": FLOATS | {"dtype": "F99"}},
        {"a": FLOATS | {"dtype": []}},
        {"a": FLOATS | {"shape": [3]}},
        {"a": FLOATS | {"shape": [-2]}},
        {"a": FLOATS | {"shape": [2.0]}},
        {"a": FLOATS | {"shape": [True, 2]}},
        {"a": FLOATS | {"shape": [1] * 1000 + [2]}},
        {"a": FLOATS | {"shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}},
        {"a": FLOATS | {"data_offsets": [0]}},
        {"a": FLOATS | {"data_offsets": [0, 8, 9]}},
        {"a": FLOATS | {"data_offsets": [8, 16]}},
        {"a": FLOATS | {"data_offsets": [-8, 0]}},
        {"a": FLOATS | {"shape": [1], "data_offsets": [0, 4]}},
        {"a": FLOATS, "b": FLOATS},
        {"a": FLOATS, "b\n\ud800": FLOATS | {"data_offsets": [4, 12]}},
    ],
)
def test_a_header_that_lies_is_refused_in_one_line(folder, header):
    with pytest.raises(CheckpointError) as caught:
        TensorFile(with_header(folder / "hostile", header))
    assert str(caught.value).startswith(str(folder / "hostile"))
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"\xff" * 64])
def test_a_length_that_cannot_be_is_refused_before_memory_is_taken(folder, content):
    (folder / "short").write_bytes(content)
    with pytest.raises(CheckpointError, match="header cannot be"):
        TensorFile(folder / "short")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorFile(folder / "missing")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    header=st.binary(max_size=60)
    | JSON
    | st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BF16", "X"]),
                "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
                "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | JSON,
            }
        ),
        max_size=3,
    ),
    data=st.binary(max_size=24),
)
def test_any_header_gives_the_numbers_it_describes_or_one_error(folder, header, data):
    try:
        file = TensorFile(with_header(folder / "fuzzed", header, data))
        read = {name: file.read(name) for name in file.names}
    except CheckpointError as error:
        said, count = str(error), len(data)
    else:
        said, count = "", sum(tensor.nbytes for tensor in read.values())
    assert len(said.splitlines()) <= 1
    assert count == len(data), "every byte is described once"


def test_a_file_that_shrinks_while_it_is_open_is_an_error(folder):
    write_tensors(folder / "shrinks", {"a": torch.ones(1000)}, {})
    file = TensorFile(folder / "shrinks")
    os.truncate(folder / "shrinks", 500)
    with pytest.raises(CheckpointError, match="ends inside a"):
        file.read("a")
