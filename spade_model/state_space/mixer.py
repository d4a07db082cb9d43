"""The slot for a mixer of the whole sequence, and all that mixers share.

A mixer is a linear time-invariant system for each feature, given by the kernel of its response.
To add one, write a file with a subclass of `SequenceMixer` that

1. calls `declare` with the shapes of its tensors in ``__init__``, after ``super().__init__``, and
   then `initialize`;
2. fills them in `initialize`;
3. returns its kernel for any length from `compute_kernel`, differentiable in the parameters;
4. returns its `Recurrence`, diagonal or dense, from `compute_recurrence`;

and name it in one line of `registry`. The convolution, the skip ``D u``, padding, segments,
caching and step-by-step decoding follow from these. `exponential_moving_average` is an example
of a hundred lines.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from spade_model.config import SpadeConfig
from spade_model.state_space.fft_convolution import (
    convolution_fft_length,
    fft_convolution,
    kernel_spectrum,
    spectral_convolution,
)
from spade_model.state_space.kernel_cache import KernelCache
from spade_model.state_space.recurrence import Recurrence
from spade_model.state_space.segments import SegmentLayout
from spade_model.state_space.two_level import outside_autocast

T = TypeVar("T")


class OtherParts(Protocol):
    """Whoever knows the rest of sequences of which a mixer sees a part."""

    def response(self, mixer: SequenceMixer, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """Return what the rest adds to the outputs of a part, [B, L, channels * H].

        Args:
            mixer: Who asks, from its `forward`.
            hidden: Of the part, [B, L, H].
            valid: Bool [B, L], False where padded, or None.
        """


class SequenceMixer(nn.Module, abc.ABC):
    """A state space over a sequence, causal or in both directions.

    ``y[t] = sum_{j>=0} K0[j] u[t-j] + sum_{j>=0} K1[j] u[t+1+j] + D u[t]`` for each feature and
    channel, without K1 if causal. Computed in float32 at least, outside autocast. Gradients reach
    the input in any case.

    What is computed from constants alone is kept: the kernel and its spectrum for two lengths, the
    discretised recurrence. Constant are tensors that are buffers, and in evaluation without
    gradients all of them. `train`, `eval`, loading and moving the module drop what is kept; whoever
    writes to ``parameter.data`` otherwise, calls `forget_kernels`.

    Attributes:
        causal: Whether outputs depend on the past alone.
        num_features: H.
        num_channels: Outputs for each feature; channel c of feature h is at ``c * H + h``.
        num_directions: 1 if causal, else 2: past and future.
        D: [channels * H].
    """

    D: Tensor

    def __init__(self, config: SpadeConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.num_features = config.d_model
        self.num_channels = config.state_space_channels
        self.num_directions = 1 if causal else 2
        self._cache = KernelCache()

    def declare(
        self, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], learned: Collection[str]
    ) -> None:
        """Register empty float32 tensors: parameters of what is learned, buffers of the rest.

        Args:
            shapes: For each quantity that a configuration can name, its tensors.
            learned: Names of quantities.
        """
        for quantity, tensors in shapes.items():
            for name, shape in tensors.items():
                values = torch.empty(shape, dtype=torch.float32)
                if quantity in learned:
                    self.register_parameter(name, nn.Parameter(values))
                else:
                    self.register_buffer(name, values)

    @abc.abstractmethod
    def initialize(self) -> None:
        """Draw the initial weights in place."""

    @abc.abstractmethod
    def compute_kernel(self, length_tokens: int) -> Tensor:
        """Return the kernels [directions, channels * H, L], float32 or float64."""

    @abc.abstractmethod
    def compute_recurrence(self) -> Recurrence:
        """Return the discretised system.

        Of a mixer of both directions it has the outputs of the past, then those of the future,
        K = directions * channels; or, where each has a system of its own, twice the features.
        """

    def kernel(self, length_tokens: int) -> Tensor:
        """Return the kernels [directions, channels * H, L]; they may be kept, so do not write."""
        return self._kept("kernel", length_tokens, lambda: self.compute_kernel(length_tokens))

    def forward(
        self,
        hidden: Tensor,
        valid: Tensor | None,
        segments: SegmentLayout | None = None,
        others: OtherParts | None = None,
    ) -> Tensor:
        """Mix whole sequences, or parts of them.

        Args:
            hidden: [B, L, H].
            valid: Bool [B, L], False where padded, or None. Padded inputs count as zero; outputs
                at padded positions are not.
            segments: Layout of the documents, which then do not see one another, or None.
            others: Whoever knows the rest of the sequences, or None if there is none.

        Returns:
            [B, L, channels * H] in the type of `hidden`.
        """
        with outside_autocast(hidden):
            if segments is not None:
                output = self._mix_segments(hidden, valid, segments)
            else:
                output = self._convolve(hidden, valid)
            if others is None:
                return output
            return output + others.response(self, hidden, valid).to(output.dtype)

    def _convolve(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        length = hidden.shape[1]
        if not self._may_keep():
            return fft_convolution(hidden, self.kernel(length), self.D, valid=valid)
        spectrum = self._kept(
            "spectrum",
            (length, convolution_fft_length(length, length)),
            lambda: kernel_spectrum(self.compute_kernel(length), length),
        )
        return spectral_convolution(hidden, spectrum, self.D, valid=valid)

    def _mix_segments(
        self, hidden: Tensor, valid: Tensor | None, segments: SegmentLayout
    ) -> Tensor:
        if not segments.shapes:
            return hidden.new_zeros(*hidden.shape[:2], self.num_channels * self.num_features)
        kernel = self.kernel(segments.longest)
        groups = [
            fft_convolution(rows, kernel[..., : rows.shape[1]], self.D)
            for rows in segments.gather(hidden, valid)
        ]
        return segments.scatter(groups, hidden.shape)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the state before the first token, a real tensor [B, H, ...] of zeros."""
        return self._recurrence().initial_state(batch_size)

    def prefill(self, hidden: Tensor, valid: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in T tokens at once, as T steps would.

        Args:
            hidden: [B, T, H], T at least 1.
            valid: Bool [B, T] or None. Padded inputs count as zero, time passes nevertheless.
            state: The state before them.

        Returns:
            Outputs [B, T, channels * H] in the type of `hidden`, and the state after them.
        """
        recurrence = self._recurrence()
        with outside_autocast(hidden):
            output = self._convolve(hidden, valid)
            u = hidden.to(state.dtype).transpose(1, 2)
            if valid is not None:
                u = u.masked_fill(~valid[:, None], 0)
            earlier = recurrence.response(state, hidden.shape[1]).flatten(1, 2).transpose(1, 2)
            return output + earlier.to(output.dtype), recurrence.final_state(u, state)

    def step(self, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one token in constant time.

        Args:
            hidden: [B, H].
            state: The state before it.

        Returns:
            Outputs [B, channels * H] in the type of `hidden`, and the state after it.
        """
        recurrence = self._recurrence()
        with outside_autocast(hidden):
            u = hidden.to(state.dtype)
            output, state = recurrence.step(u, state)
            skip = self.D.to(u.dtype).view(self.num_channels, -1) * u[:, None]
            return (output + skip).flatten(1).to(hidden.dtype), state

    def _recurrence(self) -> Recurrence:
        assert self.causal, "a mixer of both directions cannot be stepped"
        return self._kept("recurrence", None, self.compute_recurrence)

    def _kernel_tensors(self) -> list[Tensor]:
        """Everything the kernel depends on, parameters and buffers: all but D."""
        named = [*self._parameters.items(), *self._buffers.items()]
        return [x for name, x in named if name != "D" and x is not None]

    def _may_keep(self) -> bool:
        """Whether what depends on `_kernel_tensors` cannot change before `forget_kernels`."""
        tensors = self._kernel_tensors()
        if torch.compiler.is_compiling() or any(x.is_inference() for x in tensors):
            return False
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return False
        constant = not self._parameters.keys() - {"D"}
        return constant or not self.training

    def _kept(self, kind: str, key: Hashable, compute: Callable[[], T]) -> T:
        def exactly() -> T:
            with outside_autocast(self.D):
                return compute()

        if self._may_keep():
            return self._cache.get(kind, key, self._kernel_tensors(), exactly)
        # Whoever computes gradients is about to change parameters, perhaps through `data`.
        self._cache.clear()
        return exactly()

    def forget_kernels(self) -> None:
        """Drop what is kept; to be called after writing to the ``data`` of a parameter."""
        self._cache.clear()

    def train(self, mode: bool = True) -> SequenceMixer:
        """Switch between training and evaluation as torch does, and drop what is kept."""
        self._cache.clear()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SequenceMixer:
        self._cache.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*arguments)
