"""Rounds of self-training: the student labels where it may, and a fresh one learns its labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import must
from cli.export import LabelExport, export_labels
from evaluation.comparison.cost import artifact_cost, backbone_cost
from flows.plan.selection import Selection
from flows.run.run import Outcome
from pipeline.errors import ConfigError
from pipeline.recipe.reader import read_recipe
from pipeline.steps.artifact import Inputs, read_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.naming import labels_pool, learned_labels, round_labels, round_student
from student import rounds
from tests.flows.tiny import STEPS, TRAIN_STEPS

TWICE = ["rounds=2"]
ADDED = ["student.1", "student.1.labels", "label.2"]


@pytest.fixture(scope="module")
def outcome(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run of two rounds."""
    return must.run(recipe, tmp_path_factory.mktemp("rounds") / "root", TWICE)


def makers(outcome: Outcome, step: str) -> dict[str, str]:
    """Return by teacher which maker's labels a step lists, by the folder that they are in."""
    entries = outcome.artifacts[step].load("labels.json", read_json)
    return {entry["teacher"]: entry["path"].split("/")[1].rpartition("-")[0] for entry in entries}


def test_rounds_add_a_student_its_labels_and_a_choice(outcome: Outcome) -> None:
    assert list(outcome.artifacts) == [*STEPS[:-2], *ADDED, *STEPS[-2:]]
    inputs = outcome.artifacts["student"].manifest["inputs"]
    assert "label.2" in inputs
    assert "label" not in inputs


def test_choose_labels_takes_those_of_heads_that_are_not_worse(outcome: Outcome) -> None:
    found = outcome.artifacts["label.2"].counts["rounds"]
    masks, gabor = found["masks"], found["gabor"]
    assert (masks["metric"], masks["dataset"], masks["split"]) == ("miou", "world", "test")
    assert masks["by_student"] == (masks["student"] >= masks["before"])
    assert masks["score"] == max(masks["student"], masks["before"])
    assert (gabor["by_student"], gabor["metric"]) == (False, None)
    assert makers(outcome, "label") == {"masks": "masks", "gabor": "gabor"}
    assert makers(outcome, "label.2") == {
        "masks": "student-masks" if masks["by_student"] else "masks",
        "gabor": "gabor",
    }


def test_second_student_differs_where_labels_do(outcome: Outcome) -> None:
    first, second = (outcome.artifacts[name] for name in ("student.1", "student"))
    assert first.manifest["config"] == {**second.manifest["config"], "name": "student.1"}, (
        "a fresh student, trained alike"
    )
    is_relabelled = outcome.artifacts["label.2"].counts["rounds"]["masks"]["by_student"]
    assert (first.digest != second.digest) == is_relabelled


def judge(outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, miou: float) -> dict[str, Any]:
    """Choose labels again with a student of this mIoU; return the verdict on masks, and whose labels are listed."""
    step = outcome.artifacts["label.2"]
    artifacts = {name: outcome.artifacts[name] for name in step.manifest["inputs"]}
    inputs = Inputs(artifacts, Runtime(step.root, "cpu", "32", 1))
    monkeypatch.setattr(rounds, "score", lambda *_: {"miou": miou})
    counts = rounds.choose_labels(step.manifest["config"], inputs, tmp_path)
    entries = read_json(tmp_path / "labels.json")
    listed = {entry["path"].split("/")[1].rpartition("-")[0] for entry in entries if entry["teacher"] == "masks"}
    return {**counts["rounds"]["masks"], "listed": listed}


@pytest.mark.parametrize(("difference", "by_student"), [(0.1, True), (0.0, True), (-0.1, False)])
def test_choose_labels_keeps_teachers_that_are_better(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float, by_student: bool
) -> None:
    before = outcome.artifacts["label.2"].counts["rounds"]["masks"]["before"]
    found = judge(outcome, tmp_path, monkeypatch, before + difference)
    assert found["by_student"] is by_student
    assert found["listed"] == {"student-masks" if by_student else "masks"}


def test_choose_labels_compares_with_what_labelled_before(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a third round that is the first student, where it labelled, and not the teacher."""
    made = outcome.artifacts["label"]
    labelled = {**made.manifest, "counts": {**made.counts, "rounds": {"masks": {"score": 0.9}}}}
    changed = {**outcome.artifacts, "label": dataclasses.replace(made, manifest=labelled)}
    found = judge(dataclasses.replace(outcome, artifacts=changed), tmp_path, monkeypatch, 0.8)
    assert (found["before"], found["by_student"]) == (0.9, False)


def test_rounds_are_reused_and_shown_in_the_report(outcome: Outcome, recipe: Path) -> None:
    assert outcome.folder
    again = must.run(recipe, str(outcome.artifacts["label"].root), TWICE)
    assert again.ran == 0
    page = outcome.folder.child("report.html").read().decode()
    assert "Labels of the last round by" in page
    assert "could not be shown" not in page


def test_backbone_cost_of_the_last_student_has_the_steps_of_earlier_ones(outcome: Outcome) -> None:
    assert artifact_cost(outcome.artifacts["label.2"]).steps == 0
    trained = backbone_cost(outcome.artifacts["student"], outcome.artifacts)
    assert (trained.own.steps, trained.base.steps) == (TRAIN_STEPS, 2 * TRAIN_STEPS), "of the teacher, and student.1"


def test_second_student_weights_labels_by_their_disagreement_with_the_first(recipe: Path, outcome: Outcome) -> None:
    weighted = "student.disagreement={gabor: {against: student, mode: trust}}"
    made = must.run(
        recipe, str(outcome.artifacts["student"].root), [*TWICE, weighted], Selection(last="student")
    ).artifacts
    assert "student.1.labels" in made["student"].manifest["inputs"]
    assert 0 < made["student"].load("kept.json", read_json)["gabor"]["weight"] < 1
    assert "weight" not in made["student"].load("kept.json", read_json)["masks"]
    assert "weight" not in made["student.1"].load("kept.json", read_json)["gabor"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["student.disagreement={gabor: {against: student, mode: trust}}"], r"gabor\.against is 'student'.* rounds: 2"),
        (["student.disagreement={gabor: {against: masks, mode: trust}}"], r"'masks', no other teacher .* no other one"),
        (["student.disagreement={boxes: {against: masks, mode: trust}}"], r"student\.disagreement names 'boxes'"),
        (["student.disagreement={gabor: {against: student, mode: hope}}"], r"gabor\.mode.*focus"),
    ],
)
def test_disagreement_refuses(recipe: Path, tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        must.plan(recipe, tmp_path, overrides)


@pytest.mark.slow
def test_three_rounds_are_measured_and_exported(recipe: Path, tmp_path: Path) -> None:
    """With a head that its student labels in each round, probes, and the costs that they are shown with."""
    asked = ["rounds=3", "teachers.masks.steps=1", "evaluate.probes=[linear_dense]", "evaluate.splits=test"]
    made = must.run(recipe, tmp_path / "root", asked)
    added = ["student.1", "student.1.labels", "label.2", "student.2", "student.2.labels", "label.3"]
    assert [name for name in made.artifacts if name in added] == added
    second, third = (made.artifacts[name].counts["rounds"]["masks"] for name in ("label.2", "label.3"))
    assert third["before"] == second["score"]
    assert made.folder
    page = made.folder.child("report.html").read().decode()
    assert "could not be shown" not in page
    assert "student.2" in page
    found = export_labels(read_recipe(recipe, asked), made.artifacts["label"].root, LabelExport("hf", tmp_path / "out"))
    assert found["made_from"].keys() == {"pool", "label.3"}


def test_one_round_has_the_steps_and_fingerprints_of_a_recipe_without_rounds(finished_root: Path, recipe: Path) -> None:
    planned = must.plan(recipe, finished_root, ["rounds=1"])
    assert [each.step.name for each in planned] == STEPS
    assert all(each.artifact for each in planned)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["rounds=0"], r"rounds"),
        (["student.labels=true_only"], r"rounds is 2, but student\.labels is 'true_only'"),
        (
            ["student.loss_weights={masks: 0, gabor: 1}"],
            r"rounds is 2, but the student labels only where .* gabor learn",
        ),
    ],
)
def test_rounds_refuse(recipe: Path, tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        must.plan(recipe, tmp_path, [*TWICE, *overrides])


def test_rounds_without_held_out_images_are_refused_before_any_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student may label only where it is measured .*, and world has none"):
        must.run(recipe, tmp_path, [*TWICE, "data.world.test=0"])
    assert not (tmp_path / "artifacts" / "teacher.masks").exists()


def test_names_of_rounds() -> None:
    assert [round_student(number, 3) for number in (1, 2, 3)] == ["student.1", "student.2", "student"]
    assert [round_labels(number) for number in (1, 2)] == ["label", "label.2"]
    assert [labels_pool(name) for name in ("label", "student.labels", "student.2.labels")] == [True] * 3
    assert not any(labels_pool(name) for name in ("label.2", "student.2", "student"))
    assert learned_labels(["pool", "label.2", "data.label"]) == "label.2"
