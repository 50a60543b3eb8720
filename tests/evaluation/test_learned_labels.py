"""Test which backbones count as trained on the labels that they are measured on, and where tables say so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cli.console import backbones_table
from evaluation.backbone_table import backbone_tables, measurements_json, read_measurements, student_start
from evaluation.learned_labels import FOOTNOTE, LearnedLabels
from evaluation.measurement import MEASUREMENTS_FILE
from evaluation.report.backbones import backbones
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import Artifact, contents, write_json
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from tasks.teacher import Teacher
from tests.evaluation.test_backbone_table import LINEAR

KINDS, STREET = ("kinds", "classification"), ("street", "segmentation")
STUDENT = {"backbone": "test_resnet", "loss_weights": {"idle": 0}, "truths": {"street": ["fixed"]}}


class Run:
    """The artifacts of a run, made one by one."""

    def __init__(self, folder: Path) -> None:
        self.root, self.artifacts = Root.of(folder), dict[str, Artifact]()

    def add(self, step: str, kind: str, *inputs: str, counts: Any = None, **config: Any) -> Path:
        """Add the artifact of a step, and return its folder."""
        folder = Path(self.root / step)
        folder.mkdir(exist_ok=True)
        about = {"kind": kind, "section": [kind, step.partition(".")[2]], "config": config, "counts": counts or {}}
        about |= {"inputs": {name: {} for name in inputs}, "seconds": 1.0, **contents(folder)}
        self.artifacts[step] = Artifact(self.root, step, about)
        return folder

    def add_teacher(self, name: str, task: str, data: str | None) -> None:
        step = f"teacher.{name}"
        Teacher("supervised", LabelSpace(task), data).write(self.add(step, "teacher"))
        self.add(step, "teacher", teacher={"data": data})

    def add_probe(self, start: str, step: str | None, **changes: Any) -> None:
        name = f"probe.{start}.kinds"
        records = [dataclasses.replace(LINEAR, start=start, **changes).to_json()]
        write_json(self.add(name, "probe") / MEASUREMENTS_FILE, records)
        config = {"start": {"name": start, "step": step, "backbone": None if step else "test_resnet"}, "set": "kinds"}
        self.add(name, "probe", counts={"records": 1}, **config)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with four teachers, a student of three of them, and a chain of stages."""
    made = Run(tmp_path)
    made.add_teacher("kinds", *reversed(KINDS))
    made.add_teacher("street", *reversed(STREET))
    made.add_teacher("idle", "depth", "rooms")
    made.add_teacher("published", "detection", None)
    teachers = [name for name in made.artifacts]
    made.add("student", "student", *teachers, student={**STUDENT, "labels": "true_first"})
    simclr = {"method": "simclr", "data": ["pool"], "labels": None}
    made.add("stage.plain", "stage", "student", start="student", stage=simclr)
    made.add("stage.few", "stage", start="stage.plain", stage={**simclr, "data": ["shop"], "labels": {"images": 4}})
    made.add("stage.all", "stage", start=None, stage={**simclr, "method": "supcon", "data": ["shop"]})
    return made


def test_learned_labels_of_teachers_are_their_sets(run: Run) -> None:
    learned = LearnedLabels(run.artifacts)
    assert learned.of("teacher.kinds") == {KINDS}
    assert learned.of("teacher.published") == learned.of(None) == learned.of("stage.none") == frozenset()


def test_learned_labels_of_the_student_are_those_of_its_teachers_and_truths(run: Run) -> None:
    assert LearnedLabels(run.artifacts).of("student") == {KINDS, STREET, ("fixed", "segmentation")}
    run.add("student", "student", *run.artifacts, student={**STUDENT, "labels": "pseudo_only"})
    assert LearnedLabels(run.artifacts).of("student") == {KINDS, STREET}


def test_learned_labels_of_stages_are_inherited_and_their_own(run: Run) -> None:
    learned, shop = LearnedLabels(run.artifacts), ("shop", "classification")
    assert learned.of("stage.plain") == learned.of("student")
    assert learned.of("stage.few") == learned.of("student") | {shop}
    assert learned.of("stage.all") == {shop}


def test_learned_labels_of_a_supervised_baseline_are_its_set(run: Run) -> None:
    start = {"name": "student", "step": "student"}
    run.add("compare.all.supervised", "compare_supervised", start=start, set="shop", supervised={"steps": 1})
    learned = LearnedLabels(run.artifacts)
    assert learned.of("compare.all.supervised") == learned.of("student") | {("shop", "classification")}


def test_measurements_of_learned_labels_are_marked(run: Run) -> None:
    run.add_probe("scratch", None)
    run.add_probe("student", "student", value=0.75)
    assert [record.trained_on_labels for record in read_measurements(run.artifacts)] == [False, True]
    found = measurements_json(run.artifacts)
    assert [record.get("trained_on_labels") for record in found] == [None, True]
    assert "trained_on_labels" not in LINEAR.to_json(), "a step's own file says nothing of it"
    html = backbones(RunRecord(StoragePath.of(str(run.root)), run.artifacts))
    assert ">student †<" in html
    assert html.count(FOOTNOTE) == 1
    [board] = backbone_tables(read_measurements(run.artifacts))
    table = backbones_table(board, student_start(run.artifacts))
    assert table.caption == FOOTNOTE
    assert [str(cell) for cell in table.columns[0].cells] == ["scratch (the student's start)", "student †"]


def test_measurements_of_other_tasks_and_sets_are_not_marked(run: Run) -> None:
    run.add_probe("student", "student", dataset="pets")
    run.add_probe("stage.plain", "stage.plain", task="depth")
    assert not any(record.trained_on_labels for record in read_measurements(run.artifacts))
    [board, _] = backbone_tables(read_measurements(run.artifacts))
    assert backbones_table(board).caption is None
    assert FOOTNOTE not in backbones(RunRecord(StoragePath.of(str(run.root)), run.artifacts))


def test_student_start_is_the_row_with_its_initial_weights(run: Run) -> None:
    assert student_start(run.artifacts) is None, "nothing was measured"
    run.add_probe("scratch", None)
    assert student_start(run.artifacts) == "scratch"
    config = {"student": STUDENT, "weights": "0123"}
    run.add("student", "student", **config)
    assert student_start(run.artifacts) is None
    start = {"name": "mine", "step": None, "backbone": "test_resnet"}
    run.add("probe.mine.kinds", "probe", start=start, weights="0123", counts={"records": 0})
    assert student_start(run.artifacts) == "mine"
    html = backbones(RunRecord(StoragePath.of(str(run.root)), run.artifacts))
    assert "The student's training began with mine: what it added is the difference from that row." in html
