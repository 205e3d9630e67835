"""Radial power spectra of images and their distance: blur and ringing, without a detector."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.files import UserError


def spectrum_distance(mean: Tensor, reference: Tensor) -> tuple[float, Tensor]:
    """Root mean square over frequencies of the difference of two mean log spectra [K], in decibels, and its gradient [K]."""
    if mean.shape != reference.shape:
        raise UserError(f"spectra of {len(mean)} and {len(reference)} frequencies are of different image sizes")
    difference = mean.double() - reference.double()
    value = float(difference.square().mean().sqrt())
    return value, difference / (len(difference) * value) if value > 0 else torch.zeros_like(difference)


def log_spectrum(images: Tensor) -> Tensor:
    """Radial power spectrum of images in decibels; needs no detector and works on rectangles.

    The image's mean is taken off, a separable Hann window is applied (the edges of a photograph do not meet, and without a
    window that step would cover the high frequencies), and |FFT|^2 is divided by the window's energy: grey levels squared,
    white noise of variance v gives v at every frequency. Channels are averaged. Frequency is sqrt(fy^2 + fx^2) in cycles
    per pixel, fy = row / H, fx = column / W, so that it means the same on both axes of a rectangle; bin b = 1 .. K holds
    what rounds to b / min(H, W), with K = min(H, W) // 2, so that the last one ends at the Nyquist frequency. Before
    the logarithm 1/12 is added, the variance of rounding to whole grey levels, below which nothing can be measured.

    Args:
        images: uint8 [n, C, H, W].

    Returns:
        10 log10(power), float32 [n, K].
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    bins = short // 2
    device = images.device
    window = torch.hann_window(height, dtype=torch.float64, device=device)[:, None] * torch.hann_window(
        width, dtype=torch.float64, device=device
    )
    frequency = torch.hypot(
        torch.fft.fftfreq(height, dtype=torch.float64, device=device)[:, None],
        torch.fft.rfftfreq(width, dtype=torch.float64, device=device)[None, :],
    )
    # A real image has a symmetric spectrum; every column but the first (and, for even widths, the last) stands for two.
    weight = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weight[0] = 1
    if width % 2 == 0:
        weight[-1] = 1
    index = (frequency * short).round().long()
    inside = (index >= 1) & (index <= bins)
    index, weight = (index[inside] - 1), weight.expand(height, -1)[inside]
    share = torch.zeros(bins, dtype=torch.float64, device=device).index_add_(0, index, weight)
    x = images.to(torch.float32)
    x = (x - x.mean(dim=(-2, -1), keepdim=True)) * window.float()
    power = torch.fft.rfft2(x).abs().square().double().mean(dim=1) / window.square().sum()  # [n, H, W // 2 + 1]
    binned = torch.zeros(len(images), bins, dtype=torch.float64, device=device)
    binned.index_add_(1, index, power[:, inside] * weight)
    return (10 * (binned / share + 1 / 12).log10()).float()
