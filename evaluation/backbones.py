"""What the measurements of backbones say: means and deviations over seeds, a table for every set and task."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.measured import ALL, CLEAN, FILE, Measured
from pipeline.artifacts import Artifact, read_json


class Column(NamedTuple):
    """How something was measured: protocol, labels learned from, metric, and on what kind of images."""

    protocol: str
    labels: int
    metric: str
    corruption: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """The values of one start by one column, a value per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Board:
    """All starts on the same images of one set and task; `n` were measured on."""

    dataset: str
    task: str
    split: str
    n: int
    starts: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], Cell]
    better: Mapping[str, str]
    about: Mapping[str, str]
    """What each protocol is."""

    def best(self, column: Column) -> list[str]:
        """The starts with the best mean; several if they are equal."""
        found = {start: self.cells[start, column].mean for start in self.starts if (start, column) in self.cells}
        best = (max if self.better[column.metric] == "higher" else min)(found.values())
        return [start for start, mean in found.items() if mean == best]


def read_measured(artifacts: Mapping[str, Artifact], kinds: Sequence[str] = ("probe", "finetune")) -> list[Measured]:
    """The records of all steps of these kinds."""
    return [
        Measured(**record)
        for name, made in artifacts.items()
        if name.partition(".")[0] in kinds and made.has(FILE)
        for record in made.load(FILE, read_json)
    ]


def boards(records: Iterable[Measured]) -> list[Board]:
    """A board for every set and task. Of every metric of a task the first, its leading one, is on it; of corrupted
    images, the mean over all corruptions.
    """
    groups: dict[tuple[str, str, str, int], list[Measured]] = {}
    for record in records:
        if record.corruption in (CLEAN, ALL):
            groups.setdefault((record.dataset, record.task, record.split, record.n), []).append(record)
    return [_board(place, found) for place, found in groups.items()]


def _board(place: tuple[str, str, str, int], records: Sequence[Measured]) -> Board:
    leading: dict[str, str] = {}
    values: dict[tuple[str, Column], dict[int, float]] = {}
    for record in records:
        if leading.setdefault(record.protocol, record.metric) == record.metric:
            column = Column(record.protocol, record.labels, record.metric, record.corruption)
            values.setdefault((record.start, column), {})[record.seed] = record.value
    columns = sorted({column for _, column in values}, key=lambda c: (c.protocol, c.labels, c.corruption != CLEAN))
    return Board(
        *place,
        starts=tuple(dict.fromkeys(record.start for record in records)),
        columns=tuple(columns),
        cells={key: Cell(tuple(found.values())) for key, found in values.items()},
        better={record.metric: record.better for record in records},
        about={record.protocol: record.about for record in records if record.corruption == CLEAN},
    )


def as_json(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """All records, those of comparisons as well, for those who compute with them."""
    return [record.to_json() for record in read_measured(artifacts, ("probe", "finetune", "compare"))]
