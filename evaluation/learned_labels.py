"""Find out which backbones learned the labels that they are measured on. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ingest.true_labels import CLASSIFICATION
from pipeline.recipe.plugins import CHOSEN, config_class
from pipeline.recipe.stage import StageConfig
from pipeline.steps.artifact import Artifact, of_kind
from tasks.teacher import Teacher

MARK = "†"
"""The footnote mark of backbones that learned the labels they are measured on."""
FOOTNOTE = (
    f"{MARK} was trained on training labels of this set for this task, itself or through its teachers: its value says "
    "less on labels that are new to it."
)
Labels = frozenset[tuple[str, str]]
"""Labels by (set, task)."""


class LearnedLabels:
    """The labels that steps of a run learned, with all that they build on.

    Example:
        LearnedLabels(artifacts).of("stage.garments")  # frozenset({("street", "segmentation")})
    """

    def __init__(self, artifacts: Mapping[str, Artifact]) -> None:
        self.artifacts = artifacts
        self._found: dict[str, Labels] = {}

    def of(self, step: str | None) -> Labels:
        """Return the labels that a step's backbone learned; none for weights from elsewhere, of which nothing is known.

        A student that learned pseudo labels counts as trained on those of its teachers.
        """
        if step is None or step not in self.artifacts:
            return frozenset()
        if step not in self._found:
            made = self.artifacts[step]
            before = made.manifest["config"].get("start")
            inherited = self.of(before["step"] if isinstance(before, Mapping) else before)
            own = (learned for key, learned in _LEARNED.items() if key in made.manifest["config"])
            self._found[step] = inherited.union(*(learned(made, self.artifacts) for learned in own))
        return self._found[step]


def _by_teacher(made: Artifact, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, str]]:
    teacher = Teacher.load(made)
    if teacher.data is not None:
        yield teacher.data, teacher.space.task


def _by_student(made: Artifact, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, str]]:
    config: Mapping[str, Any] = made.manifest["config"]["student"]
    inputs = [artifacts[name] for name in made.manifest["inputs"] if name in artifacts]
    for name, teacher in of_kind(inputs, "teacher").items():
        if config.get("loss_weights", {}).get(name) == 0:
            continue
        yield from _by_teacher(teacher, artifacts)
        if config.get("labels") != "pseudo_only":
            task = Teacher.load(teacher).space.task
            yield from ((dataset, task) for dataset in config.get("truths", {}).get(name, ()))


def _by_stage(made: Artifact, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, str]]:
    stage: Mapping[str, Any] = made.manifest["config"]["stage"]
    package, key = CHOSEN["stages"]
    method = config_class(package, stage[key]) if key in stage else StageConfig
    if stage.get("labels") is not None or getattr(method, "learns_from_classes", False):
        yield from ((dataset, CLASSIFICATION) for dataset in stage["data"])
    inputs = [artifacts[name] for name in made.manifest["inputs"] if name in artifacts]
    for teacher in of_kind(inputs, "teacher").values():
        yield from _by_teacher(teacher, artifacts)


def _by_baseline(made: Artifact, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, str]]:
    yield made.manifest["config"]["set"], CLASSIFICATION


_LEARNED = {"teacher": _by_teacher, "student": _by_student, "stage": _by_stage, "supervised": _by_baseline}
"""By the key that a step's configuration has its schedule at, what it learns by itself."""
