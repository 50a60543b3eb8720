"""MuST's table in small: ranks, comparisons with the student, rows of several seeds, and results of other recipes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import must_table
from benchmarks.must_table import (
    STUDENT,
    backbone_rows,
    interval,
    main,
    mean_ranks,
    measure_row,
    summary,
    values_of,
    wins,
)
from evaluation.probes import detector, linear_dense
from evaluation.schedules import SCHEDULES
from pipeline.errors import ConfigError
from pipeline.recipe.base import FitConfig
from pipeline.recipe.reader import read_recipe
from pipeline.recipe.recipe import Recipe

SCRATCH = "from scratch"


def row(accuracy: float, error: float, **cost: float) -> dict[str, Any]:
    """Return a row of two columns, of which the second is better when it is lower."""
    shared = {"dataset": "studio", "n": 300, "labels": 100}
    found = [
        {"measure": "frozen", "task": "classification", "metric": "accuracy", "better": "higher", "value": accuracy},
        {"measure": "100 labels", "task": "normals", "metric": "mean_angle", "better": "lower", "value": error},
    ]
    return {"cost": cost, "records": [{**shared, **each} for each in found]}


ONE = {
    SCRATCH: row(0.5, 30.0),
    "SimCLR": row(0.7, 30.0),
    STUDENT: row(0.8, 20.0, images=100, seconds=9, base_seconds=5),
}
TWO = {SCRATCH: row(0.6, 30.0), STUDENT: row(0.7, 20.0, images=100, seconds=11, base_seconds=5)}


def test_mean_ranks_counts_lower_errors_as_better_and_shares_ties() -> None:
    assert mean_ranks(values_of(ONE), list(ONE)) == {SCRATCH: 2.75, "SimCLR": 2.25, STUDENT: 1.0}


def test_wins_counts_columns_where_the_student_is_better() -> None:
    parts = [values_of(ONE)]
    assert wins(parts, SCRATCH) == "2 of 2"
    assert wins(parts, STUDENT) == ""
    assert wins([values_of({SCRATCH: row(0.9, 10.0), STUDENT: row(0.9, 20.0)})], SCRATCH) == "0 of 1"


def test_interval_is_of_students_t_over_seeds() -> None:
    assert interval([2.0]) == "2.00"
    assert interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"


def test_summary_has_rows_of_all_seeds_by_measure_with_their_cost() -> None:
    table = summary(list(ONE), {"0": ONE, "1": TWO})
    assert table[0][2:5] == ["studio classification", "studio normals ↓", "mean rank"]
    lines = {(line[0], line[1]): line[2:] for line in table[1:]}
    assert {name for _, name in lines} == {SCRATCH, STUDENT}, "the other has one seed"
    assert lines["frozen", STUDENT] == ["0.750", "", "1.00 ± 0.00", "", "100", "10", "5", "2"]
    assert lines["all", SCRATCH] == ["", "", "2.00 ± 0.00", "2 of 2", "", "", "", "2"]


def test_summary_has_rows_of_fewer_seeds_below_those_of_all() -> None:
    few = {SCRATCH: TWO[SCRATCH], STUDENT: TWO[STUDENT]}
    table = summary(list(ONE), {"0": few, "1": ONE, "2": ONE})
    assert [(line[0], line[1], line[-1]) for line in table if line[0] == "frozen"] == [
        *(("frozen", name, "3") for name in (SCRATCH, STUDENT)),
        *(("frozen", name, "2") for name in ONE),
    ]


def optimizer_name(teacher: Any) -> str | None:
    return teacher.optimizer_name() if isinstance(teacher, FitConfig) else None


def recipe_of(*overrides: str) -> Recipe:
    return read_recipe(must_table.RECIPE, overrides)


def test_summary_ranks_a_row_by_what_it_was_measured_in() -> None:
    frozen = {"cost": {}, "records": row(0.9, 20.0)["records"][:1]}
    lines = {(line[0], line[1]): line[4] for line in summary([*ONE, "new"], {"0": {**ONE, "new": frozen}})[1:]}
    assert lines["frozen", "new"] == "1.00"
    assert lines["100 labels", STUDENT] == "1.00"
    assert ("all", "new") not in lines


@pytest.mark.parametrize("start", must_table.STARTS)
def test_backbone_rows_are_recipes(start: str) -> None:
    rows = backbone_rows(start)
    for size, changes in must_table.SIZES.items():
        for name, each in rows.items():
            recipe = recipe_of(*must_table.STARTS[start], *changes, *each.overrides)
            recipe.student.check_weights({name: optimizer_name(each) for name, each in recipe.teachers.items()})
            networks: list[Any] = [*recipe.teachers.values(), recipe.student, *recipe.stages]
            assert recipe.name == "must-table", (size, name)
            sizes = {network.image_size for network in networks if network.image_size}
            assert sizes == {recipe.evaluate.image_size}, (size, name)
    weights = recipe_of(*rows["student of parts"].overrides).student.loss_weights
    assert {name for name, weight in weights.items() if weight} == {"parts"}


def test_backbone_rows_from_imagenet_all_start_from_its_weights() -> None:
    recipe = recipe_of(*must_table.STARTS["imagenet"])
    teachers: list[Any] = [*recipe.teachers.values()]
    assert {teacher.weights for teacher in teachers} == {must_table.WEIGHTS}
    assert recipe.student.weights == must_table.WEIGHTS
    assert [stage.start for stage in recipe.stages] == [must_table.WEIGHTS, must_table.WEIGHTS, "student"]


def test_main_measures_what_is_missing_and_refuses_results_of_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, str]] = []

    def fake(root: str, name: str, start: str, overrides: list[str]) -> dict[str, Any]:
        measured.append((name, overrides[-1]))
        return ONE[name]

    monkeypatch.setattr(must_table, "RESULTS", tmp_path)
    monkeypatch.setattr(must_table, measure_row.__name__, fake)
    main(str(tmp_path), rows=[SCRATCH])
    main(str(tmp_path), rows=[SCRATCH, STUDENT], seeds="0,1")
    assert measured == [(SCRATCH, "seed=0"), (STUDENT, "seed=0"), (SCRATCH, "seed=1"), (STUDENT, "seed=1")]
    [page] = tmp_path.glob("must_table-scratch-small-*.md")
    assert f"| all | {STUDENT} |" in page.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="--row 'SimCRL' is unknown"):
        main(str(tmp_path), rows=["SimCRL"])
    monkeypatch.setitem(must_table.SIZES, "small", ("student.steps=1",))
    with pytest.raises(ConfigError, match="measured by another recipe or with other overrides"):
        main(str(tmp_path), rows=[SCRATCH])


@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
def test_main_trains_and_measures_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(must_table, "RESULTS", tmp_path)
    brief = dataclasses.replace(SCHEDULES[must_table.BRIEF], grid=lambda *_: [{"batch": 16, "steps": 2, "lr": 1e-3}])
    monkeypatch.setitem(SCHEDULES, must_table.BRIEF, brief)
    for probe in (linear_dense, detector):
        monkeypatch.setattr(probe, "SETTINGS", probe.SETTINGS.model_copy(update={"steps": 2}))
    main(str(tmp_path / "root"), size="tiny", rows=["student of parts"])
    [file] = tmp_path.glob("*.json")
    row = json.loads(file.read_bytes())["seeds"]["0"]["student of parts"]
    assert row["cost"]["images"] == 2 * 16
    found = {(record["measure"], record["dataset"], record["task"]) for record in row["records"]}
    five = ("classification", "detection", "segmentation", "depth", "normals")
    assert found > {(measure, "studio", task) for measure in must_table.MEASURES for task in five}
    assert ("frozen", "indoor", "depth") in found
    assert ("1,000 labels", "clothing", "classification") in found
