"""The steps that a plan still has to run, by row of the recipe's comparisons. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from evaluation.report.formatting import plural
from flows.plan.plan import Planned
from pipeline.recipe.comparison import COMPARE, TRIAL, Trial, comparison_of


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row of a comparison: trials that differ in their seed alone."""

    trial: Trial
    """With seed 0."""
    seeds: Mapping[int, Mapping[str, Planned]]
    """By seed, then by name, the steps that train and measure it."""

    @property
    def steps(self) -> dict[str, Planned]:
        """The steps of all seeds, by name."""
        return {name: step for steps in self.seeds.values() for name, step in steps.items()}

    @property
    def to_run(self) -> list[Planned]:
        """The steps without a result yet."""
        return [step for step in self.steps.values() if step.artifact is None]

    @property
    def run_seeds(self) -> str:
        """The number of seeds with steps to run, as text."""
        count = sum(any(step.artifact is None for step in steps.values()) for steps in self.seeds.values())
        return f"{count} of {len(self.seeds)}" if count else "reuse"

    @property
    def why(self) -> str:
        """The reason why the row's first step runs or is reused, without the steps that it waits for."""
        first, *_ = [*self.to_run, *self.steps.values()]
        return first.why.partition("; waits for ")[0]


def planned_rows(planned: Sequence[Planned]) -> dict[str, list[PlannedRow]]:
    """Group a plan's steps into the rows of its comparisons, by comparison name."""
    by_name = {entry.step.name: entry for entry in planned}
    comparisons: dict[str, dict[Trial, dict[int, dict[str, Planned]]]] = {}
    for entry in planned:
        if TRIAL in entry.step.config:
            trial = Trial(**entry.step.config[TRIAL])
            rows = comparisons.setdefault(comparison_of(entry.step.section), {})
            steps = rows.setdefault(dataclasses.replace(trial, seed=0), {}).setdefault(trial.seed, {})
            training = (name for name in entry.step.inputs if by_name[name].step.section[0] == COMPARE)
            steps |= {name: by_name[name] for name in (*training, entry.step.name)}
    return {name: [PlannedRow(*row) for row in rows.items()] for name, rows in comparisons.items()}


def summarize_work(rows: Sequence[PlannedRow]) -> str:
    """Return a sentence on the trainings and measurements that a comparison still needs."""
    steps = [(step, row.trial.steps or 0) for row in rows for step in row.to_run]
    lengths = [length for step, length in steps if TRIAL not in step.step.config]
    if not steps:
        return "Nothing to train or measure."
    measurements = plural(len(steps) - len(lengths), "measurement")
    if not lengths:
        return f"To run: {measurements}."
    return f"To run: {plural(len(lengths), 'training')} of {sum(lengths):,} steps in all, and {measurements}."
