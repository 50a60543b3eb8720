"""What the measurements of backbones say: means and deviations over seeds, a table for every set and task."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.measurement import ALL, CLEAN, FILE, Measurement, best_of
from pipeline.recipe.comparison import TRIAL, comparison_of
from pipeline.steps.artifact import Artifact, read_json


class MetricColumn(NamedTuple):
    """How something was measured: protocol, labels learned from, metric, and on what kind of images."""

    protocol: str
    labels: int
    metric: str
    corruption: str

    @classmethod
    def of(cls, record: Measurement) -> MetricColumn:
        """The one that a record belongs to."""
        return cls(record.protocol, record.labels, record.metric, record.corruption)


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
    columns: tuple[MetricColumn, ...]
    cells: Mapping[tuple[str, MetricColumn], Cell]
    better: Mapping[str, str]
    about: Mapping[str, str]
    """What each protocol is."""

    def best(self, column: MetricColumn) -> list[str]:
        """The starts with the best mean; several if they are equal."""
        found = {start: self.cells[start, column].mean for start in self.starts if (start, column) in self.cells}
        best = best_of(self.better[column.metric])(found.values())
        return [start for start, mean in found.items() if mean == best]


def read_measured(artifacts: Mapping[str, Artifact]) -> list[Measurement]:
    """Return the records of all measurements but those of comparisons."""
    return [record for made in artifacts.values() if not comparison_of(made.section) for record in _records(made)]


def _records(made: Artifact) -> list[Measurement]:
    return [Measurement(**record) for record in made.load(FILE, read_json)] if made.has(FILE) else []


def any_measured(artifacts: Mapping[str, Artifact]) -> bool:
    """Whether any of them holds a record of a backbone."""
    return any(made.has(FILE) and made.counts["records"] for made in artifacts.values())


def boards(records: Iterable[Measurement]) -> list[Board]:
    """A board for every set and task, of what is `leading`."""
    groups: dict[tuple[str, str, str, int], list[Measurement]] = {}
    for record in leading(records):
        groups.setdefault((record.dataset, record.task, record.split, record.n), []).append(record)
    return [_board(place, found) for place, found in groups.items()]


def leading(records: Iterable[Measurement]) -> list[Measurement]:
    """Of all metrics by a protocol the first of each task, its leading one; of corrupted images, the mean over all
    corruptions.
    """
    first: dict[tuple[str, str], str] = {}
    return [
        record
        for record in records
        if first.setdefault((record.protocol, record.task), record.metric) == record.metric
        and record.corruption in (CLEAN, ALL)
    ]


def columns_of(records: Iterable[Measurement]) -> tuple[MetricColumn, ...]:
    """Their columns: by protocol, fewer labels first, corrupted images last."""
    found = dict.fromkeys(map(MetricColumn.of, records))
    return tuple(sorted(found, key=lambda each: (each.protocol, each.labels, each.corruption != CLEAN)))


def told(records: Iterable[Measurement]) -> dict[str, str]:
    """What each protocol is."""
    return {record.protocol: record.about for record in records if record.corruption == CLEAN}


def _board(place: tuple[str, str, str, int], records: Sequence[Measurement]) -> Board:
    values: dict[tuple[str, MetricColumn], dict[int, float]] = {}
    for record in records:
        values.setdefault((record.start, MetricColumn.of(record)), {})[record.seed] = record.value
    return Board(
        *place,
        starts=tuple(dict.fromkeys(record.start for record in records)),
        columns=columns_of(records),
        cells={key: Cell(tuple(found.values())) for key, found in values.items()},
        better={record.metric: record.better for record in records},
        about=told(records),
    )


def as_json(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """All records, those of comparisons as well, for those who compute with them: these with the comparison's name and
    the row, as `trial`, that they belong to.
    """
    found = [record.to_json() for record in read_measured(artifacts)]
    for made in artifacts.values():
        name = comparison_of(made.section)
        if name:
            found += [
                {**record.to_json(), "comparison": name, TRIAL: made.manifest["config"][TRIAL]}
                for record in _records(made)
            ]
    return found
