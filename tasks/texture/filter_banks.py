"""Filter banks: fixed functions of images, whose responses are texture labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.stores.rasters import DENSE_STRIDE
from tasks.texture.functions import COLORS, EDGE_SCALES, Function


def build_bank(function: Function, wavelengths: Sequence[float], orientations: int) -> nn.Module:
    """Return a function as a module: images (B, 3, S, S) in 0 to 255 -> responses (B, C, S/4, S/4) in [0, 1].

    The C responses are in the order of `response_names`.
    """
    if function == "gabor":
        return GaborBank(wavelengths, orientations)
    if function == "hog":
        return GradientHistograms(orientations)
    return EdgeBank() if function == "edges" else ColorBank()


class BankNetwork(nn.Module):
    """A filter bank as a teacher's network of one head: uint8 images (B, 3, S, S) -> {head: responses}."""

    def __init__(self, head: str, bank: nn.Module) -> None:
        super().__init__()
        self.head, self.bank = head, bank

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.head: self.bank(images)}


class GaborBank(nn.Module):
    """Local energy of Gabor filters, by wavelength and orientation.

    The energy of a quadrature pair does not depend on the phase of the texture. Its square root fills [0, 1] evenly.
    """

    RANGE = 0.5
    """The energy that is mapped to 1; larger ones are clipped."""

    def __init__(self, wavelengths: Sequence[float], orientations: int) -> None:
        super().__init__()
        kernels = [gabor_kernels(wavelength, orientations) for wavelength in wavelengths]
        self.kernels = nn.ParameterList(nn.Parameter(kernel, requires_grad=False) for kernel in kernels)

    def forward(self, images: Tensor) -> Tensor:
        gray = _gray(images)
        energies = []
        for kernel in self.kernels:
            even, odd = _filtered(gray, kernel).chunk(2, dim=1)
            energies.append(F.avg_pool2d((even**2 + odd**2).sqrt(), DENSE_STRIDE))
        return (torch.cat(energies, dim=1) / self.RANGE).clamp(0, 1).sqrt()


class GradientHistograms(nn.Module):
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005): directions of edges in overlapping cells.

    Gradients by central differences vote with their length for the two nearest of so many directions of 180 degrees, in
    cells of 8 pixels, every 4 pixels. A histogram is divided by the root mean square length of those of 3 x 3 cells:
    contrast does not count. 0 degrees are vertical edges, and angles grow counter-clockwise, as those of `GaborBank`.
    """

    FAINT = 0.005
    """Length of a histogram of which half counts: gradients of about one level in 255 say little."""

    def __init__(self, orientations: int) -> None:
        super().__init__()
        self.orientations = orientations

    def forward(self, images: Tensor) -> Tensor:
        gray = F.pad(_gray(images), (1,) * 4, mode="replicate")
        across, down = (
            (gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]) / 2,
            (gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]) / 2,
        )
        turn = torch.atan2(-down, across) / math.pi * self.orientations  # in directions
        numbers = torch.arange(self.orientations, device=images.device).view(1, -1, 1, 1)
        half = self.orientations / 2
        away = ((turn - numbers + half) % self.orientations - half).abs()
        votes = (1 - away).clamp(min=0) * torch.hypot(across, down)
        cells = F.avg_pool2d(votes, 8, DENSE_STRIDE, padding=2, count_include_pad=False)
        energy = F.avg_pool2d((cells**2).sum(dim=1, keepdim=True), 3, 1, padding=1, count_include_pad=False)
        return (cells / (energy + self.FAINT**2).sqrt()).clamp(0, 1)


class EdgeBank(nn.Module):
    """Length of the gradient of the image blurred at several scales; 1 where a step from black to white is.

    The square root fills [0, 1] evenly.
    """

    def __init__(self) -> None:
        super().__init__()
        kernels = [edge_kernels(scale) for scale in EDGE_SCALES]
        self.kernels = nn.ParameterList(nn.Parameter(kernel, requires_grad=False) for kernel in kernels)

    def forward(self, images: Tensor) -> Tensor:
        gray = _gray(images)
        lengths = [_filtered(gray, kernel).norm(dim=1, keepdim=True) for kernel in self.kernels]
        return F.avg_pool2d(torch.cat(lengths, dim=1), DENSE_STRIDE).clamp(0, 1).sqrt()


class ColorBank(nn.Module):
    """Shares of the basic colors: softmax over how near a pixel is to each, averaged over 4 x 4 pixels."""

    SPREAD = 0.15
    """Distance in RGB, with each channel in [0, 1], at which nearness falls to exp(-1/2)."""

    def __init__(self) -> None:
        super().__init__()
        colors = torch.tensor(list(COLORS.values()), dtype=torch.float32) / 255
        self.colors = nn.Parameter(colors, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        # -|x - c|^2 / 2, but for |x|^2, which is the same for all colors and changes no softmax
        nearness = F.conv2d(images.float() / 255, self.colors[:, :, None, None], -(self.colors**2).sum(dim=1) / 2)
        return F.avg_pool2d((nearness / self.SPREAD**2).softmax(dim=1), DENSE_STRIDE)


def _gray(images: Tensor) -> Tensor:
    """Return the mean of the channels of images in 0 to 255: (B, 1, S, S) in [0, 1]."""
    return images.float().mean(dim=1, keepdim=True) / 255


def _filtered(gray: Tensor, kernel: Tensor) -> Tensor:
    """Convolve images (B, 1, S, S) with kernels (C, 1, k, k), mirrored at their border: (B, C, S, S) float32."""
    padded = F.pad(gray, (kernel.shape[-1] // 2,) * 4, mode="reflect")
    return F.conv2d(padded, kernel).float()


def edge_kernels(scale: float) -> Tensor:
    """Return the derivatives of a Gaussian of this standard deviation, pixels, across and down: (2, 1, k, k).

    They are scaled so that a step of 1 has a largest response of 1.
    """
    radius = math.ceil(3 * scale)
    offsets = torch.arange(-radius, radius + 1.0)
    bell = torch.exp(-(offsets**2) / (2 * scale**2))
    slope = -offsets * bell
    down = torch.outer(slope, bell)
    down = down / down[:radius].sum()
    return torch.stack([down.T, down])[:, None]


def gabor_kernels(wavelength: float, orientations: int) -> Tensor:
    """Return quadrature pairs (2 * orientations, 1, k, k), even kernels first: zero mean, unit L1 norm.

    They are about an octave wide; `wavelength` is in pixels. The direction is the wave's: 0 degrees responds to
    vertical edges, and angles grow counter-clockwise.
    """
    sigma = 0.56 * wavelength
    radius = math.ceil(2.5 * sigma)
    ys, xs = torch.meshgrid(torch.arange(-radius, radius + 1.0), torch.arange(-radius, radius + 1.0), indexing="ij")
    envelope = torch.exp(-(xs**2 + ys**2) / (2 * sigma**2))
    even, odd = [], []
    for number in range(orientations):
        angle = math.pi * number / orientations
        phase = 2 * math.pi * (xs * math.cos(angle) - ys * math.sin(angle)) / wavelength
        wave = envelope * torch.cos(phase)
        wave = wave - envelope * (wave.sum() / envelope.sum())  # no response to a flat image
        even.append(wave / wave.abs().sum())
        wave = envelope * torch.sin(phase)
        odd.append(wave / wave.abs().sum())
    return torch.stack(even + odd)[:, None]
