"""Names of the folders of runs: `<recipe>-<UTC time>`, and a number if several runs began in the same second."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterator

RUN_NAME = re.compile(r"^(?P<recipe>.*)-(?P<time>\d{8}-\d{6})(?:-(?P<number>\d+))?$")


def new_names(recipe: str) -> Iterator[str]:
    """Yield names for a run that begins now, to be tried in this order."""
    name = f"{recipe}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def run_order(name: str) -> tuple[str, int]:
    """Return the time and the number in the name of a run's folder, to sort by."""
    match = RUN_NAME.match(name)
    return (match["time"], int(match["number"] or 1)) if match else ("", 0)
