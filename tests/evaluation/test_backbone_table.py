"""Test the tables of backbones, and how report and console show them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cli.console import backbones_table
from evaluation.backbone_table import Cell, MetricColumn, backbone_tables, not_measured, read_measurements
from evaluation.measurement import MEASUREMENTS_FILE, Measurement
from evaluation.report.backbones import PERCENT_METRICS, backbones, score
from evaluation.report.formatting import DASH
from evaluation.report.html import StyledText
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import Artifact, contents, write_json
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root

LINEAR = Measurement(
    start="student",
    backbone="test_resnet",
    protocol="linear v1",
    about="a linear classifier",
    dataset="kinds",
    task="classification",
    split="test",
    n=5,
    asked="all",
    labels=12,
    seed=0,
    metric="accuracy",
    better="higher",
    value=0.5,
)
COLUMN = MetricColumn("linear v1", 12, "accuracy", "none")
NORMALS = dataclasses.replace(LINEAR, task="normals", protocol="finetune quick v1", metric="mean_angle", better="lower")


def like(record: Measurement = LINEAR, **changes: Any) -> Measurement:
    return dataclasses.replace(record, **changes)


def test_cell_has_mean_and_deviation_over_seeds() -> None:
    [board] = backbone_tables([like(seed=0, value=0.4), like(seed=1, value=0.6), like(start="scratch", value=0.1)])
    assert board.cells["student", COLUMN].values == (0.4, 0.6)
    assert board.cells["student", COLUMN].mean == 0.5
    assert board.cells["student", COLUMN].deviation == pytest.approx(0.1414, abs=1e-4)
    assert board.cells["scratch", COLUMN].deviation is None
    assert (board.dataset, board.task, board.split, board.n) == ("kinds", "classification", "test", 5)
    assert board.starts == ("student", "scratch")


def test_backbone_tables_are_by_set_and_task_with_a_column_per_protocol() -> None:
    found = backbone_tables([LINEAR, NORMALS, like(dataset="pets"), like(protocol="knn v1"), like(labels=6), like(n=4)])
    assert [(board.dataset, board.task, board.n, len(board.columns)) for board in found] == [
        ("kinds", "classification", 5, 3),
        ("kinds", "normals", 5, 1),
        ("pets", "classification", 5, 1),
        ("kinds", "classification", 4, 1),
    ]
    assert [(column.protocol, column.labels) for column in found[0].columns] == [
        ("knn v1", 12),
        ("linear v1", 6),
        ("linear v1", 12),
    ]


def test_backbone_table_has_a_column_per_version_of_a_protocol() -> None:
    [board] = backbone_tables([LINEAR, like(protocol="linear v2")])
    assert len(board.columns) == 2


def test_backbone_table_has_the_leading_metric_and_the_mean_over_corruptions() -> None:
    more = [like(NORMALS, metric="median_angle"), like(NORMALS, metric="within_11.25", better="higher")]
    [board] = backbone_tables([NORMALS, *more, like(NORMALS, corruption="jpeg"), like(NORMALS, corruption="all")])
    assert [(column.metric, column.corruption) for column in board.columns] == [
        ("mean_angle", "none"),
        ("mean_angle", "all"),
    ]


def test_backbone_table_best_has_all_ties() -> None:
    [board] = backbone_tables([like(start="a", value=0.7), like(start="b", value=0.7), like(start="c", value=0.2)])
    assert board.best(COLUMN) == ["a", "b"]
    [board] = backbone_tables([like(NORMALS, start="a", value=20.0), like(NORMALS, start="b", value=40.0)])
    assert board.best(board.columns[0]) == ["a"], "the smallest angle"


def test_score_is_in_percent_for_shares_only() -> None:
    assert "accuracy" in PERCENT_METRICS
    assert "mean_angle" not in PERCENT_METRICS
    assert score(Cell((0.4, 0.6)), COLUMN, False) == StyledText("50.0 ± 14.1")
    assert score(Cell((0.4321,)), COLUMN, True) == StyledText("43.2", "good")
    angle = MetricColumn("finetune quick v1", 12, "mean_angle", "none")
    assert score(Cell((23.4567,)), angle, False) == StyledText("23.457")
    assert score(None, COLUMN, False) == DASH


def made(folder: Path, name: str, records: list[Measurement], config: Any = None, **counts: Any) -> Artifact:
    """Make the artifact of a step that measured."""
    (folder / name).mkdir()
    write_json(folder / name / MEASUREMENTS_FILE, [record.to_json() for record in records])
    start = {"name": name.split(".")[1], "step": None}
    about = {"config": {"start": start, "set": "kinds", **(config or {})}, "counts": counts, "inputs": {}}
    step = {"kind": "probe", "section": ["evaluate"]}
    return Artifact(Root.of(folder), name, {**contents(folder / name), **about, **step})


def trained(folder: Path, inputs: tuple[str, ...], seconds: float, **config: Any) -> Artifact:
    """Make the artifact of a step that trained on nine images."""
    before = {name: {"digest": name} for name in inputs}
    about = {"config": config, "counts": {"images": 9}, "inputs": before, "seconds": seconds, "files": {}}
    return Artifact(Root.of(folder), "trained", {**about, "kind": "stage", "section": ["stages", "one"]})


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    student = trained(tmp_path, (), 5.0, student={"steps": 1234, "batch": 10})
    stage = trained(tmp_path, ("student",), 130.0, stage={"steps": 7, "batch": 10})
    rows = [like(start="scratch", value=0.7), like(start="scratch", protocol="knn v1", about="neighbours", value=0.3)]
    best = [like(start="one", value=0.7), like(start="one", corruption="all", value=0.25)]
    one = {"start": {"name": "one", "step": "stage.one"}}
    probes = {
        "probe.scratch.kinds": made(tmp_path, "probe.scratch.kinds", rows),
        "probe.one.kinds": made(tmp_path, "probe.one.kinds", best, one),
        "probe.one.pool": made(tmp_path, "probe.one.pool", [], {**one, "set": "pool"}, why="nothing is held out"),
    }
    return RunRecord(StoragePath.of(str(tmp_path)), {"student": student, "stage.one": stage, **probes})


def test_read_measurements_reads_all_measuring_steps(run: RunRecord) -> None:
    assert [record.start for record in read_measurements(run.artifacts)] == ["scratch", "scratch", "one", "one"]


def test_backbones_section_has_the_best_in_bold_ties_and_gaps(run: RunRecord) -> None:
    html = backbones(run)
    table = html.split("<table>")[1]
    assert table.count('class="good">70.0<') == 2, "both are best"
    assert table.count('class="good">30.0<') == 1
    assert f">{DASH}<" in table, "knn was not measured for the other one"
    assert "12 labels, corrupted" in table
    assert ">25.0<" in table


def test_backbones_section_has_the_protocols(run: RunRecord) -> None:
    html = backbones(run)
    assert "does not say that it is better than the others by more than chance" in html
    assert "Measured on 5 images of kinds/test." in html
    assert "linear v1: a linear classifier." in html
    assert "knn v1: neighbours." in html
    assert not_measured([], run.artifacts) == ["Not probed on pool: nothing is held out."]


def test_backbones_section_has_own_and_base_cost(run: RunRecord) -> None:
    costs = backbones(run).split("<table>")[2]
    row = costs.split(">one<")[1].split("</tr>")[0]
    assert [cell.split("<")[0] for cell in row.split('<td class="n">')[1:]] == [
        "7",
        "70",
        "2 min 10 s",
        "1,234",
        "12,340",
        "5.0 s",
    ]
    assert costs.split(">scratch<")[1].split("</tr>")[0].count(DASH) == 6


def test_backbones_section_is_empty_without_measurements(tmp_path: Path) -> None:
    assert backbones(RunRecord(StoragePath.of(str(tmp_path)), {})) == ""


def test_backbones_table_on_the_console() -> None:
    [board] = backbone_tables(
        [like(seed=0, value=0.4), like(seed=1, value=0.6), like(start="scratch", protocol="knn v1")]
    )
    table = backbones_table(board)
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [
        ["student", "scratch"],
        ["-", "0.500"],
        ["0.500 ± 0.141", "-"],
    ]
