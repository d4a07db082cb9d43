"""A language model measured on files, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.exported import load_tokenizer
from finetune.language_modelling.losses import report, window_losses
from finetune.language_modelling.recipe import (
    check_language_model,
    half_of,
    load_language_model,
)
from finetune.language_modelling.text import check_ids, describe_text, encode_text, read_text
from finetune.language_modelling.windows import TokenWindows
from finetune.measuring import MeasuringSettings, join_processes


def evaluate_language_model(
    folder: Path,
    files: Sequence[Path],
    settings: MeasuringSettings,
    *,
    tokenizer: Path | None = None,
    text_column: str = "text",
    length_tokens: int | None = None,
    stride_tokens: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a model on files.

    Args:
        folder: Of a language model.
        files: Plain text or JSON lines, each measured by itself.
        settings: How the model is run.
        tokenizer: Folder of the tokenizer, if it is not in `folder`.
        text_column: Of JSON lines.
        length_tokens: Of a window; None: as long as in training.
        stride_tokens: From window to window; None: half of the length.
        say: Takes lines on the data.

    Returns:
        ``length_tokens``, ``stride_tokens``, and ``files``: by path what `losses.report` returns.

    Raises:
        FinetuneError: A file, the folder or a length is not what it should be.
        OSError: A file cannot be read.
    """
    join_processes()
    vocab_size = check_language_model(folder)
    pieces = load_tokenizer(folder if tokenizer is None else tokenizer)
    model = load_language_model(folder)
    length = model.config.trained_length_tokens if length_tokens is None else length_tokens
    stride = half_of(length) if stride_tokens is None else stride_tokens
    windows = {}
    for path in files:
        text = encode_text(read_text(path, text_column), pieces)
        check_ids(text, vocab_size)
        windows[str(path)] = TokenWindows(text, length, stride)
        say(describe_text(path.name, text))
    model.to(settings.device)
    found = {
        name: report(
            rows,
            window_losses(
                model,
                rows,
                batch_size=settings.batch_size,
                pad_token_id=pieces.pad_token_id,
                bfloat16=settings.uses_bfloat16,
            ),
        )
        for name, rows in windows.items()
    }
    return {"length_tokens": length, "stride_tokens": stride, "files": found}
