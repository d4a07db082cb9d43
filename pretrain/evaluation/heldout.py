"""Denoising loss on held-out samples, beside what knowing token frequencies alone would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional

from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import UnigramBaseline
from pretrain.model_inputs import IGNORED_LABEL, model_inputs
from pretrain.ranks import Ranks


class HeldoutEvaluation:
    """Evaluates on the first samples of the held-out data, always the same ones.

    Two losses are stated, both in nats a target token. ``loss`` counts every target token.
    ``text_loss`` leaves out sentinels and end-of-sequence, whose place the masks give away, and so
    says what was learned about text.

    Args:
        stream: The held-out data.
        samples: How many samples to use.
        micro_batch_size: Samples of one forward pass.
        baseline: Unigram frequencies of the training targets.
        ranks: This process's place; samples are dealt out among all.
        device: Where the model is.
    """

    def __init__(
        self,
        stream: PretrainingStream,
        *,
        samples: int,
        micro_batch_size: int,
        baseline: UnigramBaseline,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._stream = stream
        self._micro_batch_size = micro_batch_size
        vocab = stream.vocabulary
        self._is_text = torch.from_numpy(vocab.is_text(np.arange(vocab.vocab_size))).to(device)
        self._device = device
        count = min(samples, *stream.samples_per_epoch.values())
        self._indices = np.arange(ranks.rank, count, ranks.world_size, dtype=np.int64)
        labels = stream.batch(np.arange(count, dtype=np.int64)).masked_labels()
        self.unigram_loss = baseline.loss(labels)
        self.unigram_text_loss = baseline.text_loss(labels)

    @torch.no_grad()
    def run(self, engine: Any) -> dict[str, float]:
        """Losses of the model as it stands; every rank must call this."""
        engine.eval()
        # Sums of nats and counts of tokens: of all targets, then of text alone.
        totals = torch.zeros(4, dtype=torch.float64, device=self._device)
        for start in range(0, len(self._indices), self._micro_batch_size):
            batch = self._stream.batch(self._indices[start : start + self._micro_batch_size])
            inputs = model_inputs(batch, self._device)
            logits = engine(**inputs).logits
            flat = inputs["labels"].flatten()
            nats = functional.cross_entropy(
                logits.float().flatten(0, 1), flat, reduction="none", ignore_index=IGNORED_LABEL
            ).double()
            counted = flat >= 0
            is_text = counted & self._is_text[flat.clamp(min=0)]
            for place, chosen in ((0, counted), (2, is_text)):
                totals[place] += nats[chosen].sum()
                totals[place + 1] += chosen.sum()
        engine.train()
        dist.all_reduce(totals)
        nats_all, count_all, nats_text, count_text = totals.tolist()
        return {
            "eval/heldout/loss": nats_all / count_all,
            "eval/heldout/text_loss": nats_text / count_text,
            "eval/heldout/unigram_loss": self.unigram_loss,
            "eval/heldout/unigram_text_loss": self.unigram_text_loss,
        }
