"""Contracts that every prediction form must keep, for every task. Forms are found by their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tasks
from pipeline.errors import ConfigError
from pipeline.export import BELOW_THRESHOLD, BaseWriter, ExportSample
from pipeline.predictions import SUMMARY, form_names, load_writer, write_predictions
from pipeline.predictions.json import to_json
from pipeline.stores.labels import LabelShard, LabelSpace, Value
from tests.conftest import png
from tests.disk import stored
from tests.spaces import SPACES, name_of, value_of

SIZE = (48, 32)
every_form = pytest.mark.parametrize("form", form_names())
every_space = pytest.mark.parametrize("space", SPACES, ids=name_of)
KINDS = LabelSpace("classification", ("cat", "dog", "emu"))


def sample(number: int, value: Value) -> ExportSample:
    data = png(np.full((*SIZE[::-1], 3), 90, np.uint8))
    name = f"photos/{number}.png"
    return ExportSample(f"{number:016x}", data, "png", SIZE, name, {"it": value}, name=name)


def lines(out: Path) -> list[Any]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]


@every_form
@every_space
def test_write_predictions_writes_supported_tasks_and_refuses_others(
    form: str, space: LabelSpace, tmp_path: Path
) -> None:
    writer, heads, out = load_writer(form), {"it": tasks.label(space)}, tmp_path / "out"
    assert issubclass(writer, BaseWriter)
    samples = [sample(number, value_of(space, number, size=SIZE)) for number in range(3)]
    if writer.what_is_lost(space.task) is None:
        assert writer.unsupported_reason
        with pytest.raises(ConfigError, match=rf"--to {form} can hold labels for .* the heads are it \({space.task}\)"):
            write_predictions(form, out, heads, samples, dict)
        assert not list(tmp_path.iterdir())
        return
    told: list[str] = []
    summary = write_predictions(form, out, heads, samples, lambda: {"told": told})
    assert json.loads((out / SUMMARY).read_text("utf-8")) == summary
    assert (summary["form"], summary["images"], summary["told"]) == (form, 3, [])
    assert (out / summary["heads"]["it"]["where"]).exists()
    assert summary["heads"]["it"]["written"]["images"] == 3
    assert write_predictions(form, tmp_path / "empty", heads, [], dict)["images"] == 0


@every_space
def test_parquet_predictions_are_read_as_label_files(space: LabelSpace, tmp_path: Path) -> None:
    label, value = tasks.label(space), value_of(space, 1, size=SIZE)
    write_predictions("parquet", tmp_path / "out", {"it": label}, [sample(0, value)], dict)
    table = pq.read_table(tmp_path / "out" / "it.parquet")
    shard = LabelShard(stored(tmp_path / "out" / "it.parquet"), tasks.label_of_file(table.schema, "it"))
    found = shard.value(0)
    assert found is not None
    assert label.distance(found, value) == pytest.approx(0, abs=0.01)
    row = table.to_pylist()[0]
    assert (row["source"], row["image_width"], row["image_height"]) == ("photos/0.png", *SIZE)


@every_space
def test_json_predictions_are_plain_numbers_and_names(space: LabelSpace) -> None:
    found = to_json(tasks.label(space), value_of(space, 0, size=SIZE))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_json_predictions_name_classes_of_labels(tmp_path: Path) -> None:
    boxes = LabelSpace("detection", ("cat", "dog"))
    value: Value = {
        "boxes": np.array([[1, 2, 3.5, 4]], np.float32),
        "scores": np.array([0.75], np.float32),
        "classes": np.array([1], np.int32),
        "size": np.array(SIZE, np.int32),
    }
    found = to_json(tasks.label(boxes), value)
    assert found == {"objects": [{"class": "dog", "box": [1, 2, 3.5, 4], "score": 0.75, "probability": 0.75}]}
    masks: Value = {"classes": np.array([[0, 65535]], np.uint16), "confidence": np.ones((1, 2), np.float32)}
    found = to_json(tasks.label(LabelSpace("segmentation", ("road", "sky"))), masks)
    assert (found["area"], found["unknown"]) == ({"road": 0.5}, 0.5)
    findings = {"probs": np.array([0.5, np.nan, 0.25], np.float32)}
    found = to_json(tasks.label(LabelSpace("multilabel", ("a", "b", "c"))), findings)
    assert found == {"classes": ["a"], "scores": {"a": 0.5, "b": None, "c": 0.25}}
    kinds = {"probs": np.array([0.25, 0.75, 0], np.float32)}
    found = to_json(tasks.label(KINDS), kinds)
    assert found["class"] == "dog"
    assert found["best"] == [{"class": "dog", "score": 0.75}, {"class": "cat", "score": 0.25}]


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_predictions_below_the_threshold_are_no_class(form: str, tmp_path: Path) -> None:
    out, heads = tmp_path / "out", {"it": tasks.label(KINDS)}
    summary = write_predictions(form, out, heads, [sample(0, {"probs": np.zeros(3, np.float32)})], dict)
    assert summary["heads"]["it"]["written"] == {"images": 0, BELOW_THRESHOLD: 1}
    if form == "json":
        assert lines(out)[0]["labels"]["it"] == {"class": None, "score": None, "probability": None, "best": []}
    else:
        row = pq.read_table(out / "it.parquet").to_pylist()[0]
        assert (row["status"], row["reason"], row["top_class"]) == ("none", BELOW_THRESHOLD, None)


def test_pictures_of_large_images_are_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.predictions import pictures  # noqa: PLC0415

    monkeypatch.setattr(pictures, "MOST_SIDE", 24)
    heads = {"it": tasks.label(KINDS)}
    write_predictions("pictures", tmp_path / "out", heads, [sample(0, value_of(KINDS, 0, size=SIZE))], dict)
    assert Image.open(tmp_path / "out" / "it" / "photos" / "0.jpg").size == (24, 16)
