"""Files of Long Range Arena's tasks: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from transformers import ByT5Tokenizer

from finetune.classification.tasks import Task
from finetune.errors import FinetuneError
from finetune.long_range_arena.data import Part, Reader, SequenceRows, find_classes
from finetune.long_range_arena.images import read_images
from finetune.long_range_arena.vocabulary import (
    END_ID,
    FIRST_ID,
    cut,
    listops_ids,
    pixel_ids,
    text_ids,
    text_of,
)

ANY_FOLDER = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANCE = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    """The bytes of an idx file."""
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_mnist(folder: Path, rows: int, *, packed: bool) -> tuple[Path, np.ndarray, np.ndarray]:
    images = CHANCE.integers(0, 256, (rows, 4, 5), dtype=np.uint8)
    labels = CHANCE.integers(0, 10, rows)
    end = ".gz" if packed else ""
    pack = gzip.compress if packed else bytes
    path = folder / f"train-images-idx3-ubyte{end}"
    path.write_bytes(pack(idx(images)))
    (folder / f"train-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    return path, images, labels


def complaint_about(path: Path) -> str:
    """What is said of a file that cannot be read; one line that names it."""
    with pytest.raises(FinetuneError) as caught:
        read_images(path)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400 + 2 * len(str(path))
    return said


# Texts


@settings(max_examples=40, deadline=None)
@given(text=st.text(), most=st.integers(2, 40))
@example(text="a</s><pad>\x00ü", most=40)
def test_texts_are_bytes_and_come_back(text: str, most: int) -> None:
    ids = text_ids(text)
    written = text.encode("utf-8", errors="replace")
    assert text_of(ids) == written.decode()
    assert ids.tolist() == [FIRST_ID + byte for byte in written] + [END_ID]
    shorter = cut(ids, most)
    assert len(shorter) == min(most, len(ids))
    assert shorter[-1] == END_ID
    assert shorter[:-1].tolist() == ids[: len(shorter) - 1].tolist()


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=2))
def test_ids_are_those_of_the_tokenizer_that_is_saved(texts: list[str]) -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.split_special_tokens = True
    ours = np.concatenate([text_ids(text) for text in texts]).tolist()
    assert tokenizer(*texts).input_ids == ours


def test_tables_of_all_kinds_become_rows(tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    rows = [{"text": "short", "label": 10}, {"text": "läng" * 9, "label": 9}]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = Reader("text", 20, Task(("text",), "label")).read(Part(text), labelled=True)
    assert (len(raw), raw.cut_rows, raw.labels) == (2, 1, ["10", "9"])
    assert raw.ends.tolist() == [6, 26]
    assert text_of(raw.ids[:6]) == "short"
    assert find_classes(raw) == ("9", "10"), "numbers by their size"
    pairs = tmp_path / "new_aan_pairs.train.tsv"
    pairs.write_text("1.0\t7\t8\tone\ttwo\n0.0\t7\t9\tone\tthree\n")
    names = ("label", "id1", "id2", "text1", "text2")
    table = Task(("text1", "text2"), "label", columns=names)
    raw = Reader("retrieval", 5, table).read(Part(pairs), labelled=True)
    assert raw.ids[:8].tolist() == [*text_ids("one"), *text_ids("two")]
    assert raw.cut_rows == 1, "each text is cut for itself"
    assert raw.ends.tolist() == [8, 17]
    # The published file groups by parentheses; ours does not.
    listops = tmp_path / "basic_train.tsv"
    listops.write_text("Source\tTarget\n( ( ( [MAX 4 ) 3 ) ] )\t4\n[MAX 4 3 ]\t4\n[SM 1 1 ]\t2\n")
    raw = Reader("listops", 2000, Task(("Source",), "Target")).read(Part(listops), labelled=True)
    assert raw.ends.tolist() == [4, 8, 12]
    assert raw.ids[:4].tolist() == raw.ids[4:8].tolist() == [14, 7, 6, 17]
    assert find_classes(raw) == ("2", "4")
    with pytest.raises(FinetuneError, match=r"here: '\[AVG' is no word of ListOps; known are 0 1"):
        listops_ids("[AVG 1 2 ]", "here")
    listops.write_text("Source\tTarget\n( )\t4\n")
    with pytest.raises(FinetuneError, match="line 2: holds no words"):
        Reader("listops", 20, Task(("Source",), "Target")).read(Part(listops), labelled=True)


# Parts of files


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 10_000),
    bounds=st.lists(
        st.one_of(st.integers(0, 100).map("{}%".format), st.integers(0, 11_000).map(str))
    ),
)
def test_parts_that_meet_share_no_row_and_leave_none_out(rows: int, bounds: list[str]) -> None:
    def place(bound: str) -> int:
        return rows * int(bound[:-1]) // 100 if "%" in bound else min(int(bound), rows)

    ordered = ["", *sorted(bounds, key=place), ""]
    covered = []
    for begin, end in itertools.pairwise(ordered):
        part = Part.parse(Path(f"a[b]/c[{begin}:{end}]"))
        assert part == Part(Path("a[b]/c"), begin, end)
        if place(begin or "0%") < place(end or "100%"):
            covered.extend(range(*part.bounds(rows)))
            continue
        with pytest.raises(FinetuneError, match="has no rows"):
            part.bounds(rows)
    assert covered == list(range(rows))


def test_a_file_of_that_name_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "rows[1:2]"
    assert Part.parse(path) == Part(tmp_path / "rows", "1", "2")
    path.touch()
    assert Part.parse(path) == Part(path)
    assert Part.parse(Path("rows[all]")) == Part(Path("rows[all]"))
    for wrong in ("rows[101%:]", "rows[:%]"):
        with pytest.raises(FinetuneError, match="use one from 0% to 100%"):
            Part.parse(Path(wrong))


def test_rows_of_a_part_are_those_of_the_whole(tmp_path: Path) -> None:
    path, images, labels = write_mnist(tmp_path, 30, packed=True)
    reader = Reader("image", 100, None)
    whole = reader.read(Part(path), labelled=True)
    classes = find_classes(whole)
    part = SequenceRows(reader.read(Part(path, "10%", "20"), labelled=True), classes)
    assert len(part) == 17
    for index in range(17):
        row = part[index]
        assert row["input_ids"].tolist() == (images[index + 3].reshape(-1) + 3.0).tolist()
        assert classes[row["labels"]] == str(labels[index + 3])
    with pytest.raises(FinetuneError, match="is in no training row; those have"):
        SequenceRows(whole, classes[:1])
    with pytest.raises(FinetuneError, match="images have 20 pixels"):
        Reader("image", 19, None).read(Part(path), labelled=True)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    unlabelled = Reader("image", 100, None)
    assert unlabelled.read(Part(path), labelled=False).labels is None
    with pytest.raises(FinetuneError, match="has no labels; add the file of labels"):
        unlabelled.read(Part(path), labelled=True)


# Images


@ANY_FOLDER
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)), packed=st.booleans()
)
def test_idx_files_are_read(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> None:
    images = CHANCE.integers(0, 256, shape, dtype=np.uint8)
    labels = CHANCE.integers(0, 256, shape[0])
    end, pack = (".gz", gzip.compress) if packed else ("", bytes)
    path = tmp_path / f"t10k-images.idx3-ubyte{end}"
    path.write_bytes(pack(idx(images)))
    (tmp_path / f"t10k-labels.idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    found = read_images(path)
    assert found.pixels.tolist() == images.reshape(shape[0], -1).tolist()
    assert found.classes is not None
    assert found.classes.tolist() == labels.tolist()
    assert pixel_ids(found.pixels).max() <= FIRST_ID + 255


@ANY_FOLDER
@given(data=st.data())
def test_damaged_idx_files_are_one_line(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, longer, of another type, claiming what is not there, or packed and cut."""
    whole = idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    packed = data.draw(st.booleans(), label="packed")
    path = tmp_path / f"images-idx3-ubyte{'.gz' if packed else ''}"
    kind = data.draw(st.sampled_from(["cut", "longer", "header"]), label="kind")
    if kind == "header":
        place = data.draw(st.integers(0, 15), label="place")
        byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[place]), label="byte")
        broken = whole[:place] + bytes([byte]) + whole[place + 1 :]
    elif kind == "cut":
        broken = whole[: data.draw(st.integers(0, len(whole) - 1), label="length")]
    else:
        broken = whole + data.draw(st.binary(min_size=1, max_size=9), label="more")
    path.write_bytes(gzip.compress(broken) if packed else broken)
    assert str(path) in complaint_about(path)
    if packed:
        compressed = gzip.compress(whole, mtime=0)
        path.write_bytes(compressed[: data.draw(st.integers(1, len(compressed) - 1))])
        assert str(path) in complaint_about(path)


@ANY_FOLDER
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("x-images-idx3-ubyte", "x-images-idx3-ubyte.gz", "x.npz", "x.bin"):
        (tmp_path / name).write_bytes(content)
        assert str(tmp_path / name) in complaint_about(tmp_path / name)


def test_npz_files_are_read_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    colours = CHANCE.integers(0, 256, (4, 3, 2, 3), dtype=np.uint8)
    np.savez_compressed(path, images=colours, labels=np.array([0, 1, 2, 1]))
    found = read_images(path)
    exact = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found.pixels.reshape(4, 3, 2) - exact).max() <= 0.5 + 1e-9
    assert found.classes is not None
    assert found.classes.tolist() == [0, 1, 2, 1]
    gray = colours[..., 0]
    np.savez(path, images=gray)
    assert read_images(path).pixels.tolist() == gray.reshape(4, 6).tolist()
    assert read_images(path).classes is None

    class Touches:
        """Leaves a file behind where it is unpickled."""

        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "unpickled",))

    for arrays, complaint in (
        ({"images": np.array([Touches()], dtype=object)}, "no .npz file of plain arrays"),
        ({"images": gray, "labels": np.array([Touches()], dtype=object)}, "plain arrays"),
        ({"x": gray}, "images are none; save uint8"),
        ({"images": gray / 255}, r"images are float64 [4, 3, 2]; save uint8"),
        ({"images": gray[0]}, r"images are [3, 2]"),
        ({"images": gray[:0]}, "holds no pixels"),
        ({"images": gray, "labels": np.ones(3, dtype=int)}, "4 images and 3 labels"),
        ({"images": gray, "labels": np.ones(4)}, "labels are float64"),
    ):
        np.savez(path, **arrays)
        assert complaint in complaint_about(path)
    with path.open("wb") as stream:  # a single array, as np.save writes it
        np.save(stream, gray)
    assert "a single array" in complaint_about(path)
    np.savez(path, images=gray)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        complaint_about(path)
    # A header that claims more than there is.
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 10)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", head.getvalue())
    complaint_about(path)
    assert not (tmp_path / "unpickled").exists()


def test_the_binary_version_of_cifar_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batches = []
    for number in (1, 2):
        record = CHANCE.integers(0, 256, (3, 3073), dtype=np.uint8)
        record[:, 0] = [number, 0, 9]
        (folder / f"data_batch_{number}.bin").write_bytes(record.tobytes())
        batches.append(record)
    record = np.concatenate(batches)
    found = read_images(folder)
    assert found.classes is not None
    assert found.classes.tolist() == [1, 0, 9, 2, 0, 9]
    red, green, blue = record[:, 1:1025], record[:, 1025:2049], record[:, 2049:]
    exact = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.abs(found.pixels - exact).max() <= 0.5 + 1e-9
    path = folder / "data_batch_1.bin"
    assert read_images(path).pixels.tolist() == found.pixels[:3].tolist()
    path.write_bytes(path.read_bytes()[:-1])
    assert "no multiple of 3,073" in complaint_about(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither metadata/ of pathfinder nor data_batch" in complaint_about(empty)
    assert "rename or convert it" in complaint_about(tmp_path / "image.jpeg")


def write_pathfinder(folder: Path) -> tuple[Path, np.ndarray]:
    """Two files of metadata with three images each, in the published layout."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    images = CHANCE.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    (folder / "metadata").mkdir(parents=True)
    for group in range(2):
        # 10 comes after 9, though not in the alphabet.
        name = ("9", "10")[group]
        (folder / "imgs" / name).mkdir(parents=True)
        lines = []
        for number in range(3):
            path = f"imgs/{name} sample_{number}.png"
            image.fromarray(images[3 * group + number]).save(folder / path.replace(" ", "/"))
            lines.append(f"{path} {number} {(group + number) % 2} 1.8 6 2.0 14 4\n")
        (folder / "metadata" / f"{name}.npy").write_text("".join(lines))
    return folder, images


def test_pathfinder_is_read_as_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images = write_pathfinder(tmp_path / "curv_contour_length_14")
    found = read_images(folder)
    assert found.pixels.tolist() == images.reshape(6, 64).tolist()
    assert found.classes is not None
    assert found.classes.tolist() == [0, 1, 0, 1, 0, 1]
    damaged = folder / "imgs" / "9" / "sample_1.png"
    damaged.write_bytes(b"")
    found = read_images(folder)
    assert (len(found.pixels), found.left_out) == (5, 1)
    damaged.write_bytes(b"GIF89a")
    assert f"{damaged}: no readable PNG file" in complaint_about(folder)
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"sample_1\.png"):
        read_images(folder)
    metadata = folder / "metadata" / "9.npy"
    for line, complaint in (
        ("imgs/9 sample_0.png 0 2", "line 1: is not DIRECTORY FILE NUMBER LABEL"),
        ("imgs/9", "line 1: is not DIRECTORY"),
        ("../imgs x.png 0 1", "leads out of the folder"),
        ("/imgs x.png 0 1", "leads out of the folder"),
    ):
        metadata.write_text(line + "\n")
        assert complaint in complaint_about(folder)
    metadata.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}\ncos\nsystem\n")
    assert "line 1: is not DIRECTORY" in complaint_about(folder)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install pillow, or save images and labels as .npz" in complaint_about(folder)
