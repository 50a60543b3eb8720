"""The step between two rounds of self-training: the student of a round labels in its teachers' place, where it may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ingest.dataset import IngestedSet
from ingest.true_labels import true_label_dataset
from pipeline.errors import ConfigError
from pipeline.steps.artifact import EXTERNAL_FILES, Artifact, Inputs, read_json, write_json
from pipeline.stores.naming import LABEL_INDEX, teacher_of
from tasks.prediction import Predictor, load_network
from tasks.scoring import score
from tasks.teacher import Teacher

Entry = Mapping[str, Any]
"""A label shard in the index of a step that labels the pool."""


class HeadChoice(NamedTuple):
    """The labeller of a head in the next round: the student or what labelled before, and why."""

    by_student: bool
    why: str
    metric: str | None = None
    """The task's leading metric; None if the head can't be measured."""
    dataset: str | None = None
    split: str | None = None
    before: float | None = None
    """Of what labelled this round."""
    student: float | None = None

    @property
    def score(self) -> float | None:
        """The metric of what labels the next round."""
        return self.student if self.by_student else self.before


def choose_labels(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write the index of the labels that the next student learns from.

    They are the student's for every head that is not worse than what labelled for it in this round, by the leading
    metric on the held-out images of the set that its teacher learned from, `val` or else `test`. All other heads keep
    the labels that they had: those of teachers without such a set, too.

    The counts have under `rounds`, by head, what was measured, and whether the student labels.

    `config`: `labeller`, the step that trained the student; `before`, the step whose labels it learned from; `after`,
    the step in which it labelled the pool; `judged`, by head, the set and the task of those that can be measured;
    `labels`, as of the step `label`.
    """
    before, after = inputs[config["before"]], inputs[config["after"]]
    network = load_network(inputs[config["labeller"]], inputs.runtime)
    verdicts = {
        head: _judge(head, teacher, before, network, inputs) for head, teacher in inputs.of_kind("teacher").items()
    }
    relabelled = {head for head, verdict in verdicts.items() if verdict.by_student}
    entries = _merge(before.load(LABEL_INDEX, read_json), after.load(LABEL_INDEX, read_json), relabelled)
    write_json(out / LABEL_INDEX, entries)
    return {
        "shards": len(entries),
        "failed": sum(entry["failed"] for entry in entries),
        "warnings": [] if relabelled else [f"no head of {config['labeller']} is as good as what labelled before it"],
        "rounds": {head: {**verdict._asdict(), "score": verdict.score} for head, verdict in verdicts.items()},
        EXTERNAL_FILES: {entry["path"]: {"size": entry["size"], "sha256": entry["sha256"]} for entry in entries},
    }


def check_held_out(config: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise ConfigError if no head could be measured, so that the next student would learn the labels of this one."""
    judged: Mapping[str, tuple[str, str]] = config["judged"]
    if not any(IngestedSet(inputs[f"data.{data}"]).held_out_split("val", task) for data, task in judged.values()):
        sets = ", ".join(dict.fromkeys(data for data, _ in judged.values()))
        raise ConfigError(
            f"the student may label only where it is measured on held-out images, and {sets} has none with labels: "
            "hold some out with val, or leave rounds out."
        )


def _judge(head: str, artifact: Artifact, before: Artifact, student: Predictor, inputs: Inputs) -> HeadChoice:
    """Compare the student's head with what labelled for it."""
    teacher, split = Teacher.load(artifact), artifact.counts.get("split")
    if head not in student.heads:
        return HeadChoice(False, "the student learns nothing from it")
    if teacher.data is None or split is None or not teacher.scores:
        return HeadChoice(False, "it learned from no set with held-out images")
    task, (metric, direction) = teacher.space.task, next(iter(student.heads[head].better.items()))
    images = true_label_dataset(IngestedSet(inputs[f"data.{teacher.data}"]), split, {head: task})
    found = score(student, images, head, inputs.runtime)[metric]
    known = before.counts.get("rounds", {}).get(head, {}).get("score", teacher.scores[metric])
    is_worse = found < known if direction == "higher" else found > known
    why = "it is worse than what labelled before" if is_worse else "it is not worse than what labelled before"
    return HeadChoice(not is_worse, why, metric, teacher.data, split, known, found)


def _as_label_of(teacher: str, entry: Entry) -> Entry:
    """Return the student's entry as one of the teacher's labels, with its own maker."""
    return {**entry, "teacher": teacher, "maker": entry["teacher"]}


def _merge(before: list[Entry], after: list[Entry], relabelled: set[str]) -> list[Entry]:
    """Return the entries of the index before, with the student's shards in the place of those of these teachers."""
    by_student = {(entry["set"], entry["shard"], teacher_of(entry["teacher"])): entry for entry in after}
    return [
        _as_label_of(entry["teacher"], by_student[entry["set"], entry["shard"], entry["teacher"]])
        if entry["teacher"] in relabelled
        else entry
        for entry in before
    ]
