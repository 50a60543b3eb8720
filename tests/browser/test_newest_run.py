"""The newest run of a root: how it ended, and what its recipe says of thresholds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browser.answers import Answers
from browser.filters import ImageSelection
from browser.newest_run import read_newest_run
from pipeline.storage.root import Root
from tests.browser.copies import copied
from tests.conftest import World

RECIPE = """
name: street
teachers: {boxes: {kind: supervised}, masks: {kind: supervised}}
student: {thresholds: {detection: 0.3, masks: 0.7, depth: "${DEPTH}"}}
"""


def write_run(root: Path, name: str, recipe: str, *events: dict[str, Any]) -> None:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe, "utf-8")
    lines = [json.dumps({"time": 100.0 + place, **event}) for place, event in enumerate(events)]
    (folder / "events.jsonl").write_text("\n".join(lines), "utf-8")


STARTED = {"event": "started", "step": "student", "artifact": "a"}


@pytest.mark.parametrize(
    ("events", "state", "step", "error"),
    [
        ([STARTED, {"event": "finished"}], "finished", "", ""),
        ([STARTED], "unfinished", "student", ""),
        (
            [STARTED, {"event": "failed", "step": "student", "error": "no"}, {"event": "ended", "error": "no"}],
            "failed",
            "student",
            "no",
        ),
        ([STARTED, {"event": "ended", "error": "stopped"}], "failed", "", "stopped"),
        ([], "unfinished", "", ""),
    ],
)
def test_newest_run_says_how_it_ended(
    tmp_path: Path, events: list[dict[str, Any]], state: str, step: str, error: str
) -> None:
    write_run(tmp_path, "street-20260101-000000", RECIPE, *events)
    run = read_newest_run(Root.of(tmp_path))
    assert run
    assert (run.state, run.step, run.error) == (state, step, error)
    assert run.began == (100.0 if events else None)
    assert read_newest_run(Root.of(tmp_path), run) == run


def test_newest_run_is_the_one_that_began_last(tmp_path: Path) -> None:
    assert read_newest_run(Root.of(tmp_path)) is None
    for name in ("z-20260101-000000", "a-20260102-000000", "a-20260102-000000-2", "no run"):
        write_run(tmp_path, name, RECIPE)
    run = read_newest_run(Root.of(tmp_path))
    assert run
    assert run.name == "a-20260102-000000-2"


def test_newest_run_threshold_is_that_of_the_teacher_or_its_task(tmp_path: Path) -> None:
    write_run(tmp_path, "street-20260101-000000", RECIPE)
    run = read_newest_run(Root.of(tmp_path))
    assert run
    assert run.threshold("boxes", "detection") == 0.3
    assert run.threshold("student-boxes", "detection") == 0.3
    assert run.threshold("masks", "segmentation") == 0.7
    assert run.threshold("masks", "depth") == 0.7
    assert run.threshold("boxes", "depth") is None, "a variable is not filled in"
    assert run.threshold("others", "detection") is None, "another recipe's teacher"


@pytest.mark.parametrize("recipe", ["", "{", "[1]", "teachers: 3", "name: street\nteachers: {}\nstudent: {}"])
def test_newest_run_of_a_damaged_recipe_has_no_thresholds(tmp_path: Path, recipe: str) -> None:
    write_run(tmp_path, "street-20260101-000000", recipe)
    run = read_newest_run(Root.of(tmp_path))
    assert run
    assert (run.recipe, dict(run.thresholds)) == ("street", {})


def test_thresholds_begin_with_those_of_the_newest_run(world: World, tmp_path: Path) -> None:
    answers = copied(world, tmp_path / "root")
    boxes = answers.store("boxes")
    write_run(tmp_path / "root", "street-20990101-000000", RECIPE)
    assert threshold_of(answers, boxes.name) == (0.5, False)
    answers.loading.refresh()
    assert threshold_of(answers, boxes.name) == (0.3, True)
    assert threshold_of(answers, "true-truth-detection") == (0.5, False)
    assert answers.about()["run"]["recipe"] == "street"
    key = answers.images(ImageSelection(["labelled=yes"]), 1, 0)["images"][0]["key"]
    counted = {
        name: answers.images(ImageSelection([f"boxes.class={boxes.class_names[0]}"], thresholds=given), 1, 0)["total"]
        for name, given in (
            ("first", {}),
            ("store", {boxes.name: 0.3}),
            ("teacher", {"boxes": 0.3}),
            ("all", {"boxes": 0}),
        )
    }
    assert counted["first"] == counted["store"] == counted["teacher"] <= counted["all"]
    assert answers.image(key, {}) == answers.image(key, {"boxes": 0.3})


def threshold_of(answers: Answers, name: str) -> tuple[float, bool]:
    store = next(store for store in answers.about()["stores"] if store["name"] == name)
    return store["threshold"], store["of_recipe"]
