"""What every import ends with: a folder that was loaded again and compared, or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from spade_model.causal_lm import SpadeForCausalLM as PlainCausalLM
from spade_model.config import SpadeConfig
from spade_model.huggingface.causal_lm import SpadeForCausalLM
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.importing.published_files import PublishedFileError
from spade_model.huggingface.modeling import SpadeForConditionalGeneration
from spade_model.seq2seq import SpadeForSeq2Seq

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"
FORMAT = "spade-import"
LOGIT_TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest of them: the same sums."""
INPUT_TOKENS = 200
_TARGET_TOKENS = 16

PlainModel = SpadeForSeq2Seq | PlainCausalLM


@dataclass(frozen=True)
class WrittenFolder:
    """What was written, and what was compared before it was called done."""

    path: Path
    """The folder."""
    parameters: int
    """Numbers in the weights, each once."""
    size_bytes: int
    """Of all files."""
    files: tuple[str, ...]
    logit_difference: float
    """Largest absolute difference of logits between the plain model and the loaded folder."""


def check_absent(out: Path) -> None:
    """Refuse a place where something is.

    Raises:
        PublishedFileError: There is.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise PublishedFileError(f"{out}: is no folder; choose another --out or remove it")
    if out.is_dir() and any(out.iterdir()):
        raise PublishedFileError(
            f"{out}: already holds something; choose another --out or empty it"
        )


def write_folder(
    plain: PlainModel,
    out: Path,
    provenance: Mapping[str, Any],
    complete: Callable[[Path], None] | None = None,
) -> WrittenFolder:
    """Write a model as a Hugging Face folder.

    It is made beside `out` and appears there only after it was loaded again and gave the logits of
    the plain model.

    Args:
        plain: The model. Where its head is another tensor than its embedding, the folder says so
            and holds both.
        out: Absent or an empty folder, see `check_absent`.
        provenance: What is known of the weights beyond what is written in any case.
        complete: Puts more files into the folder; before it is compared.

    Raises:
        PublishedFileError: The disk refuses, or the written folder differs from the model.
    """
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    facts = {"format": FORMAT, "format_version": 1, **provenance, "parameters": parameters}
    stage = None
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        folder = stage / "folder"  # a new one, because temporary ones are for the owner alone
        folder.mkdir()
        save_model(plain, folder)
        (folder / PROVENANCE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if complete is not None:
            complete(folder)
        difference = compare_folder(folder, plain, out)
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
    return WrittenFolder(
        path=out,
        parameters=parameters,
        size_bytes=size_bytes,
        files=tuple(file.name for file in files),
        logit_difference=difference,
    )


def save_model(plain: PlainModel, folder: Path) -> None:
    """Write weights, configuration and generation settings."""
    ours = plain.config
    causal = isinstance(plain, PlainCausalLM)
    kind = SpadeForCausalLM if causal else SpadeForConditionalGeneration
    tied = plain.lm_head.weight is plain.model.shared.weight
    SpadePretrainedConfig.from_spade_config(
        ours, architectures=[kind.__name__], dtype=torch.float32, tie_word_embeddings=tied
    ).save_pretrained(folder)
    start = {"bos_token_id" if causal else "decoder_start_token_id": ours.decoder_start_token_id}
    GenerationConfig(
        max_new_tokens=ours.max_target_length_tokens,
        eos_token_id=ours.eos_token_id,
        pad_token_id=ours.pad_token_id,
        **start,
    ).save_pretrained(folder)
    tensors = {
        name: x.detach().contiguous()
        for name, x in plain.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors writes for the owner alone, but the folder is made to be given away.
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)


def compare_folder(folder: Path, plain: PlainModel, out: Path) -> float:
    """Load the folder as a user would; return how far its logits are from the plain model's.

    Raises:
        PublishedFileError: Too far, or it holds other weights.
    """
    batch = made_up_batch(plain.config)
    loader = AutoModelForSeq2SeqLM if isinstance(plain, SpadeForSeq2Seq) else AutoModelForCausalLM
    loaded, facts = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    different = [str(name) for kind in facts.values() for name in kind]
    if different:
        raise PublishedFileError(
            f"{out}: not written: loading it back finds other weights: {', '.join(different[:3])}"
        )
    with torch.no_grad():
        expected = plain.eval()(**batch).logits
        found = loaded.eval()(**batch, use_cache=False).logits
    rows = batch["attention_mask"] if "decoder_input_ids" not in batch else slice(None)
    return check_logits(found[rows], expected[rows], f"{out}: not written: the loaded folder's")


def made_up_batch(config: SpadeConfig, input_tokens: int = INPUT_TOKENS) -> dict[str, Tensor]:
    """Return arguments for a forward pass over two rows, one of them half padding."""
    generator = torch.Generator().manual_seed(0)
    size, targets = config.vocab_size, min(config.max_target_length_tokens, _TARGET_TOKENS)
    valid = torch.ones(2, input_tokens, dtype=torch.bool)
    valid[1, input_tokens // 2 :] = False
    batch = {
        "input_ids": torch.randint(size, (2, input_tokens), generator=generator),
        "attention_mask": valid,
    }
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(size, (2, targets), generator=generator)
    return batch


def check_logits(found: Tensor, expected: Tensor, whose: str) -> float:
    """Return the largest absolute difference.

    Args:
        found: Of any shape.
        expected: Of the same.
        whose: Where a difference is, in front of the word for what differs.

    Raises:
        PublishedFileError: It is more than rounding.
    """
    difference = float((found - expected).abs().max())
    tolerance = LOGIT_TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:  # a NaN is a difference too
        raise PublishedFileError(
            f"{whose} logits differ by {difference:.3g}, more than {tolerance:.3g}"
        )
    return difference
