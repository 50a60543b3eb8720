"""A comparison of methods as it came out: rows, their values over seeds, and what each took."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evaluation.advice import Standing, advice, standing
from evaluation.backbones import Cell, Column
from evaluation.cost import Cost, Point, cost, price, steps_to
from evaluation.measured import ALL, CLEAN, FILE, Measured
from pipeline.artifacts import Artifact, read_json
from pipeline.comparing import NO_STAGE, SUPERVISED, Trial
from pipeline.stages import SCRATCH

TRIAL = "trial"
"""The key of a measuring step's configuration that says which row it measures."""


class Setting(NamedTuple):
    """What rows have in common: the backbone, the share of the images, and the steps; None for rows without a stage."""

    backbone: str
    share: float | None
    steps: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A method from a start in one setting: values by column and seed, and what one training took, the median."""

    name: str
    start: str
    is_plain: bool
    """Whether it does without any training on these images."""
    is_supervised: bool
    """Whether it was trained on all labels of these images."""
    setting: Setting
    values: Mapping[Column, Mapping[int, float]]
    cost: Cost

    def cell(self, column: Column) -> Cell | None:
        """The values over the seeds, in their order."""
        found = self.values.get(column)
        return Cell(tuple(found[seed] for seed in sorted(found))) if found else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows of a comparison on `n` images of one split."""

    name: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    better: Mapping[str, str]
    about: Mapping[str, str]
    place: str
    n: int
    base: Mapping[str, Cost]
    """What it took to come by each start, by its name."""
    counts: Mapping[Column, int] = dataclasses.field(default_factory=dict)
    """How many images a column was measured on, where that is not `n`."""

    def settings(self) -> list[Setting]:
        """Those of rows with a stage, in their order."""
        return list(dict.fromkeys(row.setting for row in self.rows if row.setting.steps is not None))

    def side_by_side(self, setting: Setting) -> list[Row]:
        """The rows of a setting, and those without a stage on its backbone."""
        plain = Setting(setting.backbone, None, None)
        return [row for row in self.rows if row.setting in (plain, setting)]

    def standing(self, setting: Setting, column: Column) -> Standing:
        """How the rows of a setting compare by a metric that is a share, but for those that were trained on all labels:
        they are no choice for who has few.
        """
        rows = [row for row in self.side_by_side(setting) if not row.is_supervised]
        found = {row.name: cell.values for row in rows if (cell := row.cell(column))}
        fewest = min(len(values) for values in found.values())
        return standing({name: values[:fewest] for name, values in found.items()}, self.counts.get(column, self.n))

    def advice(self) -> list[str]:
        """A sentence for each backbone, by the first column of a share, for most images and most steps. Nothing is said
        of angles.
        """
        shares = [column for column in self.columns if self.better[column.metric] == "higher"]
        backbones = dict.fromkeys(setting.backbone for setting in self.settings())
        return [self._advice(backbone, shares[0]) for backbone in backbones] if shares else []

    def _advice(self, backbone: str, column: Column) -> str:
        mine = [setting for setting in self.settings() if setting.backbone == backbone]
        most = max(mine, key=lambda setting: (setting.share or 0, setting.steps or 0))
        rows = self.side_by_side(most)
        plain = [row.name for row in rows if row.is_plain]
        length = f"{most.steps:,} steps on {most.share:.0%} of the images"
        where = f"{self.name}: {backbone} on {self.place} by {_told(column)}, {length}"
        also = [
            f" With all labels, {row.name!r} comes to {100 * cell.mean:.1f} %."
            for row in rows
            if row.is_supervised and (cell := row.cell(column))
        ]
        return advice(self.standing(most, column), plain, where) + "".join(also)

    def wanted(self, backbone: str, share: float | None, column: Column) -> float | None:
        """The best mean of any training from scratch; None if there is none."""
        means = [
            cell.mean
            for row in self.rows
            if row.start == SCRATCH and row.setting.backbone == backbone and row.setting.share in (None, share)
            if (cell := row.cell(column))
        ]
        return (max if self.better[column.metric] == "higher" else min)(means, default=None)

    def cost_to_reach(self, name: str, setting: Setting, column: Column, wanted: float) -> Cost | None:
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


def _told(column: Column) -> str:
    return f"{column.protocol} with {column.labels:,} labels"


def named(trial: Trial) -> str:
    """A row's name."""
    if trial.method == NO_STAGE:
        return {SCRATCH: "from scratch", "student": "the student, no stage"}.get(
            trial.start, f"{trial.start}, no stage"
        )
    method = "supervised on the same images" if trial.method == SUPERVISED else trial.method
    return f"{method}, from scratch" if trial.start == SCRATCH else f"{method}, from {trial.start}"


def read_comparisons(artifacts: Mapping[str, Artifact]) -> dict[str, Comparison]:
    """The comparisons among the artifacts of a run, by name, but for those of which no number came."""
    groups: dict[str, list[Artifact]] = {}
    for step, made in artifacts.items():
        if step.startswith("compare.") and TRIAL in made.manifest["config"] and made.counts["records"]:
            groups.setdefault(step.split(".")[1], []).append(made)
    return {name: _read(name, measured, artifacts) for name, measured in groups.items()}


def _read(name: str, measured: Sequence[Artifact], artifacts: Mapping[str, Artifact]) -> Comparison:
    records = {made.mark: [Measured(**each) for each in made.load(FILE, read_json)] for made in measured}
    every = [record for found in records.values() for record in found if record.corruption in (CLEAN, ALL)]
    leading: dict[tuple[str, str], str] = {}
    for record in every:
        leading.setdefault((record.protocol, record.task), record.metric)
    rows: dict[tuple[str, Setting], list[Artifact]] = {}
    for made in measured:
        trial = Trial(**made.manifest["config"][TRIAL])
        rows.setdefault((named(trial), Setting(trial.backbone, trial.share, trial.steps)), []).append(made)
    kept = [record for record in every if leading[record.protocol, record.task] == record.metric]
    return Comparison(
        name=name,
        rows=[_row(name, setting, found, records, artifacts) for (name, setting), found in rows.items()],
        columns=sorted(dict.fromkeys(map(_column, kept)), key=lambda c: (c.protocol, c.labels, c.corruption != CLEAN)),
        better={record.metric: record.better for record in every},
        about={record.protocol: record.about for record in every if record.corruption == CLEAN},
        place=f"{every[0].dataset}/{every[0].split}",
        n=every[0].n,
        counts={_column(record): record.n for record in kept},
        base=_bases(measured, artifacts),
    )


def advised(artifacts: Mapping[str, Artifact]) -> list[str]:
    """The sentences of advice of all comparisons."""
    return [sentence for found in read_comparisons(artifacts).values() for sentence in found.advice()]


def _column(record: Measured) -> Column:
    return Column(record.protocol, record.labels, record.metric, record.corruption)


def _row(
    name: str,
    setting: Setting,
    made: Sequence[Artifact],
    records: Mapping[str, Sequence[Measured]],
    artifacts: Mapping[str, Artifact],
) -> Row:
    values: dict[Column, dict[int, float]] = {}
    for each in made:
        seed = each.manifest["config"][TRIAL]["seed"]
        for record in records[each.mark]:
            values.setdefault(_column(record), {})[seed] = record.value
    trial = Trial(**made[0].manifest["config"][TRIAL])
    kinds = trial.method == NO_STAGE, trial.method == SUPERVISED
    return Row(name, trial.start, *kinds, setting, values, _median(_trainings(made, artifacts)))


def _trainings(made: Iterable[Artifact], artifacts: Mapping[str, Artifact]) -> list[Cost]:
    """What was trained for this row itself, seed by seed."""
    steps = [each.manifest["config"]["start"]["step"] for each in made]
    return [cost(artifacts[step]) for step in dict.fromkeys(steps) if step and step.startswith("compare.")]


def _median(costs: Sequence[Cost]) -> Cost:
    if not costs:
        return Cost()
    return dataclasses.replace(costs[0], seconds=statistics.median(each.seconds for each in costs))


def _bases(measured: Iterable[Artifact], artifacts: Mapping[str, Artifact]) -> dict[str, Cost]:
    """What the starts took, with all that they build on."""
    found = {}
    for made in measured:
        config = made.manifest["config"]
        step = config["start"]["step"]
        if config[TRIAL]["method"] == NO_STAGE and step:
            own, base = price(artifacts[step], artifacts)
            found[config[TRIAL]["start"]] = Cost(
                own.steps + base.steps, own.images + base.images, own.seconds + base.seconds
            )
    return found
