"""Test results of comparisons: rows, costs to reach a value, advice, and their tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Comparison, ComparisonSetting, Row, read_comparisons
from evaluation.comparison.cost import Cost
from evaluation.measurement import MEASUREMENTS_FILE
from evaluation.report.comparisons import cost_table, score_table
from evaluation.report.formatting import DASH
from evaluation.report.html import StyledText
from pipeline.recipe.comparison import Trial
from pipeline.steps.artifact import Artifact, contents, write_json
from pipeline.storage.root import Root
from tests.evaluation.test_backbone_table import LINEAR, NORMALS, like

COLUMN = MetricColumn("linear v1", 12, "accuracy", "none")
PLAIN, SHORT, LONG = (
    ComparisonSetting("vit", None, None),
    ComparisonSetting("vit", 1.0, 100),
    ComparisonSetting("vit", 1.0, 900),
)


def row(method: str, setting: ComparisonSetting, *values: float, start: str = "student") -> Row:
    """Return a row with a value per seed."""
    cost = Cost(setting.steps or 0, 10 * (setting.steps or 0), float(setting.steps or 0))
    return Row(method, start, setting, {COLUMN: dict(enumerate(values))}, cost)


ROWS = [
    row("none", PLAIN, 0.1, 0.12, 0.11, start="scratch"),
    row("none", PLAIN, 0.4, 0.42, 0.41),
    row("simclr", SHORT, 0.5, 0.52, 0.51),
    row("simclr", LONG, 0.8, 0.82, 0.81),
    row("simclr", SHORT, 0.2, 0.22, 0.21, start="scratch"),
    row("simclr", LONG, 0.6, 0.62, 0.61, start="scratch"),
]
FOUND = Comparison("first", ROWS, [COLUMN], {"accuracy": "higher"}, {}, "pets/test", {COLUMN: 2000}, {})


def test_row_name_of_a_start_that_is_a_file_has_no_folders() -> None:
    assert row("simclr", SHORT, start="/data/weights/base.safetensors").name == "simclr, from base.safetensors"


def test_rows_in_has_rows_without_a_stage_for_every_setting() -> None:
    assert FOUND.settings() == [SHORT, LONG]
    for setting, number in ((SHORT, 2), (LONG, 3)):
        assert FOUND.rows_in(setting)[:3] == [ROWS[0], ROWS[1], ROWS[number]]


def test_rows_in_leaves_out_other_backbones() -> None:
    other = row("none", ComparisonSetting("resnet", None, None), 0.9, start="scratch")
    assert other not in dataclasses.replace(FOUND, rows=[*ROWS, other]).rows_in(SHORT)


def test_comparison_advice_is_on_the_longest_training() -> None:
    [said] = FOUND.advice()
    assert said.startswith(
        "first: vit on pets/test by linear v1 with 12 labels, 900 steps on 100% of the images: "
        "take 'simclr, from student' (81.0"
    )
    assert "beats all others" in said


def test_comparison_advice_mentions_supervised_and_does_not_rank_it() -> None:
    best = row("supervised", LONG, 0.9, 0.92, 0.91)
    [said] = dataclasses.replace(FOUND, rows=[*ROWS, best]).advice()
    assert "take 'simclr, from student' (81.0" in said
    assert said.endswith("With all labels, 'supervised on the same images, from student' comes to 91.0 %.")


def test_comparison_ranking_uses_the_seeds_that_all_rows_have() -> None:
    rows = [*ROWS[:2], row("simclr", LONG, 0.8)]
    [said] = dataclasses.replace(FOUND, rows=rows).advice()
    assert "fewer than 3 seeds support no advice" in said


def test_comparison_advice_ignores_angles() -> None:
    """A mean angle is not in [0, 1], and less is better."""
    angle = MetricColumn("finetune quick v1", 12, "mean_angle", "none")
    rows = [dataclasses.replace(each, values={angle: each.values[COLUMN]}) for each in ROWS]
    found = dataclasses.replace(FOUND, rows=rows, columns=[angle], better={"mean_angle": "lower"})
    assert found.advice() == []
    assert found.best_from_scratch("vit", 1.0, angle) == pytest.approx(0.11), "the smallest of those from scratch"


def test_best_from_scratch_takes_rows_without_labels_and_of_the_same_share() -> None:
    assert FOUND.best_from_scratch("vit", 1.0, COLUMN) == pytest.approx(0.61)
    assert FOUND.best_from_scratch("resnet", 1.0, COLUMN) is None
    assert FOUND.best_from_scratch("vit", 0.1, COLUMN) == pytest.approx(0.11), "only what saw as many images"
    labelled = row("supervised", LONG, 0.9, 0.92, 0.91, start="scratch")
    assert dataclasses.replace(FOUND, rows=[*ROWS, labelled]).best_from_scratch("vit", 1.0, COLUMN) == pytest.approx(
        0.61
    )


def test_cost_to_reach_is_of_the_shortest_training() -> None:
    def takes(name: str, wanted: float) -> int | None:
        found = FOUND.cost_to_reach(name, SHORT, COLUMN, wanted)
        return None if found is None else found.steps

    assert takes("simclr, from student", 0.61) == 900
    assert takes("simclr, from student", 0.5) == 100
    assert takes("simclr, from student", 0.95) is None
    assert takes("the student, no stage", 0.4) == 0, "no training at all"
    assert takes("the student, no stage", 0.5) is None


def costs_to_reach(means: Sequence[float], targets: Iterable[float], better: str = "higher") -> list[int | None]:
    """Return the steps to reach each target, of trainings over 100, 200, ... steps with these means."""
    settings = [ComparisonSetting("vit", 1.0, 100 * number) for number in range(1, len(means) + 1)]
    rows = [row("mae", setting, mean) for setting, mean in zip(settings, means, strict=True)]
    found = dataclasses.replace(FOUND, rows=rows[::-1], better={"accuracy": better})
    costs = [found.cost_to_reach("mae, from student", SHORT, COLUMN, target) for target in targets]
    return [cost.steps if cost else None for cost in costs]


def test_cost_to_reach_takes_the_fewest_steps_by_the_best_so_far() -> None:
    """A longer training with a worse result is ignored, and a higher target never takes fewer steps."""
    curve = (0.2, 0.5, 0.1, 0.45, 0.6)
    assert costs_to_reach(curve, (0.1, 0.2, 0.3, 0.42, 0.5, 0.6, 0.61)) == [100, 100, 200, 200, 200, 500, None]


def test_cost_to_reach_of_a_metric_that_is_better_lower() -> None:
    assert costs_to_reach((40.0, 25.0, 30.0), (50, 40, 30, 20), "lower") == [100, 100, 200, None]


def measured(folder: Path, name: str, records: list[Any], trial: Trial) -> Artifact:
    (folder / name).mkdir()
    write_json(folder / name / MEASUREMENTS_FILE, [record.to_json() for record in records])
    about = {
        "config": {"start": {"name": "it", "step": None}, "trial": trial.to_json()},
        "counts": {"records": len(records)},
        "inputs": {},
        "section": ["compare", name],
        "fingerprint": name,
    }
    return Artifact(Root.of(folder), name, {**contents(folder / name), **about})


def test_read_comparisons_has_a_column_of_the_leading_metric_for_every_task(tmp_path: Path) -> None:
    trial = Trial("none", "scratch", "vit", None, None, 0)
    fine = like(LINEAR, protocol=NORMALS.protocol)
    records = [fine, like(fine, metric="other"), NORMALS, like(NORMALS, metric="median_angle"), LINEAR]
    artifacts = {"compare.all.it.finetune": measured(tmp_path, "it", records, trial)}
    [found] = read_comparisons(artifacts).values()
    assert [(column.protocol, column.metric) for column in found.columns] == [
        (NORMALS.protocol, "accuracy"),
        (NORMALS.protocol, "mean_angle"),
        ("linear v1", "accuracy"),
    ]


def test_read_comparisons_separates_comparisons_and_leaves_out_those_without_records(tmp_path: Path) -> None:
    trial = Trial("none", "scratch", "vit", None, None, 0)
    artifacts = {
        "compare.one.it.probe": measured(tmp_path, "one", [LINEAR], trial),
        "compare.two.it.probe": measured(tmp_path, "two", [like(value=0.9)], trial),
        "compare.none.it.probe": measured(tmp_path, "none", [], trial),
    }
    found = read_comparisons(artifacts)
    assert list(found) == ["one", "two"]
    means = [cell.mean for each in found.values() if (cell := each.rows[0].cell(COLUMN))]
    assert means == [0.5, 0.9]


def test_cost_table_is_shown_if_something_was_trained_from_scratch() -> None:
    table = cost_table(FOUND)
    assert table
    rows = {str(cells[0]): cells for cells in table.rows}
    assert {cells[3] for cells in rows.values()} == {"61.0"}, "the best from scratch"
    assert rows["simclr, from student"][4] == "900"
    assert "never" in [cell for cells in rows.values() for cell in cells]
    alone = dataclasses.replace(FOUND, rows=[each for each in ROWS if each.start != "scratch" or each.method == "none"])
    assert cost_table(alone) is None


def test_cost_table_has_no_steps_for_a_start_that_is_good_enough() -> None:
    better = [row("none", PLAIN, 0.7, 0.72, 0.71), *(each for each in ROWS if each.name != "the student, no stage")]
    table = cost_table(dataclasses.replace(FOUND, rows=better))
    assert table
    [found] = [cells for cells in table.rows if cells[0] == "the student, no stage"]
    assert list(found[3:7]) == ["61.0", "0", "0", DASH]


def test_comparison_change_is_from_the_first_method_of_start_and_setting() -> None:
    bn = row("simclr_bn", LONG, 0.7, 0.76, 0.7)
    other = row("simclr_bn", LONG, 0.5, 0.52, start="scratch")
    found = dataclasses.replace(FOUND, rows=[*ROWS, bn, other])
    change = found.change(bn, COLUMN)
    assert change
    assert change.values == pytest.approx((-0.1, -0.06, -0.11)), "seed by seed"
    below = found.change(other, COLUMN)
    assert below
    assert below.values == pytest.approx((-0.1, -0.1)), "from the one that starts there too, by the seeds of both"
    assert not any(found.change(each, COLUMN) for each in ROWS), "the first ones, and rows without a method"
    shown = score_table(found)
    assert "Change from the first method" in shown.head
    assert StyledText("-9.0 ± 2.6") in [cell for cells in shown.rows for cell in cells]
    assert "Change from the first method" not in score_table(FOUND).head
