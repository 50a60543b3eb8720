"""The labelling benchmark: its stages, its limit, and that it leaves no labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import label_speed

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.mark.parametrize(("device", "limit"), [("cpu", 4 / 0.016), ("cuda", 1 / 0.01)])
def test_rate_limit_is_that_of_all_cores_or_the_gpu(device: str, limit: float) -> None:
    """With 10 ms of models and 6 ms of other stages per image on four cores, the GPU is the limit."""
    stages = {"read": 1.0, "decode": 2.0, "infer a": 4.0, "infer b": 6.0, "encode a": 2.0, "write": 1.0}
    assert label_speed.rate_limit(stages, 4, device) == pytest.approx(limit)


def test_rate_limit_with_a_gpu_may_be_the_cores() -> None:
    assert label_speed.rate_limit({"decode": 30.0, "infer a": 10.0}, 2, "cuda") == pytest.approx(1 / 0.015)


def test_measure_labelling_times_all_stages_and_leaves_no_label(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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
