"""A teacher that needs no labels and no training: a function of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifacts import Inputs, read_json, write_json
from pipeline.config import TeacherConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning import Predictor


class Config(TeacherConfig):
    """A bank of Gabor filters (Albuquerque et al., arXiv 2003.13525): texture and direction at several scales."""

    kind: Literal["analytic"] = "analytic"
    task: Literal["texture"] = "texture"
    function: Literal["gabor"] = "gabor"
    wavelengths: list[float] = Field(default=[4.0, 8.0], min_length=1)
    """Pixels of the resized image per period."""
    orientations: int = Field(default=4, ge=2)
    """Directions, evenly spread over half a turn."""
    image_size: int = Field(default=128, multiple_of=32, ge=32)


def make(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write down what the function is; there is nothing to learn."""
    from pipeline.labels import LabelSpace

    teacher = Config.model_validate(config["teacher"])
    names = filter_names(teacher)
    write_json(out / "model.json", {"format": "gabor", "head": config["name"], "config": teacher.model_dump()})
    space = LabelSpace("texture", tuple(names)).to_json()
    write_json(out / "teacher.json", {"kind": "analytic", "space": space, "data": None, "schedule": None, "scores": {}})
    return {"filters": len(names)}


def filter_names(teacher: Config) -> list[str]:
    """`<wavelength>@<degrees>` of every filter, wavelengths first."""
    angles = [f"{180 * number / teacher.orientations:g}" for number in range(teacher.orientations)]
    return [f"{wavelength:g}@{angle}" for wavelength in teacher.wavelengths for angle in angles]


def gabor_kernels(wavelength: float, orientations: int) -> Tensor:
    """Quadrature pairs (2 * orientations, 1, k, k): even kernels first; zero mean, unit L1 norm, one-octave envelope.

    Direction a is that of the wave: 0 degrees answers to vertical edges, angles grow counter-clockwise.
    """
    import math

    import torch

    sigma = 0.56 * wavelength
    radius = math.ceil(2.5 * sigma)
    ys, xs = torch.meshgrid(torch.arange(-radius, radius + 1.0), torch.arange(-radius, radius + 1.0), indexing="ij")
    envelope = torch.exp(-(xs**2 + ys**2) / (2 * sigma**2))
    even, odd = [], []
    for number in range(orientations):
        angle = math.pi * number / orientations
        phase = 2 * math.pi * (xs * math.cos(angle) - ys * math.sin(angle)) / wavelength
        wave = envelope * torch.cos(phase)
        wave = wave - envelope * (wave.sum() / envelope.sum())  # no answer to a flat image
        even.append(wave / wave.abs().sum())
        wave = envelope * torch.sin(phase)
        odd.append(wave / wave.abs().sum())
    return torch.stack(even + odd)[:, None]


def load(folder: Path) -> Predictor:
    """The filter bank as a predictor: local energy at a quarter of the input's resolution, on a fixed scale to [0, 1]."""
    import torch
    from torch import nn
    from torch.nn import functional

    from pipeline.labels import LabelSpace
    from tasks.learning import Predictor, Preparation
    from tasks.task import Prediction
    from tasks.texture.model import TaskModel

    about = read_json(folder / "model.json")
    teacher = Config.model_validate(about["config"])

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.ParameterList(
                nn.Parameter(gabor_kernels(wavelength, teacher.orientations), requires_grad=False)
                for wavelength in teacher.wavelengths
            )

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            grey = images.float().mean(dim=1, keepdim=True) / 255
            energies = []
            for kernel in self.kernels:
                radius = kernel.shape[-1] // 2
                padded = functional.pad(grey, (radius,) * 4, mode="reflect")
                even, odd = functional.conv2d(padded, kernel).float().chunk(2, dim=1)
                energies.append(functional.avg_pool2d((even**2 + odd**2).sqrt(), 4))
            return {about["head"]: torch.cat(energies, dim=1)}

    class Measured(TaskModel):
        def predict(self, output: Tensor) -> Prediction:
            return {"responses": (2 * output).clamp(0, 1).sqrt().permute(0, 2, 3, 1)}

    head = Measured(LabelSpace("texture", tuple(filter_names(teacher))))
    return Predictor(Bank(), {about["head"]: head}, Preparation(teacher.image_size))
