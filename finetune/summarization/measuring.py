"""A model that summarizes, measured on files without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finetune import processes
from finetune.errors import FinetuneError
from finetune.exported import check_folder, load_tokenizer
from finetune.measuring import MeasuringSettings, join_processes
from finetune.naming import name_tests
from finetune.summarization.baselines import median_words
from finetune.summarization.documents import SummaryRows, encode, read_pairs
from finetune.summarization.evaluation import Examiner, Questions
from finetune.summarization.recipe import SummarySettings, write_summaries
from finetune.summarization.scores import details_of, metrics_of
from spade_model.huggingface import SpadeForConditionalGeneration


def evaluate_summarizer(
    folder: Path,
    files: Sequence[Path],
    settings: SummarySettings,
    measuring: MeasuringSettings,
    *,
    context: int = 1,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Write summaries of the documents of files, and measure where they have some.

    Args:
        folder: Of an encoder-decoder, with its tokenizer.
        files: Documents, each file measured by itself.
        settings: As while fine-tuning, but for `choose_by`. Where `lead_words` is None, LEAD is as
            long as the median of the file's own summaries.
        measuring: How the model is run; batches go by `settings.evaluation_batch_tokens`.
        context: Processes that share each document: 1, or all of them.
        out: Folder for the summaries; None: they are not written.
        say: Takes lines of progress.

    Returns:
        By the name of the file ``metrics`` and ``details``, as of `scores`.

    Raises:
        FinetuneError: A file or the folder is not what it should be, or a setting does not fit.
        OSError: A file cannot be read or written.
    """
    if context > 1 and context != processes.world_size():
        raise FinetuneError(
            f"context is {context} and {processes.world_size()} processes were started; start as "
            "many as are to share a document"
        )
    join_processes()
    fields = check_folder(folder)
    if not (fields.get("num_encoder_layers") and fields.get("num_decoder_layers")):
        raise FinetuneError(f"{folder}: is no encoder-decoder; give a model that writes text")
    tokenizer = load_tokenizer(folder)
    model = SpadeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    writing = settings.writing.for_model(model.config)
    longest = model.config.max_target_length_tokens
    rows = {
        name: _read(path, settings, tokenizer, longest) for name, path in name_tests(files).items()
    }
    for name, one in rows.items():
        say(f"{name}: {len(one):,} documents, {one.cut_inputs:,} cut")
    if out is not None and processes.is_first():
        out.mkdir(parents=True, exist_ok=True)
    model.to(measuring.device).eval()
    most_tokens = settings.evaluation_batch_tokens
    examiner = Examiner(model, tokenizer, most_tokens, say, shared=context > 1)
    results = {}
    for name, one in rows.items():
        with torch.autocast(measuring.device.type, torch.bfloat16, enabled=measuring.uses_bfloat16):
            records = examiner.examine(one, Questions(shuffled=True, writing=writing))
        lead_words = settings.lead_words
        if lead_words is None:
            lead_words = median_words(one.pairs.summaries or [""])
        results[name] = {
            "metrics": metrics_of(one, records),
            "details": details_of(one, records, lead_words),
        }
        if out is not None and processes.is_first():
            write_summaries(out, name, one, records)
    return results


def _read(
    path: Path, settings: SummarySettings, tokenizer: PreTrainedTokenizerBase, longest: int
) -> SummaryRows:
    return encode(
        read_pairs(path, settings.columns, with_summaries=False),
        tokenizer,
        prefix=settings.prefix,
        max_input_tokens=settings.max_input_tokens,
        max_target_tokens=longest,
    )
