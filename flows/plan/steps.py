"""From a recipe to the steps it needs, in an order in which they can run. No torch, no Prefect."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import pyarrow as pa

from flows.plan.comparison_steps import compares, comparing_steps
from flows.plan.evaluation_steps import measuring_steps
from flows.plan.label_checks import is_early
from flows.plan.stage_steps import settings, stage_steps
from flows.plan.validate import check_fits
from ingest.ingest import INCREMENTAL_KEYS, open_source
from ingest.rejections import IMAGES, LABELS, describe
from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.models.weights import weights_digest
from pipeline.recipe.base import FitConfig
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.teacher import TeacherConfig
from pipeline.sources import BaseSource
from pipeline.steps.artifact import Artifact, Step, hash_json
from pipeline.steps.workspace import Workspace
from pipeline.stores.naming import LABELLING
from pipeline.stores.rejections import NOTHING, rejected_images, rejected_labels, rejected_teachers

SEVERAL = {"evaluate": ("evaluate", "probe", "finetune"), COMPARE: (COMPARE,)}
"""Sections of a recipe that have several steps, and what comes before the dot in these steps' names."""
MEASURING = frozenset(kind for kinds in SEVERAL.values() for kind in kinds)
"""Kinds of steps that end in numbers, which a report shows."""


def build_steps(recipe: Recipe, rejects: pa.Table = NOTHING) -> list[Step]:
    """The steps of a run on a root with this list of rejections, inputs before those that use them. Opening the sources
    checks that their files are there.
    """
    ingests, spaces = [], {}
    for name, config in recipe.data.items():
        with error_context(f"data.{name}"):
            source = open_source(config.model_dump(mode="json"))
            spaces[name] = source.spaces()
            ingests.append(_ingest_step(recipe, name, source))
    check_fits(recipe, spaces)
    teachers = [_teacher_step(recipe, name, teacher) for name, teacher in recipe.teachers.items()]
    images, labels = _images_step(rejects), _labels_step(recipe, rejects)
    sets, makers = _names(ingests), _names(teachers)
    pooled = tuple(f"data.{name}" for name in recipe.pool)
    pool = Step("pool", "ingest.pool:gather_pool", {"pool": recipe.pool}, (*sets, *_names(images)))
    require = {name: teacher.require for name, teacher in recipe.teachers.items() if teacher.require}
    label = _label_step(LABELLING[0], recipe, require, ("pool", *pooled, *makers))
    learning = {"student": settings(recipe.student), "seed": recipe.seed, **_start(recipe.student, "student")}
    truths = tuple(name for name in _true_sets(recipe) if name not in pooled)
    learned_from = ("pool", "label", *pooled, *truths, *makers, *_names(labels))
    student = Step("student", "student.train:train_student", learning, learned_from, trains=True, resumes=True)
    measured = {**recipe.evaluate.model_dump(mode="json", include={"splits", "sets"}), "seed": recipe.seed}
    evaluate = Step("evaluate", "evaluation.evaluate:evaluate", measured, ("student", *sets, *makers))
    seen = (*sets, *_names(images))
    stages = stage_steps(recipe, seen)
    also = [_label_step(LABELLING[1], recipe, {}, ("pool", *pooled, "student"))] if recipe.labelling.student else []
    # the list is copied first: who rejects more while a long run is on its way changes nothing about that run
    measuring = [*measuring_steps(recipe, spaces), *comparing_steps(recipe, seen)]
    rest = [*teachers, pool, label, student, *also, *stages, evaluate, *measuring]
    # what is wrong with the data is to be told before hours of training
    return [*images, *labels, *ingests, *sorted(rest, key=lambda step: not is_early(step.name))]


def _names(steps: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.name for step in steps)


def _images_step(rejects: pa.Table) -> list[Step]:
    """The step with the rejected images, if there are any."""
    images = rejected_images(rejects)
    return [Step(IMAGES, "ingest.rejections:copy_images", {"rejected": describe(images)})] if len(images) else []


def _labels_step(recipe: Recipe, rejects: pa.Table) -> list[Step]:
    """The step with the rejected labels by teachers that the student learns from, if there are any."""
    labels = rejected_labels(rejects, _learned_teachers(recipe))
    config = {"rejected": describe(labels), "teachers": rejected_teachers(labels)}
    return [Step(LABELS, "ingest.rejections:copy_labels", config)] if len(labels) else []


def _learned_teachers(recipe: Recipe) -> list[str]:
    """The teachers whose labels the student learns from."""
    if recipe.student.labels == "true_only":
        return []
    return [name for name in recipe.teachers if recipe.student.loss_weights.get(name) != 0]


def _ingest_step(recipe: Recipe, name: str, source: BaseSource) -> Step:
    stamp = source.stamp()
    config = {
        "name": name,
        "source": recipe.data[name].model_dump(mode="json"),
        "shard_images": recipe.shard_images,
        "files": {"count": len(stamp), "stamp": hash_json(stamp)[:16]},
    }
    return Step(f"data.{name}", "ingest.ingest:ingest", config, incremental_keys=INCREMENTAL_KEYS)


def _teacher_step(recipe: Recipe, name: str, teacher: TeacherConfig) -> Step:
    said = settings(teacher)
    said.pop("require")  # a gate on the result, not a part of it
    start = _start(teacher, f"teachers.{name}")
    config: dict[str, Any] = {"name": name, "teacher": said, "seed": recipe.seed, **start}
    inputs = (f"data.{teacher.data}",) if hasattr(teacher, "data") else ()
    trains = isinstance(teacher, FitConfig)
    return Step(f"teacher.{name}", f"teachers.{teacher.kind}:make", config, inputs, trains=trains, resumes=trains)


def _label_step(name: str, recipe: Recipe, require: Mapping[str, Any], inputs: tuple[str, ...]) -> Step:
    """The pool's images labelled by the teachers, or the student, among the inputs."""
    config = {"max_failed": recipe.labelling.max_failed, "batch": recipe.labelling.batch, "require": require}
    function, parts = "teachers.labelling.labeller:label_pool", "teachers.labelling.partition"
    return Step(name, function, config, inputs, parts=parts, incremental_keys=tuple(config))


def _true_sets(recipe: Recipe) -> list[str]:
    """The steps that read the sets whose true labels the student may learn, in order of their names."""
    taught = {teacher.data for teacher in recipe.teachers.values() if hasattr(teacher, "data")}
    return sorted(f"data.{name}" for name in taught.union(*recipe.student.truths.values()))


def _start(section: TeacherConfig | FitConfig, place: str) -> dict[str, str]:
    """The content of the weights that a section at this place names: another file of the same name is another start."""
    weights = getattr(section, "weights", None)
    with error_context(f"{place}.weights"):
        return {"weights": weights_digest(weights)} if weights else {}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step with what is known of it before the run: reused from an artifact, or to be run and why."""

    step: Step
    artifact: Artifact | None
    why: str

    @property
    def action(self) -> str:
        return "reuse" if self.artifact else "run"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which steps of a recipe a run is about, and which of them it makes anew though they are there."""

    last: str | None = None
    """The step, or the section in SEVERAL, to go as far as; None for all steps but those that compare methods."""
    only: str | None = None
    """The one step to make; what it reads has to be there."""
    start: str | None = None
    """The step that is made anew, and so are all that come behind it."""
    force: tuple[str, ...] = ()
    """Steps that are made anew."""

    def forced(self, steps: list[Step]) -> set[str]:
        """The names of the steps to make anew. ConfigError lists the steps, if one that is named is not one."""
        names = {step.name for step in steps}
        forced_names = {require_one_of(name, names, "Step") for name in self.force}
        if self.start is not None:
            behind = {require_one_of(self.start, names, "Step")}
            for step in steps:
                if behind.intersection(step.inputs):
                    behind.add(step.name)
            forced_names |= behind
        return forced_names

    def _told(self) -> str:
        if self.only:
            return f"it makes {self.only!r} alone"
        return f"it goes as far as {self.last!r}" if self.last else "it makes all there are"

    def of(self, planned: list[Planned]) -> list[Planned]:
        """The part of a plan that the run is about. ConfigError if what the only step reads is not there."""
        if self.only:
            needed = needed_by(planned, [require_one_of(self.only, {each.step.name for each in planned}, "Step")])
        elif self.last:
            needed = up_to(planned, self.last)
        else:
            needed = [each for each in planned if not compares(each.step.name)]
        made = {self.only} if self.only else {each.step.name for each in needed}
        for name in filter(None, (*self.force, self.start)):
            if name not in made:
                raise ConfigError(f"Step {name!r} is to be made anew, but the run does not come to it: {self._told()}.")
        if self.only is None:
            return needed
        missing = [each.step.name for each in needed[:-1] if each.artifact is None]
        if missing:
            raise ConfigError(
                f"Step {self.only!r} can't run alone: {_listed(missing)} would have to run first. "
                f"`must plan` says why; run with --to {self.only} to make them as well."
            )
        return needed


def plan(steps: list[Step], workspace: Workspace, force: Set[str] = frozenset()) -> list[Planned]:
    """For every step, whether it will run, and why; those in `forced` will. Reads manifests only."""
    planned: dict[str, Planned] = {}
    for step in steps:
        if step.name in force:
            planned[step.name] = Planned(step, None, "to be made anew")
            continue
        waiting = [name for name in step.inputs if planned[name].artifact is None]
        inputs = {name: made for name in step.inputs if (made := planned[name].artifact)}
        planned[step.name] = _wait(step, inputs, waiting, workspace) if waiting else _look(step, inputs, workspace)
    return list(planned.values())


def _look(step: Step, inputs: dict[str, Artifact], workspace: Workspace) -> Planned:
    """A step whose inputs are all there."""
    fingerprint = step.fingerprint(inputs)
    found = workspace.find(step, fingerprint)
    if found:
        return Planned(step, found, "nothing changed")
    return Planned(step, None, _changes(step, inputs, workspace) or "its files are no longer whole")


def _wait(step: Step, inputs: dict[str, Artifact], waiting: list[str], workspace: Workspace) -> Planned:
    """A step some of whose inputs will be made; `inputs` are the others."""
    waits = f"waits for {_listed(waiting)}"
    changes = _changes(step, inputs, workspace, waiting)
    return Planned(step, None, f"{changes}; {waits}" if changes else f"{waits}; runs unless its result is as before")


def kind_of(name: str) -> str:
    """What comes before the dot in a step's name, if there is one."""
    return name.partition(".")[0]


def up_to(planned: list[Planned], last: str) -> list[Planned]:
    """The steps that `last` needs, and it: the part of a plan that ends there. The name of a section in SEVERAL stands
    for all of its steps, `compare.<name>` for those of a comparison. ConfigError lists the steps.
    """
    names, several = [each.step.name for each in planned], SEVERAL.get(last, ())
    members = [name for name in names if kind_of(name) in several or name.startswith(f"{last}.")]
    if last in names and not several:
        members = [last]
    return needed_by(planned, members or [require_one_of(last, names, "Step")])


def needed_by(planned: list[Planned], members: Sequence[str]) -> list[Planned]:
    """The part of a plan that these steps need, they included."""
    by_name = {each.step.name: each for each in planned}
    needed, waiting = set(), list(members)
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += by_name[name].step.inputs
    return [each for each in planned if each.step.name in needed]


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _changes(step: Step, inputs: dict[str, Artifact], workspace: Workspace, waiting: Sequence[str] = ()) -> str:
    """What differs from the newest artifact of the step: in its configuration, and in the inputs that are there."""
    last = workspace.newest(step.name)
    if last is None:
        return "never made here"
    before, after = _flat(last.manifest["config"]), _flat(dict(step.config))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    changed = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]
    old = last.manifest["inputs"]
    changed += [f"new {name}" for name, made in inputs.items() if old.get(name, {}).get("digest") != made.digest]
    changed += [f"new {name}" for name in waiting if name not in old]
    changed += [f"without {name}" for name in old if name not in step.inputs]
    if last.manifest["version"] != step.version:
        changed.append(f"version {last.manifest['version']} -> {step.version}")
    return "; ".join(changed)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
