"""The pretrained model and its tokenizer against an exported folder, as strangers load it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.run_folder import write_json

_CHECK = "spade_model.huggingface.self_check"
_RANDOM_LINES = 64
_LONG_LINES = 2000
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
    greedy_tokens: int = 0
    """Tokens of each row whose greedy ids were compared, with a cache and without."""
    beam_tokens: int = 0
    """The same with beam search."""
    texts: int = 0
    """Texts whose ids were compared with SentencePiece's."""
    ties: int = 0
    """Texts in which a segmentation of equal score was chosen."""


def compare_in_another_process(
    folder: Path, reference: dict[str, Tensor], tokenizer: DocumentTokenizer
) -> Comparison:
    """Load a folder offline, with its own code and then with ours, and compare.

    Args:
        folder: The exported folder.
        reference: What the pretrained network says, see `reference.make_reference`.
        tokenizer: That the run's data were written with.

    Raises:
        OSError: If the texts and tensors to compare with cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="spade-export-") as name:
        place = Path(name)
        save_file(
            {key: value.contiguous() for key, value in reference.items()},
            place / "tensors.safetensors",
        )
        _write_texts(place, tokenizer)
        # Started from there as a script, so that nothing of ours is where Python looks first.
        script = place / "check_export.py"
        shutil.copyfile(_check_source(), script)
        packages = Path(__file__).resolve().parent.parent.parent
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            # Copies of the folder's code, which must not stay where others find them.
            "HF_MODULES_CACHE": str(place / "modules"),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        result = subprocess.run(
            [sys.executable, str(script), str(folder.resolve()), str(place), str(packages)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=place,
            check=False,
        )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        return Comparison(problems=(f"transformers cannot load the export: {reason}",))
    found = json.loads(result.stdout.splitlines()[-1])
    found["problems"] = tuple(found["problems"])
    return Comparison(**found)


def _check_source() -> Path:
    """The check's file, found without importing it."""
    specification = importlib.util.find_spec("spade_model")
    assert specification is not None, "our own package"
    assert specification.origin is not None, "a package with a file"
    package = Path(specification.origin).parent
    return package.joinpath(*_CHECK.split(".")[1:]).with_suffix(".py")


def _write_texts(place: Path, tokenizer: DocumentTokenizer) -> None:
    """Texts with the ids they have in pretraining; see `spade_model.huggingface.self_check`."""
    generator = torch.Generator().manual_seed(0)
    pieces = torch.randint(
        tokenizer.unk_token_id + 1, tokenizer.piece_count, (_RANDOM_LINES, 20), generator=generator
    )
    lines = torch.randint(
        tokenizer.unk_token_id + 1, tokenizer.piece_count, (_LONG_LINES, 25), generator=generator
    )
    texts = [
        *_SAMPLE_TEXTS,
        Path(__file__).read_text(encoding="utf-8"),
        # Every corner of the vocabulary; single bytes that form no character become U+FFFD.
        *(tokenizer.decode(row.numpy()) for row in pieces),
        # Scores summed over a whole document would be rounded to other ids than its lines have.
        "\n".join(tokenizer.decode(row.numpy()) for row in lines),
    ]
    content = {
        "sentinel_count": tokenizer.sentinel_count,
        "documents": [{"text": text, "ids": tokenizer.encode(text).tolist()} for text in texts],
    }
    write_json(place / "texts.json", content)
