"""Files of images as rows of intensities from 0 to 255, with their classes.

Read are MNIST's idx files, CIFAR-10's binary version, numpy's ``.npz``, and the folders that the
pathfinder challenge is published in. Nothing is unpickled.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import FinetuneError

Pixels = NDArray[np.uint8]
Classes = NDArray[np.int64]

_IDX_NAME = re.compile(r"images?([-.])idx3-ubyte(\.gz)?$")
_IDX_UBYTE = 8
_CIFAR_SIDE = 32
_CIFAR_RECORD_BYTES = 1 + 3 * _CIFAR_SIDE**2
_BLOCK_BYTES = 1 << 20
_GRAY_MODES = ("1", "L")


@dataclass(frozen=True)
class Images:
    """What a file or folder holds."""

    pixels: Pixels
    """[N, L], each image row after row."""
    classes: Classes | None
    """[N], or None where they are not known."""
    left_out: int = 0
    """Images whose file is empty, as some of the published ones are."""


def read_images(path: Path) -> Images:
    """Read images; colours become gray, 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601).

    Args:
        path: ``…images-idx3-ubyte`` (``.gz`` or not) with ``…labels-idx1-ubyte`` beside it; a
            ``.bin`` file of CIFAR-10 or the folder of its ``data_batch_*.bin``; ``.npz`` with
            ``images`` uint8 [N, H, W] or [N, H, W, 3] and ``labels`` [N]; a folder with
            ``metadata/*.npy`` (lines of text) and the PNG files that they name.

    Raises:
        FinetuneError: It is none of these, or damaged.
        OSError: A file cannot be read.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".bin":
        return _read_cifar(path)
    if _IDX_NAME.search(path.name):
        return _read_mnist(path)
    raise FinetuneError(
        f"{path}: is neither images-idx3-ubyte, .bin of CIFAR-10, .npz nor a folder; rename or "
        "convert it"
    )


def _read_folder(folder: Path) -> Images:
    if (folder / "metadata").is_dir():
        return _read_pathfinder(folder)
    batches = sorted(folder.glob("data_batch_*.bin"))
    if not batches:
        raise FinetuneError(
            f"{folder}: holds neither metadata/ of pathfinder nor data_batch_*.bin of CIFAR-10; "
            "give the folder that does"
        )
    parts = [_read_cifar(batch) for batch in batches]
    classes = [part.classes for part in parts if part.classes is not None]
    return Images(np.concatenate([part.pixels for part in parts]), np.concatenate(classes))


def _read_mnist(path: Path) -> Images:
    pixels = _read_idx(path, dimensions=3)
    name = _IDX_NAME.sub(lambda found: f"labels{found[1]}idx1-ubyte{found[2] or ''}", path.name)
    labels = path.with_name(name)
    if not labels.exists():
        return Images(_flat(path, pixels), None)
    classes = _read_idx(labels, dimensions=1).astype(np.int64)
    return _matched(path, pixels, classes)


def _read_idx(path: Path, *, dimensions: int) -> Pixels:
    """Read an idx file of bytes.

    It begins with two zeros, the type and the number of dimensions, a byte each; their sizes
    follow, as big-endian 32-bit numbers, and then the values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4)
            if head != bytes([0, 0, _IDX_UBYTE, dimensions]):
                raise FinetuneError(
                    f"{path}: begins with {head.hex() or 'nothing'}, not "
                    f"0000{_IDX_UBYTE:02x}{dimensions:02x} as idx files of bytes with {dimensions} "
                    "dimensions do; download it again"
                )
            sizes = stream.read(4 * dimensions)
            shape = struct.unpack(f">{dimensions}I", sizes.ljust(4 * dimensions, b"\0"))
            data = _read_at_most(stream, math.prod(shape) + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FinetuneError(f"{path}: damaged gzip file ({error}); download it again") from error
    if len(sizes) < 4 * dimensions or len(data) != math.prod(shape):
        found = "more" if len(data) > math.prod(shape) else f"only {len(data):,}"
        raise FinetuneError(
            f"{path}: should hold {' x '.join(map(str, shape))} bytes and holds {found}; download "
            "it again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _read_at_most(stream: gzip.GzipFile | IO[bytes], most: int) -> bytes:
    """Read up to some bytes; memory follows what is there, not what a header claims."""
    blocks: list[bytes] = []
    left = most
    while left > 0 and (block := stream.read(min(left, _BLOCK_BYTES))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _read_cifar(path: Path) -> Images:
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % _CIFAR_RECORD_BYTES:
        raise FinetuneError(
            f"{path}: has {len(data):,} bytes, which is no multiple of {_CIFAR_RECORD_BYTES:,}, "
            "the records of CIFAR-10's binary version; download it again"
        )
    records = data.reshape(-1, _CIFAR_RECORD_BYTES)
    colours = records[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    pixels = _gray(np.moveaxis(colours, 1, -1))
    return Images(_flat(path, pixels), records[:, 0].astype(np.int64))


def _read_npz(path: Path) -> Images:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with loaded as archive:
            arrays = {name: archive[name] for name in ("images", "labels") if name in archive}
    except OSError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise _damaged_npz(path, error) from error
    except (RuntimeError, MemoryError, KeyError, struct.error) as error:
        raise _damaged_npz(path, error) from error
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or images.dtype != np.uint8:
        found = "none" if images is None else f"{images.dtype} {list(images.shape)}"
        raise FinetuneError(f"{path}: images are {found}; save uint8 [N, H, W] or [N, H, W, 3]")
    if images.ndim == 4 and images.shape[-1] == 3:
        images = _gray(images)
    if images.ndim != 3:
        raise FinetuneError(
            f"{path}: images are {list(images.shape)}; save uint8 [N, H, W] or [N, H, W, 3]"
        )
    if labels is None:
        return Images(_flat(path, images), None)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise FinetuneError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; save whole numbers [N]"
        )
    return _matched(path, images, labels.astype(np.int64))


def _damaged_npz(path: Path, error: Exception) -> FinetuneError:
    reason = " ".join(str(error).split())[:120]
    return FinetuneError(f"{path}: no .npz file of plain arrays ({reason}); save it again")


def _read_pathfinder(folder: Path) -> Images:
    """Read lines ``DIRECTORY FILE NUMBER LABEL …`` of the text files of ``metadata``."""
    open_png = _png_reader()
    pixels: list[Pixels] = []
    classes: list[int] = []
    left_out = 0
    for image, label in _pathfinder_lines(folder):
        if image.stat().st_size == 0:
            left_out += 1
            continue
        pixels.append(open_png(image))
        if pixels[-1].shape != pixels[0].shape:
            raise FinetuneError(
                f"{image}: is {pixels[-1].shape}, others are {pixels[0].shape}; keep one size"
            )
        classes.append(label)
    if not pixels:
        raise FinetuneError(f"{folder}/metadata: names no images; copy all of the folder")
    return Images(_flat(folder, np.stack(pixels)), np.array(classes), left_out)


def _pathfinder_lines(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield images with their labels, files in the order of their numbers."""
    paths = sorted((folder / "metadata").glob("*.npy"), key=lambda p: (len(p.stem), p.stem))
    for path in paths:
        # Called .npy, but text; true .npy files fail to be it.
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            cells = line.split()
            if not cells:
                continue
            if len(cells) < 4 or cells[3] not in ("0", "1"):
                raise FinetuneError(
                    f"{path}, line {number}: is not DIRECTORY FILE NUMBER LABEL …, with 0 or 1 as "
                    "label; copy the published file again"
                )
            inner = PurePosixPath(cells[0], cells[1])
            if inner.is_absolute() or ".." in inner.parts:
                raise FinetuneError(
                    f"{path}, line {number}: {inner} leads out of the folder; name images in it"
                )
            yield folder / inner, int(cells[3])


def _png_reader() -> Any:
    """Return what reads a PNG file into gray intensities [H, W]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise FinetuneError(
            "Pillow is not installed, which reads the PNG files of pathfinder; install it with "
            "pip install pillow, or save images and labels as .npz"
        ) from error

    def read(path: Path) -> Pixels:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.mode not in (*_GRAY_MODES, "RGB"):
                    raise ValueError(f"mode {image.mode}, not 8-bit gray or RGB")
                if image.mode == "RGB":
                    return _gray(np.asarray(image))
                return np.asarray(image.convert("L"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())[:120]
            raise FinetuneError(
                f"{path}: no readable PNG file ({reason}); copy it again"
            ) from error

    return read


def _gray(colours: Pixels) -> Pixels:
    """Intensities [..., H, W] of colours [..., H, W, 3], rounded."""
    weighted = (
        colours.astype(np.uint32) @ np.array([299, 587, 114], dtype=np.uint32) + 500
    ) // 1000
    return weighted.astype(np.uint8)


def _matched(path: Path, pixels: Pixels, classes: Classes) -> Images:
    if len(pixels) != len(classes):
        raise FinetuneError(
            f"{path}: {len(pixels):,} images and {len(classes):,} labels; give the files that "
            "belong together"
        )
    return Images(_flat(path, pixels), classes)


def _flat(path: Path, pixels: Pixels) -> Pixels:
    """[N, H, W] as [N, H * W]."""
    if 0 in pixels.shape:
        raise FinetuneError(f"{path}: holds no pixels; give a file with images")
    return pixels.reshape(len(pixels), -1)
