"""Plan a run of a recipe on a root: the selected steps, each with the artifact that it reuses, if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from flows.plan.label_checks import check_labels
from flows.plan.names import require_known_names
from flows.plan.plan import Planned, plan
from flows.plan.resolve import ResolvedRecipe, resolve
from flows.plan.selection import WHOLE_RECIPE, Selection
from flows.plan.steps import plan_recipe
from ingest.rejections import REJECTED_LABELS
from pipeline.errors import DataError
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.naming import LABEL_STEP
from pipeline.stores.rejections import read_rejections


@dataclasses.dataclass(frozen=True)
class Plan:
    """The selected steps of a recipe, compared with what a root holds."""

    resolved: ResolvedRecipe
    workspace: Workspace
    planned: list[Planned]
    force: set[str]
    """Names of the steps to make even if their artifacts exist."""

    @property
    def early(self) -> dict[str, Artifact | None]:
        """Artifacts of the early steps (`StepKind.early`) by step; None for one that is still to be made."""
        return {each.step.name: each.artifact for each in self.planned if each.step.kind.early}

    @property
    def measures(self) -> bool:
        """True if any step leaves numbers that the report shows."""
        return any(each.step.kind.measures for each in self.planned)

    @property
    def compares(self) -> bool:
        """True if steps of comparisons are selected."""
        return any(each.step.section[0] == COMPARE for each in self.planned)

    def still_to_make(self, places: Iterable[str]) -> set[str]:
        """Return those of these places in the recipe that ask for a step which is still to be made."""
        sections = {".".join(each.step.section) for each in self.planned if each.artifact is None}
        return {place for place in places if any(f"{place}.".startswith(f"{each}.") for each in sections)}

    def measured(self, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Return those of the run's artifacts that hold numbers for the report."""
        return {each.step.name: artifacts[each.step.name] for each in self.planned if each.step.kind.measures}

    def check(self, early: Mapping[str, Artifact | None], runtime: Runtime) -> None:
        """Raise ConfigError if a step that is still to be made needs labels that its sets lack, once all early steps
        have artifacts.
        """
        done = {name: artifact for name, artifact in early.items() if artifact}
        if len(done) == len(early):
            check_labels([each.step for each in self.planned if each.artifact is None], Inputs(done, runtime))


def plan_run(recipe: Recipe, root: Root, selection: Selection = WHOLE_RECIPE) -> Plan:
    """Plan a run of a recipe on a root.

    Raises ConfigError if a step can't be made, as far as that is known before the run: labels are checked if all sets
    have been ingested.
    """
    plan = plan_unchecked(recipe, root, selection)
    plan.check(plan.early, Runtime.of(recipe.runtime, root))
    return plan


def plan_unchecked(recipe: Recipe, root: Root, selection: Selection = WHOLE_RECIPE) -> Plan:
    """Plan a run of a recipe on a root, without a check that the sets have the labels it needs."""
    require_known_names(recipe)  # first: opening a set may take long
    workspace = Workspace(root)
    resolved = resolve(recipe, read_rejections(root))
    steps = plan_recipe(resolved)
    force = selection.forced(steps)
    return Plan(resolved, workspace, selection.of(plan(steps, workspace, force)), force)


def find_inputs(recipe: Recipe, root: Root, name: str) -> tuple[Step, Inputs]:
    """Return the step `name` and the artifacts that it reads.

    Raises DataError if one of them was not made yet, or was made with other settings.
    """
    plan = plan_unchecked(recipe, root)
    planned = {each.step.name: each for each in plan.planned}
    step, runtime = planned[name].step, Runtime.of(recipe.runtime, root)
    inputs = {each: planned[each].artifact for each in step.inputs}
    if REJECTED_LABELS in inputs and inputs[REJECTED_LABELS] is None:  # it copies the current list: no run is needed
        inputs[REJECTED_LABELS], _ = plan.workspace.get_or_make(planned[REJECTED_LABELS].step, Inputs({}, runtime))
    missing = [each for each, artifact in inputs.items() if artifact is None]
    if missing:
        of_rounds = [each for each in missing if each.startswith(f"{LABEL_STEP}.")]
        command = f"must run --to {of_rounds[0]}" if of_rounds else "must label"
        raise DataError(
            f"{root}: there is nothing for {', '.join(missing)} as the recipe {recipe.name!r} has it now: "
            f"`{command}` with this recipe and root makes it; `must plan` says what differs."
        )
    return step, Inputs({each: artifact for each, artifact in inputs.items() if artifact}, runtime)
