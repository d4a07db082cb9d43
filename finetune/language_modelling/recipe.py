"""The recipe ``lm``: next-token prediction on plain text, perplexity by sliding windows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from finetune.errors import FinetuneError
from finetune.exported import check_folder, file_digest, fingerprint, load_tokenizer
from finetune.language_modelling.losses import (
    REPORT_COLUMNS,
    SCORE,
    LanguageModelTrainer,
    metrics,
    report,
    report_rows,
)
from finetune.language_modelling.sizes import check_size, new_model
from finetune.language_modelling.text import check_ids, describe_text, encode_text, read_text
from finetune.language_modelling.windows import TokenWindows, collate
from finetune.recipe import Recipe, ResultTable
from finetune.training import VALIDATION
from spade_model.huggingface import SpadeForCausalLM


class LanguageModelling(Recipe):
    """Text to learn, and texts to be measured on.

    Training rows are consecutive segments of the text, as long as the windows.

    Args:
        model: Folder of a language model; with `from_scratch` any with a tokenizer.
        training: Plain text, or JSON lines.
        validation: Likewise.
        tests: Likewise.
        from_scratch: Size of a new network, see `sizes`; None: go on with `model`.
        tokenizer: Folder of the tokenizer, if it is not in `model`.
        text_column: Of JSON lines.
        length_tokens: Of a window.
        stride_tokens: Between windows of validation and tests; None: half of the length.
        say: Takes lines on the data.

    Raises:
        FinetuneError: A file, a folder or a length is not what it should be.
        OSError: A file cannot be read.
    """

    name = "lm"
    score = SCORE
    greater_is_better = False

    def __init__(
        self,
        model: Path,
        training: Path,
        validation: Path,
        tests: Sequence[Path] = (),
        *,
        from_scratch: str | None = None,
        tokenizer: Path | None = None,
        text_column: str = "text",
        length_tokens: int = 512,
        stride_tokens: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._model, self._from_scratch = model, from_scratch
        vocab_size = None
        if from_scratch is None:
            vocab_size = check_language_model(model)
        else:
            check_size(from_scratch)
        # Its tokenizer is copied beside the trained model.
        self.folder = model if tokenizer is None else tokenizer
        self._tokenizer = load_tokenizer(self.folder)
        self._text_column, self._length = text_column, length_tokens
        self._stride = half_of(length_tokens) if stride_tokens is None else stride_tokens
        named = _name_tests(tests)
        self._files = {"training": training, VALIDATION: validation, **named}
        windows = {}
        for name, path in self._files.items():
            text = encode_text(read_text(path, text_column), self._tokenizer)
            check_ids(text, len(self._tokenizer) if vocab_size is None else vocab_size)
            stride = length_tokens if name == "training" else self._stride
            windows[name] = TokenWindows(text, length_tokens, stride)
            say(describe_text(name, text))
        self.training = windows.pop("training")
        self.validation = windows.pop(VALIDATION)
        self.tests = windows

    def describe(self) -> dict[str, Any]:
        """Return model, lengths and data."""
        return {
            "model": None if self._from_scratch is not None else fingerprint(self._model),
            "from_scratch": self._from_scratch,
            "tokenizer": file_digest(self.folder / "tokenizer.json"),
            "text_column": self._text_column,
            "length_tokens": self._length,
            "stride_tokens": self._stride,
            "data": {name: file_digest(path) for name, path in self._files.items()},
        }

    def make_model(self, dropout: float | None) -> PreTrainedModel:
        """Load the model, or draw a new one."""
        if self._from_scratch is not None:
            return new_model(
                self._from_scratch, self._tokenizer, length_tokens=self._length, dropout=dropout
            )
        return load_language_model(self._model, **({} if dropout is None else {"dropout": dropout}))

    def make_trainer(self, **common: Any) -> Trainer:
        """Return a Trainer that keeps losses instead of logits."""
        return LanguageModelTrainer(self._tokenizer.pad_token_id, **common)

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of windows."""
        return collate(rows, self._tokenizer.pad_token_id)

    def measure(self, rows: Any, outputs: Any) -> dict[str, float]:
        """Return the loss per token, perplexities and bits per byte."""
        return metrics(rows, outputs)

    def write_predictions(self, folder: Path, name: str, rows: Any, outputs: Any) -> None:
        """Write ``losses-NAME.jsonl``, a line for each window.

        ``first_token`` of those that count, in the stream from 0, ``tokens`` and ``nats``.
        """
        with (folder / f"losses-{name}.jsonl").open("w", encoding="utf-8") as stream:
            for index, nats in enumerate(outputs):
                window = rows.window(index)
                record = {
                    "first_token": window.scored_from,
                    "tokens": window.stop - window.scored_from,
                    "nats": float(nats),
                }
                stream.write(json.dumps(record) + "\n")

    def detail(self, name: str, rows: Any, outputs: Any) -> dict[str, Any]:
        """Return counts and intervals."""
        return report(rows, outputs)

    def tables(self, results: Mapping[str, Any]) -> list[ResultTable]:
        """Return the table of counts and intervals, those of the first seed."""
        details = results["seeds"][0]["details"]
        title = f"seed {results['seeds'][0]['seed']}, windows of {self._length:,} tokens"
        rows = report_rows(details)
        return [ResultTable(f"{title}, stride {self._stride:,}", REPORT_COLUMNS, rows)]


def check_language_model(folder: Path) -> int:
    """Return the vocabulary size of a folder with a language model.

    Raises:
        FinetuneError: It holds none.
    """
    config = check_folder(folder)
    if config.get("num_encoder_layers") != 0:
        raise FinetuneError(
            f"{folder}: has an encoder and is no language model, and its layers look ahead; give "
            "the folder of a SpadeForCausalLM, or train a new one with its tokenizer "
            "(--from-scratch)"
        )
    return int(config["vocab_size"])


def load_language_model(folder: Path, **options: Any) -> SpadeForCausalLM:
    """Load a language model in float32.

    Args:
        folder: Checked by `check_language_model`.
        options: Fields of the configuration to change.
    """
    model: SpadeForCausalLM = SpadeForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, **options
    )
    return model


def half_of(length_tokens: int) -> int:
    """The stride where none is given: every token but the first has half a window before it."""
    return max(1, length_tokens // 2)


def _name_tests(files: Sequence[Path]) -> dict[str, Path]:
    """Name files by their own names without the last ending: WikiText's all begin alike."""
    names: dict[str, Path] = {}
    for path in files:
        name = (path.with_suffix("") if path.suffix == ".gz" else path).stem
        if name in ("training", VALIDATION) or name in names:
            raise FinetuneError(
                f"{path}: results of another file are called {name!r} already; rename the file"
            )
        names[name] = path
    return names
