"""Select the part of a plan that a run is about: `--to`, `--only`, `--from` and `--force`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flows.plan.plan import Planned, dependents, listed, needed_by
from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.comparison import COMPARE
from pipeline.steps.artifact import Step


@dataclasses.dataclass(frozen=True)
class Selection:
    """The steps of a recipe that a run is about, and those it makes again though their artifacts are there."""

    last: str | None = None
    """Go as far as this step, the steps of this section (`evaluate`, `compare.small`), or those whose names begin with
    `<last>.`; None for all steps but those of comparisons."""
    only: str | None = None
    """Make this step alone; its inputs have to be there."""
    start: str | None = None
    """Make this step and all steps behind it again."""
    force: tuple[str, ...] = ()
    """Make these steps again."""

    def forced(self, steps: list[Step]) -> set[str]:
        """Return the names of the steps to make again. ConfigError lists the steps, if one that is named is not one."""
        names = {step.name for step in steps}
        forced = {require_one_of(name, names, "Step") for name in self.force}
        if self.start is not None:
            forced |= dependents(steps, require_one_of(self.start, names, "Step"))
        return forced

    def of(self, planned: list[Planned]) -> list[Planned]:
        """Return the part of a plan that the run is about. ConfigError if inputs of the only step are not there."""
        needed = self._needed(planned)
        made = {self.only} if self.only else {each.step.name for each in needed}
        for name in filter(None, (*self.force, self.start)):
            if name not in made:
                raise ConfigError(f"Step {name!r} is to be made again, but {self._describe()}.")
        if self.only is None:
            return needed
        missing = [each.step.name for each in needed[:-1] if each.artifact is None]
        if missing:
            raise ConfigError(
                f"Step {self.only!r} can't run alone: {listed(missing)} would have to run first. "
                f"`must plan` says why; run with --to {self.only} to make them as well."
            )
        return needed

    def _needed(self, planned: list[Planned]) -> list[Planned]:
        if self.only:
            return needed_by(planned, [require_one_of(self.only, {each.step.name for each in planned}, "Step")])
        if self.last:
            return needed_by(planned, steps_named([each.step for each in planned], self.last))
        return [each for each in planned if each.step.section[0] != COMPARE]

    def _describe(self) -> str:
        if self.only:
            return f"the run makes {self.only!r} alone"
        return (
            f"the run goes only as far as {self.last!r}"
            if self.last
            else "the run makes no comparisons: add --to compare"
        )


WHOLE_RECIPE = Selection()
"""All steps but those of comparisons."""


def steps_named(steps: Sequence[Step], name: str) -> list[str]:
    """Return the steps of a section, else the step of this name, else the steps whose names begin with it and a dot.

    Raises ConfigError with the names of all steps if there is none.
    """
    section = tuple(name.split("."))
    found = [step.name for step in steps if step.section[: len(section)] == section]
    found = found or [step.name for step in steps if step.name == name]
    found = found or [step.name for step in steps if step.name.startswith(f"{name}.")]
    return found or [require_one_of(name, [step.name for step in steps], "Step")]
