"""Results of a comparison of methods: rows, their values over seeds, and their costs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evaluation import backbone_table
from evaluation.backbone_table import Cell, MetricColumn, leading_records, records_in
from evaluation.comparison.cost import Cost, artifact_cost, backbone_cost, sum_costs
from evaluation.comparison.significance import Ranking, advice_sentence, rank_rows
from evaluation.learned_labels import MARK, LearnedLabels
from evaluation.measurement import Measurement, max_or_min
from pipeline.recipe.comparison import NO_STAGE, SUPERVISED, TRIAL, Trial, comparison_of, row_name
from pipeline.recipe.stage import SCRATCH
from pipeline.steps.artifact import Artifact

VIEWS_SEEN = "views_seen"
"""Count of views that went through all steps, kept by methods with several views of an image."""


class ComparisonSetting(NamedTuple):
    """Backbone, share of the images, and steps that rows share; the last two are None for rows without a stage."""

    backbone: str
    share: float | None
    steps: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A method from a start in one setting, with its values by column and seed."""

    method: str
    start: str
    setting: ComparisonSetting
    values: Mapping[MetricColumn, Mapping[int, float]]
    cost: Cost
    """Cost of one training, with the median time of the seeds."""
    views: int = 0
    """Views of images seen in one training."""
    trained_on_labels: bool = False
    """Its backbone was trained on the set's labels for the task that it is measured on."""

    @property
    def name(self) -> str:
        return row_name(self.method, self.start)

    @property
    def marked_name(self) -> str:
        """The name, with a footnote mark if it was trained on the labels that it is measured on."""
        return f"{self.name} {MARK}" if self.trained_on_labels else self.name

    def cell(self, column: MetricColumn) -> Cell | None:
        """Return the values in the order of the seeds, None if there are none."""
        by_seed = self.values.get(column)
        return Cell(tuple(by_seed[seed] for seed in sorted(by_seed))) if by_seed else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The rows of a comparison on one split of a set."""

    name: str
    rows: Sequence[Row]
    columns: Sequence[MetricColumn]
    better: Mapping[str, str]
    about: Mapping[str, str]
    """Protocols in words, by name."""
    dataset_split: str
    """`<set>/<split>` that was measured on."""
    counts: Mapping[MetricColumn, int]
    """Number of images that each column was measured on."""
    start_costs: Mapping[str, Cost]
    """Cost of each start with all that it builds on."""

    @property
    def n(self) -> int:
        """Number of images that the first column was measured on."""
        return self.counts[self.columns[0]]

    def settings(self) -> list[ComparisonSetting]:
        """Return the settings of rows with a stage, in their order."""
        return list(dict.fromkeys(row.setting for row in self.rows if row.setting.steps is not None))

    def rows_in(self, setting: ComparisonSetting) -> list[Row]:
        """Return the rows of a setting, and those without a stage on its backbone."""
        no_stage = ComparisonSetting(setting.backbone, None, None)
        return [row for row in self.rows if row.setting in (no_stage, setting)]

    def rows_on(self, backbone: str, share: float | None) -> list[Row]:
        """Return the rows of a backbone with a share of the images, after any number of steps, or without a stage."""
        return [row for row in self.rows if row.setting.backbone == backbone and row.setting.share in (None, share)]

    def change(self, row: Row, column: MetricColumn) -> Cell | None:
        """Return the difference from the first method with the same start and setting, seed by seed.

        This is HPT's change from the own baseline. None for the first method itself, and for rows without a method.
        """
        methods = [
            other
            for other in self.rows
            if other.method not in (NO_STAGE, SUPERVISED)
            and (other.start, other.setting) == (row.start, row.setting)
            and other.cell(column)
        ]
        if row not in methods[1:]:
            return None
        own, first = row.values[column], methods[0].values[column]
        seeds = sorted(own.keys() & first.keys())
        return Cell(tuple(own[seed] - first[seed] for seed in seeds)) if seeds else None

    def ranking(self, setting: ComparisonSetting, column: MetricColumn) -> Ranking:
        """Rank the rows of a setting by a metric in [0, 1].

        Rows trained on all labels are left out: they are no choice for a user with few.
        """
        rows = [row for row in self.rows_in(setting) if row.method != SUPERVISED]
        values = {row.name: cell.values for row in rows if (cell := row.cell(column))}
        seeds = min(map(len, values.values()))
        return rank_rows({name: row_values[:seeds] for name, row_values in values.items()}, self.counts[column])

    def advice(self) -> list[str]:
        """Return a sentence for each backbone, for most images and most steps.

        It is by the first metric of which more is better; there is none if all metrics are angles or errors.
        """
        shares = [column for column in self.columns if self.better[column.metric] == "higher"]
        backbones = dict.fromkeys(setting.backbone for setting in self.settings())
        return [self._advice(backbone, shares[0]) for backbone in backbones] if shares else []

    def _advice(self, backbone: str, column: MetricColumn) -> str:
        settings = [setting for setting in self.settings() if setting.backbone == backbone]
        most = max(settings, key=lambda setting: (setting.share or 0, setting.steps or 0))
        rows = self.rows_in(most)
        baselines = [row.name for row in rows if row.method == NO_STAGE]
        where = (
            f"{self.name}: {backbone} on {self.dataset_split} by {column.protocol} with {column.labels:,} labels, "
            f"{most.steps:,} steps on {most.share:.0%} of the images"
        )
        supervised = [
            f" With all labels, {row.name!r} comes to {100 * cell.mean:.1f} %."
            for row in rows
            if row.method == SUPERVISED and (cell := row.cell(column))
        ]
        return advice_sentence(self.ranking(most, column), baselines, where) + "".join(supervised)

    def best_from_scratch(self, backbone: str, share: float | None, column: MetricColumn) -> float | None:
        """Return the best mean from scratch without labels, untrained or after a stage, if any."""
        means = [
            cell.mean
            for row in self.rows_on(backbone, share)
            if row.start == SCRATCH and row.method != SUPERVISED and (cell := row.cell(column))
        ]
        return max_or_min(self.better[column.metric])(means, default=None)

    def cost_to_reach(self, name: str, setting: ComparisonSetting, column: MetricColumn, target: float) -> Cost | None:
        """Return the cost of a row's shortest training whose mean reaches `target`; None if there is none.

        A longer training with a worse result takes nothing back, as in HPT's curves.
        """
        best_of = max_or_min(self.better[column.metric])
        costs = [
            row.cost
            for row in self.rows_on(setting.backbone, setting.share)
            if row.name == name and (cell := row.cell(column)) and best_of(cell.mean, target) == cell.mean
        ]
        return min(costs, key=lambda cost: cost.steps, default=None)


def read_comparisons(artifacts: Mapping[str, Artifact]) -> dict[str, Comparison]:
    """Return the comparisons among the artifacts of a run by name, without those that have no records."""
    groups: dict[str, list[Artifact]] = {}
    for made in artifacts.values():
        name = comparison_of(made.section)
        if name and TRIAL in made.manifest["config"] and made.counts["records"]:
            groups.setdefault(name, []).append(made)
    return {name: _read(name, measured, artifacts) for name, measured in groups.items()}


def _read(name: str, measured: Sequence[Artifact], artifacts: Mapping[str, Artifact]) -> Comparison:
    records: list[Measurement] = []
    rows: dict[tuple[str, str, ComparisonSetting], list[Artifact]] = {}
    values: dict[tuple[str, str, ComparisonSetting], dict[MetricColumn, dict[int, float]]] = {}
    start_costs: dict[str, Cost] = {}
    marked, learned = set[tuple[str, str, ComparisonSetting]](), LearnedLabels(artifacts)
    for made in measured:
        trial, step = Trial(**made.manifest["config"][TRIAL]), made.manifest["config"]["start"]["step"]
        if trial.method == NO_STAGE and step:
            start_costs[trial.start] = sum_costs(backbone_cost(artifacts[step], artifacts))
        row = trial.method, trial.start, ComparisonSetting(trial.backbone, trial.share, trial.steps)
        rows.setdefault(row, []).append(made)
        for record in records_in(made, learned):
            records.append(record)
            marked.update([row] if record.trained_on_labels else [])
            values.setdefault(row, {}).setdefault(MetricColumn.of(record), {})[trial.seed] = record.value
    leading = leading_records(records)
    return Comparison(
        name=name,
        rows=[Row(*row, values[row], *_training_cost(group, artifacts), row in marked) for row, group in rows.items()],
        columns=backbone_table.table_columns(leading),
        better={record.metric: record.better for record in leading},
        about=backbone_table.protocol_descriptions(leading),
        dataset_split=f"{leading[0].dataset}/{leading[0].split}",
        counts={MetricColumn.of(record): record.n for record in leading},
        start_costs=start_costs,
    )


def comparison_advice(artifacts: Mapping[str, Artifact]) -> list[str]:
    """Return the sentences of advice of all comparisons."""
    return [sentence for comparison in read_comparisons(artifacts).values() for sentence in comparison.advice()]


def _training_cost(made: Iterable[Artifact], artifacts: Mapping[str, Artifact]) -> tuple[Cost, int]:
    """Return the cost of one training of a row, with the median time of its seeds, and the views that it saw."""
    steps = [artifact.manifest["config"]["start"]["step"] for artifact in made]
    trained = [artifacts[step] for step in dict.fromkeys(steps) if step and comparison_of(artifacts[step].section)]
    if not trained:
        return Cost(), 0
    costs = [artifact_cost(artifact) for artifact in trained]
    median = dataclasses.replace(costs[0], seconds=statistics.median(cost.seconds for cost in costs))
    return median, trained[0].counts.get(VIEWS_SEEN, median.images)
