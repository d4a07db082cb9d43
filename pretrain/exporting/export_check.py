"""The pretrained model and its tokenizer against an exported folder, as a stranger loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.config import RunConfig
from pretrain.run_folder import write_json
from spade_model import SpadeForSeq2Seq

_INPUT_TOKENS = 512
_TARGET_TOKENS = 32
_RANDOM_LINES = 64
_SAMPLE_TEXTS = (
    "",
    "One line without an end",
    "def f(x):\n\treturn {'a': x ** 2}  # two  spaces,   three\n\n\n    if f(1) != 1.0e-3:\r\n",
    "“Quoted” — naïve café ﬁne e\u0301, Ελληνικά, русский, العربية, हिन्दी, 日本語, 한국어\n",
    "🐍👩‍🔬 <0x0A> </s> <pad> <unk> <extra_id_0>\x00\x0b\x85\u2028\ufeff end",
)


@dataclass(frozen=True)
class Comparison:
    """What was compared. With problems, the numbers may be those of nothing at all."""

    problems: tuple[str, ...]
    """What is wrong, in words; empty if the folder is what it should be."""
    logit_difference: float = 0.0
    """Largest absolute difference from the pretrained model's logits, in float32."""
    cache_difference: float = 0.0
    """Largest absolute difference between logits decoded with a cache and without."""
    texts: int = 0
    """Texts whose ids were compared with SentencePiece's."""
    ties: int = 0
    """Texts in which a segmentation of equal score was chosen."""


def compare_in_another_process(
    folder: Path, config: RunConfig, tokenizer: DocumentTokenizer, plain: SpadeForSeq2Seq
) -> Comparison:
    """Load a folder offline, with `transformers` and our classes alone, and compare.

    Args:
        folder: The exported folder.
        config: Of the run.
        tokenizer: That the run's data were written with.
        plain: The pretrained network with the weights that the folder should hold.

    Raises:
        OSError: If the texts and logits to compare with cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="spade-export-") as name:
        reference = Path(name)
        _write_reference(reference, config, tokenizer, plain)
        packages = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, "-m", "spade_model.huggingface.self_check"]
        result = subprocess.run(
            [*command, str(folder.resolve()), str(reference)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=reference,
            check=False,
        )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        return Comparison(problems=(f"transformers cannot load the export: {reason}",))
    found = json.loads(result.stdout.splitlines()[-1])
    found["problems"] = tuple(found["problems"])
    return Comparison(**found)


def _write_reference(
    reference: Path, config: RunConfig, tokenizer: DocumentTokenizer, plain: SpadeForSeq2Seq
) -> None:
    """What the pretrained model and the tokenizer say; see `spade_model.huggingface.self_check`."""
    generator = torch.Generator().manual_seed(0)
    length = min(config.data.input_length_tokens, _INPUT_TOKENS)
    targets = min(config.model.max_target_length_tokens, _TARGET_TOKENS)
    first, last = config.model.eos_token_id + 1, config.model.vocab_size
    input_ids = torch.randint(first, last, (2, length), generator=generator)
    labels = torch.randint(first, last, (2, targets), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length // 2 :] = 0
    with torch.no_grad():
        logits = plain(input_ids, labels, attention_mask=attention_mask.bool()).logits
    tensors = {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": attention_mask,
        "logits": logits,
    }
    save_file(tensors, reference / "tensors.safetensors")
    pieces = torch.randint(
        tokenizer.unk_token_id + 1, tokenizer.piece_count, (_RANDOM_LINES, 20), generator=generator
    )
    texts = [
        *_SAMPLE_TEXTS,
        Path(__file__).read_text(encoding="utf-8"),
        # Every corner of the vocabulary; single bytes that form no character become U+FFFD.
        *(tokenizer.decode(row.numpy()) for row in pieces),
    ]
    content = {
        "sentinel_count": tokenizer.sentinel_count,
        "documents": [{"text": text, "ids": tokenizer.encode(text).tolist()} for text in texts],
    }
    write_json(reference / "texts.json", content)
