"""Signals: Fourier transforms, windows, and the weights of mel bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.importing.table import operator
from graphopt.importing.values import as_tensor, dtype_of, number


def _dft(x: Tensor, length: Any, axis: int, inverse: int, onesided: int) -> Tensor:
    """Of a tensor whose last axis is real and imaginary part (or real alone); so is that of the result."""
    axis %= x.dim()
    real = isinstance(x.shape[-1], int) and x.shape[-1] == 1
    half = bool(onesided)
    if half and inverse:  # half of a spectrum back to a real signal
        return torch.fft.irfft(torch.view_as_complex(x.contiguous()), length, axis).unsqueeze(-1)
    if real and half:
        return torch.view_as_real(torch.fft.rfft(x.squeeze(-1), length, axis))
    signal = torch.complex(x.squeeze(-1), torch.zeros_like(x.squeeze(-1))) if real else torch.view_as_complex(x.contiguous())
    found = torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(signal, length, axis))
    return found.narrow(axis, 0, found.shape[axis] // 2 + 1) if half else found


@operator("DFT", since=17, hosts=True)
def dft_attribute(x: Any, length: Any = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    return _dft(as_tensor(x), None if length is None else number(length), axis, inverse, onesided)


@operator("DFT", since=20, hosts=True)
def dft(x: Any, length: Any = None, axis: Any = None, *, inverse: int = 0, onesided: int = 0) -> Tensor:
    x = as_tensor(x)
    along = x.dim() - 2 if axis is None else number(axis)
    return _dft(x, None if length is None else number(length), along, inverse, onesided)


@operator("STFT", since=17, hosts=True)
def stft(signal: Any, step: Any, window: Any = None, length: Any = None, *, onesided: int = 1) -> Tensor:
    """[batch, frames, bins, 2]: the transform of each frame, weighted by the window."""
    signal, window = as_tensor(signal), as_tensor(window)
    size = window.shape[0] if length is None else number(length)
    real = signal.dim() == 2 or signal.shape[-1] == 1
    flat = signal.reshape(signal.shape[:2]) if real else torch.view_as_complex(signal.contiguous())
    if window is None:
        window = torch.ones(size, dtype=signal.dtype, device=signal.device)
    half = bool(onesided) and real
    found = torch.stft(flat, size, number(step), size, window, center=False, onesided=half, return_complex=True)
    found = torch.view_as_real(found.transpose(1, 2))
    return found.narrow(2, 0, found.shape[2] // 2 + 1) if onesided and not real else found


def _window(size: Any, periodic: int, kind: int, weights: Sequence[float]) -> Tensor:
    """A sum of cosines, computed in float64."""
    count = number(size)
    n = torch.arange(count, dtype=torch.float64)
    angle = 2 * math.pi * n / (count if periodic else count - 1)
    found = torch.zeros_like(n)
    for harmonic, weight in enumerate(weights):
        found = found + weight * torch.cos(harmonic * angle)
    return found.to(dtype_of(kind))


@operator("HannWindow", since=17, hosts=True)
def hann_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(size, periodic, output_datatype, (0.5, -0.5))


@operator("HammingWindow", since=17, hosts=True)
def hamming_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(size, periodic, output_datatype, (25 / 46, -21 / 46))


@operator("BlackmanWindow", since=17, hosts=True)
def blackman_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(size, periodic, output_datatype, (0.42, -0.5, 0.08))


@operator("MelWeightMatrix", since=17, hosts=True)
def mel_weight_matrix(bands: Any, length: Any, rate: Any, lower: Any, upper: Any, *, output_datatype: int = 1) -> Tensor:
    """[bins, bands]: triangles over the bins, between bounds that are equally far apart on the mel scale."""
    count, size, sampling = number(bands), number(length), number(rate)
    low, high = (2595 * math.log10(1 + number(e) / 700) for e in (lower, upper))
    mels = torch.arange(count + 2, dtype=torch.float64) * ((high - low) / (count + 2)) + low
    edges = torch.floor((size + 1) * (700 * (10 ** (mels / 2595) - 1)) / sampling)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(middle == left, (bins == middle).double(), (bins - left) / (middle - left))
    falling = (right - bins) / (right - middle)
    zero = torch.zeros_like(rising)
    before, after = torch.where(bins >= left, rising, zero), torch.where(bins < right, falling, zero)
    return torch.where(bins <= middle, before, after).to(dtype_of(output_datatype))
