"""Long convolutions by FFT: one transform for both directions, at a length that is fast.

``y[t] = sum_j past[j] u[t - j] + sum_j future[j] u[t + 1 + j] + D u[t]``, j from 0. The future
kernel is laid backwards at the end of a circle that is long enough for nothing to wrap around, so
both directions cost one product of spectra.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_BLOCK = 1 << 19
"""Numbers in one signal block on a CPU: a few blocks fit into its cache together."""
_DEVICE_BLOCK = 1 << 27
"""Numbers in one signal block elsewhere: large enough to keep a GPU busy, half a gigabyte."""


def fast_fft_length(minimum: int) -> int:
    """Return the smallest even number of at least `minimum` whose prime factors are 2, 3, 5.

    Of a symbolic length, as in `torch.export`, just the next even number.
    """
    if isinstance(minimum, torch.SymInt):
        return minimum + minimum % 2
    best = 2
    while best < minimum:
        best *= 2
    power_of_5 = 1
    while power_of_5 < best:
        product = power_of_5
        while product < best:
            length = 2 * product
            while length < minimum:
                length *= 2
            best = min(best, length)
            product *= 3
        power_of_5 *= 5
    return best


def convolution_fft_length(length_tokens: int, kernel_length: int) -> int:
    """Return the length of the circle on which a signal and kernels of these lengths meet."""
    return fast_fft_length(length_tokens + min(length_tokens, kernel_length))


@torch.no_grad()
def kernel_spectrum(kernel: Tensor, length_tokens: int) -> Tensor:
    """Transform kernels for signals of a length.

    Args:
        kernel: [directions, G, Lk], past and perhaps future; what lies beyond L is not used.
        length_tokens: L.

    Returns:
        [G, F] complex, with F frequencies of `convolution_fft_length`.
    """
    fft_length = convolution_fft_length(length_tokens, kernel.shape[-1])
    kernel = kernel[..., :length_tokens]
    if kernel.shape[0] == 1:
        causal: Tensor = torch.fft.rfft(kernel[0], n=fft_length)
        return causal
    taps = kernel.shape[-1]
    spectrum = kernel.new_empty(
        kernel.shape[1], fft_length // 2 + 1, dtype=_complex_type(kernel.dtype)
    )
    for part in _feature_blocks(kernel[0], fft_length, kernel.shape[1]):
        circle = kernel.new_zeros(part.stop - part.start, fft_length)
        circle[:, :taps] = kernel[0, part]
        circle[:, fft_length - taps :] = kernel[1, part].flip(-1)
        spectrum[part] = torch.fft.rfft(circle)
    return spectrum


def _complex_type(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def _feature_blocks(signal: Tensor, signal_numbers: int, num_features: int) -> Iterator[slice]:
    """Cut the features into blocks whose signals fit the memory that is fast."""
    if isinstance(signal_numbers, torch.SymInt):
        yield slice(0, num_features)
        return
    limit = _CPU_BLOCK if signal.device.type == "cpu" else _DEVICE_BLOCK
    width = max(16, limit // signal_numbers)
    for start in range(0, num_features, width):
        yield slice(start, min(start + width, num_features))


def _signal(hidden: Tensor, valid: Tensor | None, part: slice, dtype: torch.dtype) -> Tensor:
    """Copy some features of [B, L, H] as a signal [B, h, L], zero where padded."""
    u = hidden[:, :, part].transpose(1, 2)
    u = u.to(dtype, memory_format=torch.contiguous_format, copy=True)
    return u if valid is None else u.masked_fill_(~valid[:, None], 0)


class _Convolution(torch.autograd.Function):
    """The convolution and its adjoint, a block of features at a time.

    Beside the spectrum of the kernel only the input is kept for the backward pass, which somebody
    else keeps as well; transforming it once more is cheaper than the memory of its spectrum. With
    spectra U, K, G of input, kernel and output gradient, the gradients are ``irfft(G K*)`` and
    ``irfft(sum_batch G U*)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        valid: Tensor | None,
        kernel: Tensor | None,
        spectrum: Tensor | None,
        skip: Tensor,
        kernel_length: int,
    ) -> Tensor:
        length, num_features = hidden.shape[1:]
        fft_length = convolution_fft_length(length, kernel_length)
        if spectrum is None:
            assert kernel is not None
            spectrum = kernel_spectrum(kernel, length)
        dtype = spectrum.real.dtype
        channels = spectrum.view(-1, num_features, spectrum.shape[-1])
        skips = skip.to(dtype).view(-1, num_features)
        output = hidden.new_empty(*hidden.shape[:2], spectrum.shape[0])
        for part in _feature_blocks(hidden, hidden.shape[0] * fft_length, num_features):
            u = _signal(hidden, valid, part, dtype)
            U = torch.fft.rfft(u, n=fft_length)
            for channel, K in enumerate(channels):
                last = channel == len(channels) - 1
                product = U.mul_(K[part]) if last else U * K[part]
                y = torch.fft.irfft(product, n=fft_length)[..., :length]
                y.addcmul_(u, skips[channel, part, None])
                start = channel * num_features + part.start
                stop = channel * num_features + part.stop
                output[:, :, start:stop] = y.transpose(1, 2)
        needs_input = ctx.needs_input_grad[2] or ctx.needs_input_grad[4]
        ctx.save_for_backward(
            hidden if needs_input else None,
            valid,
            spectrum if ctx.needs_input_grad[0] else None,
            skip,
        )
        ctx.facts = (
            hidden.shape,
            hidden.dtype,
            dtype,
            fft_length,
            None if kernel is None else kernel.shape,
        )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, valid, spectrum, skip = ctx.saved_tensors
        shape, hidden_dtype, dtype, fft_length, kernel_shape = ctx.facts
        length, num_features = shape[1:]
        to_hidden, to_kernel, to_skip = (ctx.needs_input_grad[i] for i in (0, 2, 4))
        hidden_gradient = gradient.new_empty(shape if to_hidden else 0, dtype=hidden_dtype)
        # Beyond the signal's length the kernel was not used.
        kernel_gradient = gradient.new_zeros(kernel_shape if to_kernel else 0, dtype=dtype)
        skip_gradient = gradient.new_empty(skip.shape if to_skip else 0, dtype=dtype)
        skips = skip.to(dtype)
        for part in _feature_blocks(gradient, shape[0] * fft_length, num_features):
            width = part.stop - part.start
            if to_hidden:
                spectra = spectrum.new_zeros(shape[0], width, spectrum.shape[-1])
                direct = gradient.new_zeros(shape[0], width, length, dtype=dtype)
            if to_kernel or to_skip:
                u = _signal(hidden, valid, part, dtype)
            if to_kernel:
                U = torch.fft.rfft(u, n=fft_length).conj_physical_()
            for first in range(part.start, gradient.shape[-1], num_features):
                place = slice(first, first + width)  # The same features of each channel.
                g = _signal(gradient, None, place, dtype)
                if to_skip:
                    skip_gradient[place] = (g * u).sum(dim=(0, 2))
                G = torch.fft.rfft(g, n=fft_length)
                if to_kernel:
                    correlation = torch.fft.irfft((G * U).sum(dim=0), n=fft_length)
                    _store_taps(kernel_gradient[:, place, :length], correlation)
                if to_hidden:
                    spectra.addcmul_(G, spectrum[place].conj())
                    direct.addcmul_(g, skips[place, None])
            if to_hidden:
                through = torch.fft.irfft(spectra, n=fft_length)[..., :length].add_(direct)
                if valid is not None:
                    through.masked_fill_(~valid[:, None], 0)
                hidden_gradient[:, :, part] = through.transpose(1, 2)
        return (
            hidden_gradient if to_hidden else None,
            None,
            kernel_gradient if to_kernel else None,
            None,
            skip_gradient.to(skip.dtype) if to_skip else None,
            None,
        )


def _store_taps(kernel_gradient: Tensor, correlation: Tensor) -> None:
    """Take the gradients of all taps [directions, h, taps] from the circle [h, n]."""
    taps = kernel_gradient.shape[-1]
    kernel_gradient[0] = correlation[:, :taps]
    if kernel_gradient.shape[0] == 2:
        kernel_gradient[1] = correlation[:, correlation.shape[-1] - taps :].flip(-1)


def fft_convolution(
    hidden: Tensor,
    kernel: Tensor,
    skip: Tensor,
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """Convolve each feature with its kernels and add the skip.

    Args:
        hidden: [B, L, H], any floating type; computed in that of the kernel.
        kernel: [directions, channels * H, Lk], float32 or float64: past and perhaps future;
            channel c of feature h is row ``c * H + h``. What lies beyond L is not used.
        skip: D [channels * H].
        valid: Bool [B, L], False where the input counts as zero, or None.

    Returns:
        [B, L, channels * H] in the type of `hidden`.
    """
    result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        hidden, valid, kernel, None, skip, kernel.shape[-1]
    )
    return result


def spectral_convolution(
    hidden: Tensor, spectrum: Tensor, skip: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """Convolve as `fft_convolution` does with a constant kernel as long as the input.

    Args:
        hidden: [B, L, H].
        spectrum: From `kernel_spectrum` of kernels of at least L taps, [channels * H, F].
        skip: D [channels * H].
        valid: Bool [B, L] or None.

    Returns:
        [B, L, channels * H] in the type of `hidden`.
    """
    result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        hidden, valid, None, spectrum, skip, hidden.shape[1]
    )
    return result
