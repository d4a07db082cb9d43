"""Long convolutions by FFT: one transform for both directions, at a length that is fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fast_fft_length(minimum: int) -> int:
    """Return the smallest even number of at least `minimum` whose prime factors are 2, 3, 5."""
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


class _CircularConvolution(torch.autograd.Function):
    """``y = irfft(rfft(u) rfft(k))`` with its adjoint written out.

    With spectra U, K, G of input, kernel and output gradient the gradients are
    ``irfft(G K*)`` and ``irfft(sum_batch G U*)``: real transforms throughout, where automatic
    differentiation of rfft and irfft runs complex ones of twice the work.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, fft_length: int) -> Tensor:
        u_spectrum = torch.fft.rfft(u, n=fft_length)
        kernel_spectrum = torch.fft.rfft(kernel, n=fft_length)
        ctx.save_for_backward(u_spectrum, kernel_spectrum)
        ctx.shape = (u.shape[-1], kernel.shape, fft_length)
        y: Tensor = torch.fft.irfft(u_spectrum * kernel_spectrum, n=fft_length)
        return y[..., : u.shape[-1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        u_spectrum, kernel_spectrum = ctx.saved_tensors
        length, kernel_shape, fft_length = ctx.shape
        spectrum = torch.fft.rfft(gradient, n=fft_length)
        u_gradient = kernel_gradient = None
        if ctx.needs_input_grad[0]:
            product = spectrum * kernel_spectrum.conj()
            u_gradient = torch.fft.irfft(product, n=fft_length)[..., :length]
        if ctx.needs_input_grad[1]:
            product = (spectrum * u_spectrum.conj()).sum_to_size(kernel_spectrum.shape)
            kernel_gradient = torch.fft.irfft(product, n=fft_length)[..., : kernel_shape[-1]]
        return u_gradient, kernel_gradient, None


def fft_convolution(u: Tensor, causal_kernel: Tensor, anticausal_kernel: Tensor | None) -> Tensor:
    """Convolve a sequence with a kernel for the past and, if given, one for the future.

    ``y[t] = sum_j causal[j] u[t - j] + sum_j anticausal[j] u[t + 1 + j]``, j from 0. The
    anticausal kernel is laid backwards at the end of the circle, so both directions cost one
    transform; the circle is long enough that nothing wraps around.

    Args:
        u: [..., H, L], float32 or float64.
        causal_kernel: [..., H, Lk], broadcast against u; what lies beyond L is not used.
        anticausal_kernel: [..., H, Lk], the same shape as the causal one, or None.

    Returns:
        [..., H, L].
    """
    length = u.shape[-1]
    kernel = causal_kernel[..., :length]
    fft_length = fast_fft_length(length + kernel.shape[-1])
    if anticausal_kernel is not None:
        future = anticausal_kernel[..., :length]
        gap = kernel.new_zeros(*kernel.shape[:-1], fft_length - 2 * kernel.shape[-1])
        kernel = torch.cat([kernel, gap, future.flip(-1)], dim=-1)
    result: Tensor = _CircularConvolution.apply(u, kernel, fft_length)  # type: ignore[no-untyped-call]
    return result
