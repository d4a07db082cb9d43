"""UL2: a mixture of seven denoisers, each sample told by a mode token which kind it is.

Source: Tay et al., "UL2: Unifying language learning paradigms", 2022, section 3.1, whose mixture
is, for windows of L tokens:

    R (regular)     mean span 3 or 8, density 0.15
    S (sequential)  one span of L/4 at the end: density 0.25, a prefix language model
    X (extreme)     mean span 3 or 8 at density 0.5; mean span 64 at density 0.15 or 0.5
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import Batch, SpecialTokens, Windows
from data_pipeline.objectives.draws import MAXIMUM_TOKENS, derive
from data_pipeline.objectives.outline import SampleOutline
from data_pipeline.objectives.spans import corrupt_spans, noise_tokens, num_spans, outline_spans
from data_pipeline.permutation import IntegerArray, KeyArray

_PURPOSE_DENOISER_1 = 0x0122
_MODES = "RSX"


@dataclass(frozen=True)
class Denoiser:
    """One of the mixture.

    Attributes:
        mode: R, S or X.
        mean_span_tokens: Mean length of a span; infinity for one span at the end of the window.
        noise_density: Share of a window that is asked for.
    """

    mode: str
    mean_span_tokens: float
    noise_density: float


DENOISERS = (
    Denoiser("R", 3, 0.15),
    Denoiser("R", 8, 0.15),
    Denoiser("S", math.inf, 0.25),
    Denoiser("X", 3, 0.5),
    Denoiser("X", 8, 0.5),
    Denoiser("X", 64, 0.15),
    Denoiser("X", 64, 0.5),
)


@dataclass(frozen=True)
class MixtureOfDenoisers:
    """UL2's objective: each sample's key chooses its denoiser.

    An input begins with its mode token; those for R, S and X are the three lowest sentinels, in
    this order from below. Weights are shares of their sum, and the denoisers of a mode share its
    weight equally, so the defaults give each of the seven the same share. Rows have as many lengths
    as there are denoisers and are padded to the longest of the batch.

    Attributes:
        input_length_tokens: Longest inputs, mode token and end-of-sequence id included.
        r_weight: Weight of regular denoising.
        s_weight: Weight of sequential denoising.
        x_weight: Weight of extreme denoising.
        shortest_mean_span_tokens: Denoisers with shorter spans get spans of this mean, for long
            windows that would need more sentinels than there are.
    """

    input_length_tokens: int
    r_weight: float = 2.0
    s_weight: float = 1.0
    x_weight: float = 4.0
    shortest_mean_span_tokens: float = 3.0

    is_decoder_only = False

    def __post_init__(self) -> None:
        weights = (self.r_weight, self.s_weight, self.x_weight)
        for mode, weight in zip(_MODES, weights, strict=True):
            if not 0 <= weight < math.inf:
                raise DataError(f"{mode.lower()}_weight must be 0 or more, not {weight!r}")
        if not 0 < sum(weights) < math.inf:
            raise DataError("r_weight, s_weight and x_weight are all 0: give one of them a weight")
        if not 1 <= self.shortest_mean_span_tokens < math.inf:
            raise DataError(
                "shortest_mean_span_tokens must be at least 1, not "
                f"{self.shortest_mean_span_tokens!r}"
            )
        if self.input_length_tokens < 8:
            raise DataError(
                f"input_length_tokens must be at least 8 for ul2, not {self.input_length_tokens}"
            )
        if self.window_tokens >= MAXIMUM_TOKENS:
            raise DataError(
                f"input_length_tokens {self.input_length_tokens} needs windows of "
                f"{self.window_tokens} tokens: choose it for less than {MAXIMUM_TOKENS}"
            )

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """How often each of `DENOISERS` is chosen, in the long run."""
        weight = {"R": self.r_weight, "S": self.s_weight, "X": self.x_weight}
        total = sum(weight.values())
        count = {mode: sum(one.mode == mode for one in DENOISERS) for mode in _MODES}
        return tuple(weight[one.mode] / count[one.mode] / total for one in DENOISERS)

    @cached_property
    def _densities(self) -> npt.NDArray[np.float64]:
        return np.array([one.noise_density for one in DENOISERS])

    @cached_property
    def _means(self) -> npt.NDArray[np.float64]:
        shortest = self.shortest_mean_span_tokens
        return np.array([max(one.mean_span_tokens, shortest) for one in DENOISERS])

    @cached_property
    def _in_use(self) -> IntegerArray:
        return np.flatnonzero(np.array(self.shares) > 0)

    @cached_property
    def window_tokens(self) -> int:
        """Length of the windows: the longest with no input longer than allowed."""
        low, high = 2, 4
        while self._lengths(high)[0] <= self.input_length_tokens:
            low, high = high, 2 * high
        # No input gets shorter when the window gets longer.
        while high - low > 1:
            middle = (low + high) // 2
            if self._lengths(middle)[0] <= self.input_length_tokens:
                low = middle
            else:
                high = middle
        return low

    @cached_property
    def target_length_tokens(self) -> int:
        """Length of the longest targets, their end-of-sequence id included."""
        return self._lengths(self.window_tokens)[1]

    @cached_property
    def spans(self) -> int:
        """Most spans in a window: so many sentinels are needed, and three for the modes."""
        return self._lengths(self.window_tokens)[2]

    def _lengths(self, window_tokens: int) -> tuple[int, int, int]:
        """Longest input, longest target and most spans of a window, over the denoisers in use."""
        lengths = np.full(len(self._in_use), window_tokens)
        noise, spans = self._noise_and_spans(lengths, self._in_use)
        inputs, targets = lengths - noise + spans + 2, noise + spans + 1
        return int(inputs.max()), int(targets.max()), int(spans.max())

    def _noise_and_spans(
        self, lengths: IntegerArray, denoisers: IntegerArray
    ) -> tuple[IntegerArray, IntegerArray]:
        noise = noise_tokens(lengths, self._densities[denoisers])
        # One span of corrupted tokens ends the row, as every last span does.
        return noise, num_spans(lengths, noise, self._means[denoisers])

    def check_vocabulary(self, vocab: SpecialTokens) -> None:
        """Makes sure that every span gets a sentinel of its own, and every mode one.

        Raises:
            DataError: If they are too few.
        """
        needed = self.spans + len(_MODES)
        if vocab.sentinel_count < needed:
            raise DataError(
                f"the tokenizer has {vocab.sentinel_count} sentinels, but ul2 with inputs of up to "
                f"{self.input_length_tokens} tokens and shortest_mean_span_tokens "
                f"{self.shortest_mean_span_tokens:g} needs {self.spans} for spans and "
                f"{len(_MODES)} for modes: train a tokenizer with at least {needed} sentinels, or "
                "raise shortest_mean_span_tokens"
            )

    def denoisers(self, sample_keys: KeyArray) -> IntegerArray:
        """Which of `DENOISERS` each sample gets, from its key [n] alone: int64 [n]."""
        bounds = np.cumsum(self.shares)[:-1]
        # 53 bits are what a float holds exactly.
        draws = (derive(sample_keys, _PURPOSE_DENOISER_1) >> np.uint64(11)) / 2.0**53
        # A share of nothing stays nothing where rounding left the last bound below one.
        chosen: IntegerArray
        chosen = np.minimum(np.searchsorted(bounds, draws, side="right"), self._in_use[-1])
        return chosen

    def outline(
        self, lengths: IntegerArray, sample_keys: KeyArray, vocab: SpecialTokens
    ) -> SampleOutline:
        """Draws denoisers and spans; see `Objective.outline`."""
        assert lengths.max(initial=0) <= self.window_tokens
        denoisers = self.denoisers(sample_keys)
        noise, spans = self._noise_and_spans(lengths, denoisers)
        mode = np.array([_MODES.index(one.mode) for one in DENOISERS])[denoisers]
        lowest = vocab.vocab_size - vocab.sentinel_count
        return outline_spans(lengths, noise, spans, sample_keys, prefix_ids=lowest + mode)

    def make(self, windows: Windows, sample_keys: KeyArray, vocab: SpecialTokens) -> Batch:
        """Corrupts windows; see `Objective.make`."""
        return corrupt_spans(windows, self.outline(windows.lengths, sample_keys, vocab), vocab)
