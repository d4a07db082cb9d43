"""How a model writes summaries: beam search, and how long they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import GenerationConfig

from finetune.errors import FinetuneError
from spade_model.huggingface import SpadePretrainedConfig


@dataclass(frozen=True, kw_only=True)
class WritingSettings:
    """What the user chooses of the search.

    Raises:
        FinetuneError: A value is impossible.
    """

    beams: int = 4
    """Texts that are followed at once; 1 is greedy search."""
    length_penalty: float = 1.0
    """Power of the length by which a beam's log-likelihood is divided: above 0 favours longer
    summaries, below 0 shorter ones."""
    no_repeat_ngram: int = 0
    """Tokens in a row that no summary has twice; 0: no limit."""
    min_summary_tokens: int = 0
    """Tokens before a summary may end."""
    max_summary_tokens: int | None = None
    """Tokens after which a summary is cut; None: as many as the decoder takes."""

    def __post_init__(self) -> None:
        for name, least in (
            ("beams", 1),
            ("no_repeat_ngram", 0),
            ("min_summary_tokens", 0),
            ("max_summary_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise FinetuneError(f"{name} is {value}: use {least} or more")
        if not math.isfinite(self.length_penalty):
            raise FinetuneError(f"length_penalty is {self.length_penalty}: use a finite number")

    def most_tokens(self, config: SpadePretrainedConfig) -> int:
        """Return after how many tokens a model's summaries are cut.

        Raises:
            FinetuneError: The decoder does not take as many, or fewer than the minimum.
        """
        limit: int = config.max_target_length_tokens
        most = limit if self.max_summary_tokens is None else self.max_summary_tokens
        if most > limit:
            raise FinetuneError(
                f"max_summary_tokens is {most}: the model's decoder takes {limit} at most "
                "(max_target_length_tokens in its config.json)"
            )
        if self.min_summary_tokens >= most:
            raise FinetuneError(
                f"min_summary_tokens is {self.min_summary_tokens}: use less than {most}, the most "
                "that a summary may have"
            )
        return most

    def for_model(self, config: SpadePretrainedConfig) -> GenerationConfig:
        """Return all of this as `generate` takes it; nothing is left to a model's own defaults."""
        return GenerationConfig(
            do_sample=False,
            num_beams=self.beams,
            length_penalty=self.length_penalty,
            early_stopping=False,
            no_repeat_ngram_size=self.no_repeat_ngram,
            repetition_penalty=1.0,
            min_new_tokens=self.min_summary_tokens,
            max_new_tokens=self.most_tokens(config),
            use_cache=True,
            decoder_start_token_id=config.decoder_start_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
