"""The recipe ``summarize``: the decoder learns to write what documents say in short."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from finetune.errors import FinetuneError
from finetune.exported import check_folder, file_digest, fingerprint, load_tokenizer
from finetune.naming import name_tests
from finetune.recipe import Recipe, ResultTable
from finetune.summarization.baselines import median_words
from finetune.summarization.documents import (
    Columns,
    Pairs,
    SummaryRows,
    collate,
    encode,
    read_pairs,
)
from finetune.summarization.evaluation import Record
from finetune.summarization.scores import MEAN_ROUGE, NLL, details_of, metrics_of, tables_of
from finetune.summarization.trainer import SummaryTrainer
from finetune.summarization.writing import WritingSettings
from finetune.training import VALIDATION
from spade_model.huggingface import SpadeForConditionalGeneration, SpadePretrainedConfig

ChooseBy = Literal["nll", "rouge"]
LEAST_INPUT_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """What the user chooses beside the training.

    Raises:
        FinetuneError: A value is impossible.
    """

    columns: Columns = field(default_factory=Columns)
    prefix: str = ""
    """Stands before each document."""
    max_input_tokens: int | None = None
    """Where documents are cut, prefix and end of text included; None: nowhere."""
    choose_by: ChooseBy = "nll"
    """What makes a checkpoint the best: the likelihood of the validation summaries, or the mean of
    three ROUGE scores of summaries that are written at each validation."""
    writing: WritingSettings = field(default_factory=WritingSettings)
    lead_words: int | None = None
    """Words of the baseline; None: the median of the training summaries."""
    evaluation_batch_tokens: int = 16_384
    """Tokens of a batch of documents, and of what may be written of them, when the model is
    examined; a longer document is a batch of its own."""

    def __post_init__(self) -> None:
        if self.choose_by not in get_args(ChooseBy):
            raise FinetuneError(f"choose_by is {self.choose_by!r}: use nll or rouge")
        for name, least in (
            ("max_input_tokens", LEAST_INPUT_TOKENS),
            ("lead_words", 1),
            ("evaluation_batch_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise FinetuneError(f"{name} is {value}: use {least} or more")


class Summarization(Recipe):
    """Documents with summaries to learn from.

    Args:
        model: Exported folder of an encoder-decoder.
        training: File with summaries.
        validation: File with summaries.
        tests: Files to summarize; they are measured as well where they have summaries.
        settings: What the user chooses.
        say: Takes lines on the data, and of progress while the model writes.

    Raises:
        FinetuneError: A file or the folder is not what it should be, or a setting does not fit.
        OSError: A file cannot be read.
    """

    name = "summarize"

    def __init__(
        self,
        model: Path,
        training: Path,
        validation: Path,
        tests: Sequence[Path] = (),
        *,
        settings: SummarySettings | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        fields = check_folder(model)
        if not (fields.get("num_encoder_layers") and fields.get("num_decoder_layers")):
            raise FinetuneError(f"{model}: is no encoder-decoder; export one that writes text")
        self.folder, self._say = model, say
        self._settings = settings = settings if settings is not None else SummarySettings()
        self._config = SpadePretrainedConfig.from_pretrained(model)
        settings.writing.most_tokens(self._config)
        self._tokenizer = load_tokenizer(model)
        by_rouge = settings.choose_by == "rouge"
        self.score, self.greater_is_better = (MEAN_ROUGE, True) if by_rouge else (NLL, False)
        named = name_tests(tests)
        self._files = {"training": training, VALIDATION: validation, **named}
        self._rows = {
            name: self._read(name, path, with_summaries=name not in named)
            for name, path in self._files.items()
        }
        self.training, self.validation = self._rows["training"], self._rows[VALIDATION]
        self.tests = {name: self._rows[name] for name in named}
        self._rows[VALIDATION].always_written = by_rouge
        for name in named if named and not by_rouge else (*named, VALIDATION):
            self._rows[name].written_in_the_end = True
        learned = _summaries(self._rows["training"].pairs)
        self._lead_words = settings.lead_words or median_words(learned)

    def _read(self, name: str, path: Path, *, with_summaries: bool) -> SummaryRows:
        settings = self._settings
        pairs = read_pairs(path, settings.columns, with_summaries=with_summaries)
        rows = encode(
            pairs,
            self._tokenizer,
            prefix=settings.prefix,
            max_input_tokens=settings.max_input_tokens,
            max_target_tokens=self._config.max_target_length_tokens,
        )
        line = f"{name}: {len(rows):,} documents of {path}, the longest of "
        line += f"{rows.longest_input_tokens:,} tokens"
        if rows.cut_inputs:
            line += f", {rows.cut_inputs:,} cut to {settings.max_input_tokens:,}"
        if rows.targets is None:
            line += "; without summaries"
        elif rows.cut_targets:
            most = self._config.max_target_length_tokens
            line += f"; {rows.cut_targets:,} summaries cut to the decoder's {most:,}"
        self._say(line)
        return rows

    def describe(self) -> dict[str, Any]:
        """Return model, data and settings, and what was cut."""
        return {
            "model": fingerprint(self.folder),
            **dataclasses.asdict(self._settings),
            "lead_words": self._lead_words,
            "max_summary_tokens_of_the_model": self._config.max_target_length_tokens,
            "cut": {
                name: {"documents": rows.cut_inputs, "summaries": rows.cut_targets}
                for name, rows in self._rows.items()
            },
            "data": {name: file_digest(path) for name, path in self._files.items()},
        }

    def make_model(self, dropout: float | None) -> PreTrainedModel:
        """Load the encoder-decoder."""
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        if dropout is not None:
            options["dropout"] = dropout
        return SpadeForConditionalGeneration.from_pretrained(self.folder, **options)

    def make_trainer(self, **common: Any) -> Trainer:
        """Return the Trainer that examines by its own loop."""
        return SummaryTrainer(
            self._tokenizer,
            self._settings.writing.for_model(self._config),
            self._settings.evaluation_batch_tokens,
            self._say,
            **common,
        )

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch to learn from."""
        return collate(rows, self._tokenizer.pad_token_id)

    def measure(self, rows: Any, outputs: Any) -> dict[str, float]:
        """Return likelihoods, and ROUGE where summaries were written."""
        return metrics_of(rows, outputs)

    def detail(self, name: str, rows: Any, outputs: Any) -> dict[str, Any]:
        """Return means with intervals, LEAD's too."""
        return details_of(rows, outputs, self._lead_words)

    def tables(self, results: Mapping[str, Any]) -> list[ResultTable]:
        """Return the tables of ROUGE and of likelihoods."""
        return tables_of(results)

    def write_predictions(self, folder: Path, name: str, rows: Any, outputs: Any) -> None:
        """Write ``predictions-NAME.jsonl`` where summaries were written."""
        write_summaries(folder, name, rows, outputs)


def write_summaries(folder: Path, name: str, rows: SummaryRows, records: Sequence[Record]) -> None:
    """Write ``predictions-NAME.jsonl`` where summaries were written.

    Lines: ``id``, ``prediction``; where it is known ``reference``, the three ROUGE scores from
    0 to 1, ``nll_per_token`` and ``nll_per_token_shuffled`` in nats, ``reference_tokens``.

    Args:
        folder: Where.
        name: Of the rows.
        rows: Examined.
        records: In their order.
    """
    if "prediction" not in records[0]:
        return
    with (folder / f"predictions-{name}.jsonl").open("w", encoding="utf-8") as stream:
        for index, record in enumerate(records):
            line = _prediction(rows, index, record)
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _prediction(rows: SummaryRows, index: int, record: Record) -> dict[str, Any]:
    pairs = rows.pairs
    line = {"id": pairs.identifiers[index], "prediction": record["prediction"]}
    if pairs.summaries is None or rows.targets is None:
        return line
    tokens = len(rows.targets[index])
    line |= {"reference": pairs.summaries[index]}
    line |= {name: round(value, 6) for name, value in record["rouge"].items()}
    for name in ("nll", "shuffled_nll"):
        if name in record:
            title = "nll_per_token" + ("_shuffled" if name == "shuffled_nll" else "")
            line[title] = round(record[name] / tokens, 6)
    return line | {"reference_tokens": tokens}


def _summaries(pairs: Pairs) -> list[str]:
    assert pairs.summaries is not None, "training rows have summaries"
    return pairs.summaries
