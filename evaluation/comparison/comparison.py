"""A comparison of methods as it came out: rows, their values over seeds, and what each took."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evaluation.backbone_table import Cell, MetricColumn, columns_of, leading, told
from evaluation.comparison.cost import Cost, Point, cost, price, steps_to, total
from evaluation.comparison.significance import Ranking, advice, standing
from evaluation.measurement import FILE, Measurement, best_of
from pipeline.recipe.comparison import NO_STAGE, SUPERVISED, TRIAL, Trial, comparison_of, row_name
from pipeline.recipe.stage import SCRATCH
from pipeline.steps.artifact import Artifact, read_json

VIEWED = "views_seen"
"""The count of views that went through all steps, where an image has several."""


class ComparisonSetting(NamedTuple):
    """What rows have in common: the backbone, the share of the images, and the steps; None for rows without a stage."""

    backbone: str
    share: float | None
    steps: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A method from a start in one setting: values by column and seed, what one training took, the median, and how many
    views of images it saw.
    """

    method: str
    start: str
    setting: ComparisonSetting
    values: Mapping[MetricColumn, Mapping[int, float]]
    cost: Cost
    views: int = 0

    @property
    def name(self) -> str:
        """What it is called, in words."""
        return row_name(self.method, self.start)

    @property
    def is_plain(self) -> bool:
        """Whether it does without any training on these images."""
        return self.method == NO_STAGE

    @property
    def is_supervised(self) -> bool:
        """Whether it was trained on all labels of these images."""
        return self.method == SUPERVISED

    @property
    def has_method(self) -> bool:
        """Whether it is that of a self-supervised method."""
        return not self.is_plain and not self.is_supervised

    def cell(self, column: MetricColumn) -> Cell | None:
        """The values over the seeds, in their order."""
        found = self.values.get(column)
        return Cell(tuple(found[seed] for seed in sorted(found))) if found else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows of a comparison on one split of a set."""

    name: str
    rows: Sequence[Row]
    columns: Sequence[MetricColumn]
    better: Mapping[str, str]
    about: Mapping[str, str]
    place: str
    counts: Mapping[MetricColumn, int]
    """How many images a column was measured on."""
    base: Mapping[str, Cost]
    """What it took to come by each start, by its name."""

    @property
    def n(self) -> int:
        """How many images the first column was measured on."""
        return self.counts[self.columns[0]]

    def settings(self) -> list[ComparisonSetting]:
        """Those of rows with a stage, in their order."""
        return list(dict.fromkeys(row.setting for row in self.rows if row.setting.steps is not None))

    def side_by_side(self, setting: ComparisonSetting) -> list[Row]:
        """The rows of a setting, and those without a stage on its backbone."""
        plain = ComparisonSetting(setting.backbone, None, None)
        return [row for row in self.rows if row.setting in (plain, setting)]

    def change(self, row: Row, column: MetricColumn) -> Cell | None:
        """How far a method is above the first one from the same start in the same setting, seed by seed: HPT's change
        from the own baseline. None for the first one itself, and for rows without a method.
        """
        mine = [
            other
            for other in self.rows
            if other.has_method and (other.start, other.setting) == (row.start, row.setting) and other.cell(column)
        ]
        if not row.has_method or not mine or row is mine[0] or row not in mine:
            return None
        own, first = row.values[column], mine[0].values[column]
        seeds = sorted(own.keys() & first.keys())
        return Cell(tuple(own[seed] - first[seed] for seed in seeds)) if seeds else None

    def standing(self, setting: ComparisonSetting, column: MetricColumn) -> Ranking:
        """How the rows of a setting compare by a metric that is a share, but for those that were trained on all labels:
        they are no choice for who has few.
        """
        rows = [row for row in self.side_by_side(setting) if not row.is_supervised]
        found = {row.name: cell.values for row in rows if (cell := row.cell(column))}
        fewest = min(len(values) for values in found.values())
        return standing({name: values[:fewest] for name, values in found.items()}, self.counts[column])

    def advice(self) -> list[str]:
        """A sentence for each backbone, by the first column of a share, for most images and most steps. Nothing is said
        of angles.
        """
        shares = [column for column in self.columns if self.better[column.metric] == "higher"]
        backbones = dict.fromkeys(setting.backbone for setting in self.settings())
        return [self._advice(backbone, shares[0]) for backbone in backbones] if shares else []

    def _advice(self, backbone: str, column: MetricColumn) -> str:
        mine = [setting for setting in self.settings() if setting.backbone == backbone]
        most = max(mine, key=lambda setting: (setting.share or 0, setting.steps or 0))
        rows = self.side_by_side(most)
        plain = [row.name for row in rows if row.is_plain]
        length = f"{most.steps:,} steps on {most.share:.0%} of the images"
        where = f"{self.name}: {backbone} on {self.place} by {column.protocol} with {column.labels:,} labels, {length}"
        also = [
            f" With all labels, {row.name!r} comes to {100 * cell.mean:.1f} %."
            for row in rows
            if row.is_supervised and (cell := row.cell(column))
        ]
        return advice(self.standing(most, column), plain, where) + "".join(also)

    def wanted(self, backbone: str, share: float | None, column: MetricColumn) -> float | None:
        """The best mean of all that starts from scratch and knows no labels, untrained or after a stage; None if there
        is none.
        """
        means = [
            cell.mean
            for row in self.rows
            if row.start == SCRATCH and not row.is_supervised
            if row.setting.backbone == backbone and row.setting.share in (None, share)
            if (cell := row.cell(column))
        ]
        wanted: float | None = best_of(self.better[column.metric])(means, default=None)
        return wanted

    def cost_to_reach(self, name: str, setting: ComparisonSetting, column: MetricColumn, wanted: float) -> Cost | None:
        """What the shortest training of a row takes to come to a mean; None if none does."""
        mine = [
            row
            for row in self.rows
            if row.name == name
            and row.setting.backbone == setting.backbone
            and row.setting.share in (None, setting.share)
        ]
        points = [(Point(row.cost, cell.mean), row.cost) for row in mine if (cell := row.cell(column))]
        fewest = steps_to((point for point, _ in points), wanted, self.better[column.metric])
        return None if math.isinf(fewest) else next(each for _, each in points if each.steps == fewest)


def read_comparisons(artifacts: Mapping[str, Artifact]) -> dict[str, Comparison]:
    """The comparisons among the artifacts of a run, by name, but for those of which no number came."""
    groups: dict[str, list[Artifact]] = {}
    for made in artifacts.values():
        name = comparison_of(made.section)
        if name and TRIAL in made.manifest["config"] and made.counts["records"]:
            groups.setdefault(name, []).append(made)
    return {name: _read(name, measured, artifacts) for name, measured in groups.items()}


def _read(name: str, measured: Sequence[Artifact], artifacts: Mapping[str, Artifact]) -> Comparison:
    records = {made.fingerprint: [Measurement(**each) for each in made.load(FILE, read_json)] for made in measured}
    every = leading(record for found in records.values() for record in found)
    rows: dict[tuple[str, str, ComparisonSetting], list[Artifact]] = {}
    for made in measured:
        trial = Trial(**made.manifest["config"][TRIAL])
        setting = ComparisonSetting(trial.backbone, trial.share, trial.steps)
        rows.setdefault((trial.method, trial.start, setting), []).append(made)
    return Comparison(
        name=name,
        rows=[Row(*key, _values(found, records), *_trained(found, artifacts)) for key, found in rows.items()],
        columns=columns_of(every),
        better={record.metric: record.better for record in every},
        about=told(every),
        place=f"{every[0].dataset}/{every[0].split}",
        counts={MetricColumn.of(record): record.n for record in every},
        base=_bases(measured, artifacts),
    )


def advised(artifacts: Mapping[str, Artifact]) -> list[str]:
    """The sentences of advice of all comparisons."""
    return [sentence for found in read_comparisons(artifacts).values() for sentence in found.advice()]


def _values(
    made: Iterable[Artifact], records: Mapping[str, Sequence[Measurement]]
) -> dict[MetricColumn, dict[int, float]]:
    """By column and seed."""
    values: dict[MetricColumn, dict[int, float]] = {}
    for each in made:
        seed = each.manifest["config"][TRIAL]["seed"]
        for record in records[each.fingerprint]:
            values.setdefault(MetricColumn.of(record), {})[seed] = record.value
    return values


def _trained(made: Iterable[Artifact], artifacts: Mapping[str, Artifact]) -> tuple[Cost, int]:
    """What one training for this row itself took, by the median of its seeds, and how many views it saw."""
    steps = [each.manifest["config"]["start"]["step"] for each in made]
    trained = [artifacts[step] for step in dict.fromkeys(steps) if step and comparison_of(artifacts[step].section)]
    if not trained:
        return Cost(), 0
    costs = [cost(each) for each in trained]
    took = dataclasses.replace(costs[0], seconds=statistics.median(each.seconds for each in costs))
    return took, trained[0].counts.get(VIEWED, took.images)


def _bases(measured: Iterable[Artifact], artifacts: Mapping[str, Artifact]) -> dict[str, Cost]:
    """What the starts took, with all that they build on."""
    found = {}
    for made in measured:
        config = made.manifest["config"]
        step = config["start"]["step"]
        if config[TRIAL]["method"] == NO_STAGE and step:
            found[config[TRIAL]["start"]] = total(price(artifacts[step], artifacts))
    return found
