"""What a model makes of documents: the likelihood of their summaries, and summaries of its own.

The batches depend on the rows alone, not on how many processes share them, so that any number of
processes comes to the same summaries and numbers. A document is encoded once for all that is asked,
by one process, or where documents are shared by all of them, each of which has a part of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from finetune import processes
from finetune.summarization.documents import IGNORED, SummaryRows, pad_inputs, pad_targets
from finetune.summarization.rouge import score_summary
from spade_model.huggingface import SpadeForConditionalGeneration, part_of_all_processes

Record = dict[str, Any]
"""What is known of a row: ``nll``, ``shuffled_nll`` (sums over the summary's tokens, in nats),
``prediction`` and ``rouge``, as far as it was asked for."""

MOST_ROWS_AT_ONCE = 64
_SHUFFLE_SEED = 0
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class Questions:
    """What is asked of each row.

    Attributes:
        shuffled: Whether summaries are scored given another document as well.
        writing: How summaries are written; None: they are not.
    """

    shuffled: bool
    writing: GenerationConfig | None


def derangement(rows: int) -> NDArray[np.int64]:
    """Return another row for each of some rows, [N]; each is the other one of one row.

    All rows stand in a circle in an order drawn with a fixed seed, and each gets its successor.

    Args:
        rows: At least 2.
    """
    assert rows >= 2, "a single row has no other"
    circle = np.random.default_rng(_SHUFFLE_SEED).permutation(rows)
    others = np.empty(rows, dtype=np.int64)
    others[circle] = np.roll(circle, -1)
    return others


def length_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Return batches of rows of similar length, the longest rows first.

    Args:
        lengths: Tokens of each row.
        most_tokens: Rows of a batch times the longest of them, unless it is a single row.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        batch = batches[-1] if batches else []
        # The first row of a batch is its longest.
        most_rows = min(MOST_ROWS_AT_ONCE, most_tokens // lengths[batch[0]]) if batch else 0
        if len(batch) < most_rows:
            batch.append(row)
        else:
            batches.append([row])
    return batches


@dataclass(frozen=True)
class Encoded:
    """Documents, or this process's part of them, behind the encoder: arguments of the model."""

    encoder_outputs: BaseModelOutput
    attention_mask: Tensor
    """[B, L], 0 where padded."""
    part: Any
    """Of documents that all processes share, else None."""

    def arguments(self) -> dict[str, Any]:
        """Return them by name."""
        whole = {"encoder_outputs": self.encoder_outputs, "attention_mask": self.attention_mask}
        return whole if self.part is None else {**whole, "part": self.part}


def summed_nll(model: SpadeForConditionalGeneration, encoded: Encoded, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood [B] of summaries, in nats, summed over their tokens.

    Args:
        model: In evaluation mode.
        encoded: What the encoder made of the documents.
        labels: int64 [B, T], -100 behind the ends.
    """
    logits = model(
        **encoded.arguments(),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        use_cache=False,
    ).logits
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape).sum(dim=1)


class Examiner:
    """Asks a model about rows, together with all processes.

    Args:
        model: In evaluation mode.
        tokenizer: Of the model.
        most_tokens: Of a batch: of its documents and summaries, padding included.
        say: Takes lines of progress.
        shared: Whether all processes share each document, instead of taking documents each.
    """

    def __init__(
        self,
        model: SpadeForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        most_tokens: int,
        say: Callable[[str], None],
        *,
        shared: bool = False,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._most_tokens = most_tokens
        self._say = say
        self._shared = shared

    def examine(
        self,
        rows: SummaryRows,
        questions: Questions,
        before_batch: Callable[[], None] = lambda: None,
    ) -> list[Record]:
        """Return a record for each row; all processes get all of them.

        Args:
            rows: To be examined.
            questions: What is asked.
            before_batch: Called before each batch, in each process equally often.
        """
        most = self._model.config.max_target_length_tokens
        batches = length_batches([len(row) + most for row in rows.inputs], self._most_tokens)
        # Those of the last round that get no batch get an empty one.
        readers_of_batches = 1 if self._shared else processes.world_size()
        rounds = math.ceil(len(batches) / readers_of_batches)
        mine = batches[processes.rank() % readers_of_batches :: readers_of_batches]
        mine += [[]] * (rounds - len(mine))
        readers = None
        if questions.shuffled and rows.targets is not None and len(rows) > 1:
            readers = np.argsort(derangement(len(rows)))
        found: dict[int, Record] = {}
        for batch in self._with_progress(mine, len(rows), questions):
            before_batch()
            for row, record in self._examine_batch(rows, batch, readers, questions):
                found.setdefault(row, {}).update(record)
        records: list[Record] = [{} for _ in range(len(rows))]
        for part in processes.gather(found):
            for row, record in part.items():
                records[row].update(record)
        return records

    @torch.no_grad()
    def _examine_batch(
        self,
        rows: SummaryRows,
        batch: list[int],
        readers: NDArray[np.int64] | None,
        questions: Questions,
    ) -> Iterator[tuple[int, Record]]:
        """Yield what is found, which may be of rows of other batches; nothing of an empty batch.

        Args:
            rows: All.
            batch: Rows whose documents are read.
            readers: For each document the row whose summary is scored with it as the wrong one.
            questions: What is asked.
        """
        if not batch:
            return
        encoded = self._encode([rows.inputs[row] for row in batch])
        if rows.targets is not None:
            yield from self._score(rows, batch, encoded, "nll")
            if readers is not None:
                others = [int(readers[row]) for row in batch]
                yield from self._score(rows, others, encoded, "shuffled_nll")
        if questions.writing is not None:
            yield from self._write(rows, batch, encoded, questions.writing)

    def _encode(self, documents: list[NDArray[np.int32]]) -> Encoded:
        least = processes.world_size() if self._shared else 1
        ids, mask = pad_inputs(documents, self._pad_token_id, least)
        part = None
        if self._shared:
            part = part_of_all_processes(ids.shape[1])
            ids, mask = ids[:, part.tokens], mask[:, part.tokens]
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        return Encoded(self._model.get_encoder()(ids, mask, part=part), mask, part)

    @property
    def _pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    def _score(
        self, rows: SummaryRows, summaries: list[int], encoded: Encoded, name: str
    ) -> Iterator[tuple[int, Record]]:
        assert rows.targets is not None, "asked of rows with summaries"
        labels = pad_targets([rows.targets[row] for row in summaries]).to(self._model.device)
        sums = summed_nll(self._model, encoded, labels).tolist()
        for row, nll in zip(summaries, sums, strict=True):
            yield row, {name: nll}

    def _write(
        self,
        rows: SummaryRows,
        batch: list[int],
        encoded: Encoded,
        writing: GenerationConfig,
    ) -> Iterator[tuple[int, Record]]:
        tokens = self._model.generate(**encoded.arguments(), generation_config=writing)
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for row, text in zip(batch, texts, strict=True):
            record: Record = {"prediction": text.strip()}
            if rows.pairs.summaries is not None:
                # Here rather than in the end: the processes share this work too.
                record["rouge"] = score_summary(record["prediction"], rows.pairs.summaries[row])
            yield row, record

    def _with_progress(
        self, batches: list[list[int]], rows: int, questions: Questions
    ) -> Iterable[list[int]]:
        """Yield batches, and say now and then how far this process is and what is left."""
        task = "summaries scored" if questions.writing is None else "summaries written"
        started = said = time.monotonic()
        for done, batch in enumerate(batches):
            now = time.monotonic()
            if now - said >= _SECONDS_BETWEEN_LINES:
                said = now
                left = (now - started) / done * (len(batches) - done)
                self._say(f"{task}: batch {done} of {len(batches)}, about {left:.0f} s left")
            yield batch
        if questions.writing is not None:
            self._say(f"{task}: {rows:,} in {time.monotonic() - started:.0f} s")
