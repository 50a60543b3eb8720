"""Measurements of backbones as tables: means and deviations over seeds, a table for every set and task."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.learned_labels import MARK, LearnedLabels
from evaluation.measurement import ALL_CORRUPTIONS, CLEAN, MEASUREMENTS_FILE, Measurement, max_or_min
from evaluation.metric_table import undefined_metrics, unmeasured_teachers
from pipeline.recipe.comparison import TRIAL, comparison_of
from pipeline.steps.artifact import Artifact, read_json


class MetricColumn(NamedTuple):
    """A way of measuring: protocol, number of labels, metric, and corruption of the test images."""

    protocol: str
    labels: int
    metric: str
    corruption: str

    @classmethod
    def of(cls, record: Measurement) -> MetricColumn:
        """Return the column that a record belongs to."""
        return cls(record.protocol, record.labels, record.metric, record.corruption)


@dataclasses.dataclass(frozen=True)
class Cell:
    """The values of one backbone in one column, a value per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class BackboneTable:
    """The backbones measured on the same `n` images of one set, for one task."""

    dataset: str
    task: str
    split: str
    n: int
    starts: tuple[str, ...]
    columns: tuple[MetricColumn, ...]
    cells: Mapping[tuple[str, MetricColumn], Cell]
    better: Mapping[str, str]
    about: Mapping[str, str]
    """Protocols in words, by name."""
    trained_on_labels: frozenset[str] = frozenset()
    """The starts that were trained on the set's labels for this task."""

    def row_name(self, start: str, student_start: str | None) -> str:
        """Return a start's name in tables, with what a reader has to know of it."""
        name = f"{start} (the student's start)" if start == student_start else start
        return f"{name} {MARK}" if start in self.trained_on_labels else name

    def best(self, column: MetricColumn) -> list[str]:
        """Return the starts with the best mean, several on a tie."""
        means = {start: self.cells[start, column].mean for start in self.starts if (start, column) in self.cells}
        best = max_or_min(self.better[column.metric])(means.values())
        return [start for start, mean in means.items() if mean == best]


def read_measurements(artifacts: Mapping[str, Artifact]) -> list[Measurement]:
    """Return the records of all measurements but those of comparisons."""
    learned = LearnedLabels(artifacts)
    measured = (made for made in artifacts.values() if not comparison_of(made.section))
    return [record for made in measured for record in records_in(made, learned)]


def records_in(artifact: Artifact, learned: LearnedLabels) -> list[Measurement]:
    """Return the records in an artifact, none if it measured nothing; `learned` marks labels that were trained on."""
    if not artifact.has(MEASUREMENTS_FILE):
        return []
    labels = learned.of(artifact.manifest["config"]["start"]["step"])
    records = [Measurement(**record) for record in artifact.load(MEASUREMENTS_FILE, read_json)]
    return [dataclasses.replace(each, trained_on_labels=(each.dataset, each.task) in labels) for each in records]


def student_start(artifacts: Mapping[str, Artifact]) -> str | None:
    """Return the name in tables of the backbone that the student's training began with; None if it was not measured."""
    if "student" not in artifacts:
        return None
    config = artifacts["student"].manifest["config"]
    wanted = config["student"].get("backbone"), config.get("weights")
    measured = (made.manifest["config"] for made in artifacts.values() if made.kind in ("probe", "finetune"))
    starts = (
        each["start"]["name"] for each in measured if (each["start"].get("backbone"), each.get("weights")) == wanted
    )
    return next(starts, None)


def not_measured(records: Sequence[Mapping[str, Any]], artifacts: Mapping[str, Artifact]) -> list[str]:
    """Return a sentence for all that a run was to measure and did not, given its `metrics.json` and its artifacts."""
    teachers = [name.partition(".")[2] for name, made in artifacts.items() if made.kind == "teacher"]
    unmeasured = unmeasured_teachers(records, teachers) if "evaluate" in artifacts else []
    return [*unmeasured, *undefined_metrics(records), *_unprobed_sets(artifacts)]


def _unprobed_sets(artifacts: Mapping[str, Artifact]) -> list[str]:
    """Return a sentence for each set, or task of it, that was not probed, with the reason."""
    probes = [made for made in artifacts.values() if made.kind == "probe" and "why" in made.counts]
    return list(
        dict.fromkeys(f"Not probed on {each.manifest['config']['set']}: {each.counts['why']}." for each in probes)
    )


def has_measurements(artifacts: Mapping[str, Artifact]) -> bool:
    """Return True if any of the artifacts holds a record of a backbone."""
    return any(made.has(MEASUREMENTS_FILE) and made.counts["records"] for made in artifacts.values())


def backbone_tables(records: Iterable[Measurement]) -> list[BackboneTable]:
    """Return a table of the leading records for every set and task."""
    groups: dict[tuple[str, str, str, int], list[Measurement]] = {}
    for record in leading_records(records):
        groups.setdefault((record.dataset, record.task, record.split, record.n), []).append(record)
    return [_table(key, group) for key, group in groups.items()]


def leading_records(records: Iterable[Measurement]) -> list[Measurement]:
    """Return the records with a protocol's first metric for each task; of corruptions, only the mean over all."""
    first: dict[tuple[str, str], str] = {}
    return [
        record
        for record in records
        if first.setdefault((record.protocol, record.task), record.metric) == record.metric
        and record.corruption in (CLEAN, ALL_CORRUPTIONS)
    ]


def table_columns(records: Iterable[Measurement]) -> tuple[MetricColumn, ...]:
    """Return the columns of the records: by protocol, fewer labels first, corrupted images last."""
    columns = dict.fromkeys(map(MetricColumn.of, records))
    return tuple(sorted(columns, key=lambda column: (column.protocol, column.labels, column.corruption != CLEAN)))


def protocol_descriptions(records: Iterable[Measurement]) -> dict[str, str]:
    """Return the protocols in words, by name."""
    return {record.protocol: record.about for record in records if record.corruption == CLEAN}


def _table(key: tuple[str, str, str, int], records: Sequence[Measurement]) -> BackboneTable:
    values: dict[tuple[str, MetricColumn], dict[int, float]] = {}
    for record in records:
        values.setdefault((record.start, MetricColumn.of(record)), {})[record.seed] = record.value
    return BackboneTable(
        *key,
        starts=tuple(dict.fromkeys(record.start for record in records)),
        columns=table_columns(records),
        cells={key: Cell(tuple(by_seed.values())) for key, by_seed in values.items()},
        better={record.metric: record.better for record in records},
        about=protocol_descriptions(records),
        trained_on_labels=frozenset(record.start for record in records if record.trained_on_labels),
    )


def measurements_json(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Return all records as JSON; those of comparisons also have the `comparison`'s name and the row as `trial`."""
    found, learned = [record.to_json() for record in read_measurements(artifacts)], LearnedLabels(artifacts)
    for made in artifacts.values():
        name, trial = comparison_of(made.section), made.manifest["config"].get(TRIAL)
        if name and trial:
            found += [{**record.to_json(), "comparison": name, TRIAL: trial} for record in records_in(made, learned)]
    return found
