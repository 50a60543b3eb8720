"""What comparisons still have to do, row by row, as a plan has it. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from evaluation.report.formatting import plural
from flows.plan.plan import Planned
from pipeline.recipe.comparison import COMPARE, TRIAL, Trial, comparison_of

Steps = Mapping[str, Planned]


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """A row: what its seeds have in common, and by seed the steps that train and measure it, by their names."""

    trial: Trial
    seeds: Mapping[int, Steps]

    @property
    def to_run(self) -> list[Planned]:
        """The steps that are to be run."""
        return [each for steps in self.seeds.values() for each in steps.values() if each.artifact is None]

    @property
    def amount(self) -> str:
        """For how many seeds something is to be run."""
        asked = sum(any(each.artifact is None for each in steps.values()) for steps in self.seeds.values())
        return f"{asked} of {len(self.seeds)}" if asked else "reuse"

    @property
    def why(self) -> str:
        """Why the first step that is to be run is, or why none is; what it waits for only if that is all."""
        first, *_ = [*self.to_run, *(each for steps in self.seeds.values() for each in steps.values())]
        return first.why.partition("; waits for ")[0]


def foreseen(planned: Sequence[Planned]) -> dict[str, list[Foreseen]]:
    """The rows of the comparisons in a plan, by the comparisons' names."""
    by_name = {each.step.name: each for each in planned}
    found: dict[str, dict[Trial, dict[int, dict[str, Planned]]]] = {}
    for each in planned:
        if TRIAL in each.step.config:
            trial = Trial(**each.step.config[TRIAL])
            rows = found.setdefault(comparison_of(each.step.section), {})
            steps = rows.setdefault(dataclasses.replace(trial, seed=0), {}).setdefault(trial.seed, {})
            training = (name for name in each.step.inputs if by_name[name].step.section[0] == COMPARE)
            steps |= {name: by_name[name] for name in (*training, each.step.name)}
    return {name: [Foreseen(*row) for row in rows.items()] for name, rows in found.items()}


def total(rows: Sequence[Foreseen]) -> str:
    """What there is to do for a comparison, in a sentence."""
    steps = [(each, row.trial.steps or 0) for row in rows for each in row.to_run]
    trainings = [length for each, length in steps if TRIAL not in each.step.config]
    if not steps:
        return "Nothing is to be trained or measured."
    measurements = plural(len(steps) - len(trainings), "measurement")
    if not trainings:
        return f"To be run: {measurements}."
    return f"To be run: {plural(len(trainings), 'training')} of {sum(trainings):,} steps in all, and {measurements}."
