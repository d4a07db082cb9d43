"""The published encoder-decoder, msrlongt5 of microsoft's mt-dnn repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_model.huggingface.importing.folder import WrittenFolder, check_absent, write_folder
from spade_model.huggingface.importing.published_files import (
    PublishedFileError,
    check_converted,
    read_json_object,
    read_published_weights,
    sha256_of,
)
from spade_model.published import published_config, seq2seq_state
from spade_model.published_shapes import TIED, UNUSED, published_shapes
from spade_model.seq2seq import SpadeForSeq2Seq


@dataclass(frozen=True)
class MsrLongT5Report(WrittenFolder):
    """What was written of a published encoder-decoder."""

    ignored: tuple[str, ...]
    """Tensors of the file that repeat others or that the published code does not use either."""
    kernel_lengths: tuple[int, ...]
    """For each state-space layer, the length L whose ``C~ = C (I - A^L)`` was undone; 0: none."""


def import_msrlongt5(weights: Path, config: Path, out: Path) -> MsrLongT5Report:
    """Translate a published encoder-decoder into a Hugging Face folder.

    There is no tokenizer in it: the published checkpoints bring theirs.

    Args:
        weights: A safetensors file with the names of the published state dict.
        config: The published `config.json`.
        out: Where to write: absent or an empty folder.

    Raises:
        PublishedFileError: A file cannot be read or does not fit the other, `out` is taken, the
            disk refuses, or the written folder differs from what was read.
    """
    check_absent(out)
    described = _read_config(config)
    try:
        ours = published_config(described)
    except (TypeError, ValueError) as error:
        raise PublishedFileError(f"{config}: {error}") from error
    shapes = published_shapes(ours)
    same = dict.fromkeys(TIED, "shared.weight")
    published, ignored = read_published_weights(weights, shapes, same=same, unused=UNUSED)
    plain = SpadeForSeq2Seq(ours)
    state = seq2seq_state(published, ours)
    check_converted(weights, state)
    plain.load_state_dict(state)
    lengths = tuple(int(x) for name, x in published.items() if name.endswith(".kernel.L"))
    provenance = {
        "source": "msrlongt5",
        "weights_sha256": sha256_of(weights),
        "config_sha256": sha256_of(config),
        "published_config": described,
        "ignored": ignored,
        "kernel_lengths": lengths,
    }
    written = write_folder(plain, out, provenance)
    return MsrLongT5Report(**vars(written), ignored=tuple(ignored), kernel_lengths=lengths)


def _read_config(path: Path) -> dict[str, object]:
    content = read_json_object(path)
    if content.get("model_type", "msrlongt5") != "msrlongt5":
        raise PublishedFileError(
            f"{path}: model_type is {content['model_type']!r} and not 'msrlongt5'; give the "
            "configuration of a published SPADE model"
        )
    if content.get("tie_word_embeddings") is False:
        raise PublishedFileError(
            f"{path}: tie_word_embeddings is false, but SPADE's output head is the embedding; only "
            "tied checkpoints can be imported"
        )
    if content.get("s4_channels", 1) != 1:
        raise PublishedFileError(
            f"{path}: s4_channels is {content['s4_channels']!r}; the published layers run with 1"
        )
    return content
