"""Check the fields of a label space, as read from JSON, that are of regression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.errors import DataError

STATISTICS = ("mean", "std")
"""Fields of a label space that hold a number for each channel."""


def are_of_regression(fields: Mapping[Any, Any], channels: int) -> bool:
    """Return True if those of the fields beside task, classes and scale that label spaces have are of their types.

    `channels`: how many numbers there are of each statistic.
    """
    of_types = isinstance(fields.get("unit", ""), str) and isinstance(fields.get("aligned", True), bool)
    numbers = [fields[name] for name in STATISTICS if name in fields]
    are_numbers = all(
        isinstance(each, list) and len(each) == channels and all(isinstance(one, float | int) for one in each)
        for each in numbers
    )
    return of_types and are_numbers and len(numbers) != 1


def check_statistics(fields: Mapping[Any, Any]) -> None:
    """Raise DataError unless each mean is finite, and each standard deviation finite and above 0."""
    for name in STATISTICS:
        for channel, number in enumerate(fields.get(name, ())):
            if not math.isfinite(number) or (name == "std" and number <= 0):
                wanted = "a finite number above 0" if name == "std" else "a finite number"
                raise DataError(f"the label space's {name} of channel {channel} is {number!r}, not {wanted}.")
