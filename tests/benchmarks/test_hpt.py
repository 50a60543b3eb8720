"""HPT's comparison: its recipes, and the shifted images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import hpt, must_table
from evaluation.probes import linear_dense
from pipeline.recipe.reader import read_recipe


@pytest.mark.parametrize("size", hpt.SIZES)
def test_comparison_overrides_make_a_comparison_of_each_domain(size: str, tmp_path: Path) -> None:
    recipe = read_recipe(must_table.RECIPE, [*hpt.comparison_overrides(size), hpt.shifted_override(tmp_path)])
    assert set(recipe.compare) == set(hpt.DOMAINS) <= set(recipe.data)
    for comparison in recipe.compare.values():
        assert comparison.starts == ["student", "scratch"]
        assert comparison.image_size in (None, recipe.student.image_size)
        assert comparison.steps == sorted(hpt.SIZES[size]["steps"])


@pytest.mark.slow
def test_main_measures_domains_and_none_again(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hpt, "RESULTS", tmp_path)
    monkeypatch.setattr(hpt, "COUNT", 40)
    monkeypatch.setattr(linear_dense, "SETTINGS", linear_dense.SETTINGS.model_copy(update={"steps": 2}))
    hpt.main(str(tmp_path / "root"), shared_data, "tiny", ["street"])
    hpt.main(str(tmp_path / "root"), shared_data, "tiny", ["street", "shifted"])
    assert "street is in hpt-tiny" in capsys.readouterr().out
    [file] = tmp_path.glob("*.json")
    domains = json.loads(file.read_bytes())["domains"]
    assert {name: domain["metric"] for name, domain in domains.items()} == {"street": "miou", "shifted": "accuracy"}
    for name, domain in domains.items():
        trained = {row["row"]: row["steps"] for row in domain["rows"] if row["steps"]}
        assert {"hpt, from student": 2, "hpt, from scratch": 2}.items() <= trained.items()
        reached = [line for line in domain["table"] if line[2].startswith("steps to")]
        assert {line[0] for line in reached} == {name}
        assert domain["student"]["images"] == 2 * 16


def test_shift_image_is_gray_dark_and_reproducible() -> None:
    bright, buffer = np.full((32, 32, 3), (250, 200, 240), np.uint8), io.BytesIO()
    Image.fromarray(bright).save(buffer, "PNG")
    shifted = [hpt.shift_image(buffer.getvalue(), number) for number in (1, 1, 2)]
    assert shifted[0] == shifted[1] != shifted[2]
    pixels = np.asarray(Image.open(io.BytesIO(shifted[0])))
    assert pixels.shape == (32, 32)
    assert pixels.mean() < 0.6 * bright.mean()
    assert pixels.std() > 5
