"""A step that was taken: its losses, read once the device has computed them, so that neither waits for the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.training.transfer import HostCopy

TOTAL = "the combined loss"


class PassResult(NamedTuple):
    """The outcome of one forward and backward pass."""

    keys: list[str]
    """Its images."""
    losses: Mapping[str, Tensor]
    """By name, its part of the losses of the whole batch: scalars, detached; TOTAL is their combination."""


class TakenStep:
    """An optimiser step that the device may still be busy with, in one process.

        taken = TakenStep(7, passes, norm, {"lr": 0.1})  # returns at once
        ...                                              # gives the device more work
        taken.losses()                                   # waits for this step, and not for the work given since

    `line` is what the log says of it besides.
    """

    def __init__(self, number: int, passes: Sequence[PassResult], norm: Tensor, line: Mapping[str, Any]) -> None:
        self.number, self.line, self._passes = number, line, passes
        numbers = [norm, *(loss for one in passes for loss in one.losses.values())]
        self._numbers = HostCopy(torch.stack([number.detach().float().reshape(()) for number in numbers]))

    @property
    def keys(self) -> list[str]:
        """The images of this process."""
        return [key for one in self._passes for key in one.keys]

    @property
    def norm(self) -> float:
        """Length of the gradient of the whole batch, before it was clipped."""
        return float(self._numbers.read()[0])

    def losses(self) -> dict[str, float]:
        """Return by name this process's part of the losses. Raises DataError with the images if one is not finite."""
        numbers = iter(self._numbers.read()[1:].tolist())
        losses = [{name: next(numbers) for name in one.losses} for one in self._passes]
        for one, values in zip(self._passes, losses, strict=True):
            self.check_finite(values[TOTAL], "loss", one.keys)
        return sum_by_key(losses)

    def check_finite(self, value: float, what: str, keys: Sequence[str]) -> None:
        """Raise DataError, naming step and images, unless the value is finite."""
        if not math.isfinite(value):
            raise DataError(
                f"the {what} is {value} at step {self.number}. Images of the batch: {', '.join(keys)}. "
                "A smaller lr, or leaving these images out, may help."
            )


def sum_by_key(mappings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum the values of each key over the mappings."""
    sums: dict[str, float] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums
