"""From a published SPADE checkpoint to a folder that `transformers` loads with our classes."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from spade_model.config import SpadeConfig
from spade_model.huggingface.published_files import (
    PublishedFileError,
    read_published_config,
    read_published_weights,
    sha256_of,
)
from spade_model.huggingface.saving import save_seq2seq
from spade_model.published import published_config, seq2seq_state
from spade_model.seq2seq import SpadeForSeq2Seq

PROVENANCE = "provenance.json"
FORMAT = "spade-import"
LOGIT_TOLERANCE = 1e-5
"""Largest difference of the loaded model's logits, relative to the largest: the same sums."""
_INPUT_TOKENS = 200
_TARGET_TOKENS = 16


@dataclass(frozen=True)
class ImportReport:
    """What was written, and what was compared before it was called done."""

    path: Path
    """The folder."""
    parameters: int
    """Numbers in the weights, each once."""
    size_bytes: int
    """Of all files."""
    files: tuple[str, ...]
    ignored: tuple[str, ...]
    """Tensors of the file that repeat others or that the published code does not use either."""
    kernel_lengths: tuple[int, ...]
    """For each state-space layer, the length L whose ``C~ = C (I - A^L)`` was undone; 0: none."""
    logit_difference: float
    """Largest absolute difference of logits between the plain model and the loaded folder."""


def import_msrlongt5(weights: Path, config: Path, out: Path) -> ImportReport:
    """Translate a published encoder-decoder into a Hugging Face folder.

    The folder is made beside `out` and appears there only after it was loaded again and gave the
    logits of the plain model. There is no tokenizer in it: the published checkpoints bring theirs.

    Args:
        weights: A safetensors file with the names of the published state dict.
        config: The published `config.json`.
        out: Where to write: absent or an empty folder.

    Returns:
        What was written and compared.

    Raises:
        PublishedFileError: A file cannot be read or does not fit the other, `out` is taken, the
            disk refuses, or the written folder differs from what was read.
        ValueError: The configuration is impossible.
    """
    _check_absent(out)
    described = read_published_config(config)
    try:
        ours = published_config(described)
    except (TypeError, ValueError) as error:
        raise PublishedFileError(f"{config}: {error}") from error
    published, ignored = read_published_weights(weights, ours)
    plain = _plain_model(weights, published, ours)
    lengths = tuple(int(x) for name, x in published.items() if name.endswith(".kernel.L"))
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    provenance = {
        "format": FORMAT,
        "format_version": 1,
        "source": "msrlongt5",
        "weights_sha256": sha256_of(weights),
        "config_sha256": sha256_of(config),
        "published_config": described,
        "ignored": ignored,
        "kernel_lengths": lengths,
        "parameters": parameters,
    }
    stage = None
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        folder = stage / "folder"  # a new one, because temporary ones are for the owner alone
        folder.mkdir()
        save_seq2seq(folder, ours, plain.state_dict())
        (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
        difference = _compare(folder, plain, out)
        files = sorted(folder.iterdir())
        size_bytes = sum(file.stat().st_size for file in files)
        folder.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise PublishedFileError(
            f"{out}: not written: {reason}; free space, mend permissions or choose another --out"
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
    return ImportReport(
        path=out,
        parameters=parameters,
        size_bytes=size_bytes,
        files=tuple(file.name for file in files),
        ignored=tuple(ignored),
        kernel_lengths=lengths,
        logit_difference=difference,
    )


def _check_absent(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise PublishedFileError(f"{out}: is no folder; choose another --out or remove it")
    if out.is_dir() and any(out.iterdir()):
        raise PublishedFileError(
            f"{out}: already holds something; choose another --out or empty it"
        )


def _plain_model(
    weights: Path, published: dict[str, Tensor], config: SpadeConfig
) -> SpadeForSeq2Seq:
    plain = SpadeForSeq2Seq(config)
    state = seq2seq_state(published, config)
    wrong = [name for name, x in state.items() if not bool(x.isfinite().all())]
    if wrong:
        raise PublishedFileError(
            f"{weights}: the state space of {wrong[0]} cannot be converted back: I - A^L has no "
            "inverse for its L; give a checkpoint saved before its first forward pass"
        )
    plain.load_state_dict(state)
    return plain.eval()


def _compare(folder: Path, plain: SpadeForSeq2Seq, out: Path) -> float:
    """Load the folder as a user would; return how far its logits are from the plain model's."""
    config = plain.config
    generator = torch.Generator().manual_seed(0)
    targets = min(config.max_target_length_tokens, _TARGET_TOKENS)
    size = config.vocab_size
    input_ids = torch.randint(size, (2, _INPUT_TOKENS), generator=generator)
    decoder_input_ids = torch.randint(size, (2, targets), generator=generator)
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    valid[1, _INPUT_TOKENS // 2 :] = False
    loaded, facts = AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    different = [str(name) for kind in facts.values() for name in kind]
    if different:
        raise PublishedFileError(
            f"{out}: not written: loading it back finds other weights: {', '.join(different[:3])}"
        )
    with torch.no_grad():
        expected = plain(
            input_ids, attention_mask=valid, decoder_input_ids=decoder_input_ids
        ).logits
        found = loaded.eval()(
            input_ids=input_ids,
            attention_mask=valid.long(),
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits
    difference = float((found - expected).abs().max())
    tolerance = LOGIT_TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:  # a NaN is a difference too
        raise PublishedFileError(
            f"{out}: not written: logits of the loaded folder differ by {difference:.3g}, more "
            f"than {tolerance:.3g}"
        )
    return difference
