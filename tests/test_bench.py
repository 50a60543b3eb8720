"""Measurements: that they measure what they say, in turn, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import label_speed
from benchmarks.measure import circumstances, medians, save_result, take_turns
from flows.run.run import find_inputs
from pipeline.errors import PROJECT, DataError
from pipeline.recipe.reader import parse_recipe
from pipeline.storage.root import Root

if TYPE_CHECKING:
    from tests.conftest import World


def test_measures_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    taken = take_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert taken == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert medians(taken) == {"a": 5, "b": 6}


def test_a_result_is_kept_with_its_circumstances_for_programs_and_for_people(tmp_path: Path) -> None:
    measured = circumstances("cpu")
    result = {"measured": measured, "rate": 2.5}
    save_result(tmp_path / "new" / "thing.json", "A thing", result, [("what", "rate"), ("it", "2.5")])
    assert json.loads((tmp_path / "new" / "thing.json").read_text("utf-8")) == result
    page = (tmp_path / "new" / "thing.md").read_text("utf-8")
    assert "| what | rate |\n| --- | --- |\n| it | 2.5 |" in page
    for fact in ("date", "command", "device", "processor"):
        assert measured[fact] in page


def test_the_command_is_told_as_it_would_be_said_in_the_projects_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [f"{PROJECT}/a=b", "--root", "r", f"--root={PROJECT}/r", "-o", f"data.x.path={PROJECT.parent}/x=y", "a=b"]
    monkeypatch.setattr("sys.argv", ["benchmarks/it.py", *said])
    told = "python benchmarks/it.py a=b --root r --root=r -o data.x.path=../x=y a=b"
    assert circumstances("cpu")["command"] == told


@pytest.mark.parametrize(("device", "limit"), [("cpu", 4 / 0.016), ("cuda", 1 / 0.01)])
def test_the_limit_is_all_cores_busy_or_the_gpu(device: str, limit: float) -> None:
    """10 ms of models and 6 ms of the rest per image on four cores: a GPU waits for nothing."""
    stages = {"read": 1.0, "decode": 2.0, "infer a": 4.0, "infer b": 6.0, "encode a": 2.0, "write": 1.0}
    assert label_speed.rate_limit(stages, 4, device) == pytest.approx(limit)


def test_the_limit_with_a_gpu_may_be_the_cores() -> None:
    assert label_speed.rate_limit({"decode": 30.0, "infer a": 10.0}, 2, "cuda") == pytest.approx(1 / 0.015)


def test_labelling_is_measured_and_leaves_no_label(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_speed, "WINDOWS", 1)
    monkeypatch.setattr(label_speed, "PLAIN_IMAGES", 2)
    before = sorted(Path(world.runtime.root.path).rglob("*.parquet"))
    result = label_speed.measure_labelling(world.inputs("label"), 4, 8)
    assert sorted(Path(world.runtime.root.path).rglob("*.parquet")) == before
    teachers = world.inputs("label").of_kind("teacher")
    expected = {"read", "decode", "write", *(f"{part} {name}" for part in ("infer", "encode") for name in teachers)}
    assert set(result["stage_ms_per_image"]) == expected
    assert min(result["stage_ms_per_image"].values()) > 0
    rates = result["images_per_s"]
    assert rates["limit"] == pytest.approx(1000 / sum(result["stage_ms_per_image"].values()), rel=0.01)
    assert result["fraction"] == pytest.approx(rates["labeller"] / rates["limit"])
    assert result["speedup"] == {name: pytest.approx(rates["labeller"] / rates[name]) for name in label_speed.PLAIN}
    assert len(label_speed.table(result)) == 1 + len(expected) + 5


def test_what_was_not_made_cannot_be_measured(tmp_path: Path) -> None:
    recipe = (
        "{name: none, data: {a: {kind: scenes, count: 2, seed: 1}}, teachers: {g: {kind: analytic}}, pool: [a], "
        "student: {weighting: equal}}"
    )
    with pytest.raises(DataError, match=r"nothing for pool, data.a, teacher.g .* `must label` with this recipe"):
        find_inputs(parse_recipe(recipe, "test"), Root.of(tmp_path), "label")
