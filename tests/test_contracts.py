"""Contracts that the `TaskLabel` of every task keeps.

Unknown labels are made by cropping beyond the image and by thresholds that nothing reaches.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tasks
from pipeline.errors import DataError
from pipeline.stores.labels import COMMON, Label, LabelSpace, Layer, Row, explain_label_errors
from tasks.task import Task
from tests.spaces import (
    CHEAP,
    NEVER_UNKNOWN,
    WHOLE,
    assert_same_value,
    every_space,
    space_of,
    stored_row,
    unknown_value,
    value_of,
)


@pytest.mark.parametrize("task", tasks.names())
def test_task_folder_holds_task_label_and_task_model(task: str) -> None:
    label = importlib.import_module(f"tasks.{task}.label").TaskLabel
    model = importlib.import_module(f"tasks.{task}.model").TaskModel
    assert issubclass(label, Label)
    assert issubclass(model, Task)
    assert label.task == task
    assert model.better
    assert set(model.better.values()) <= {"higher", "lower"}


@pytest.mark.parametrize("task", tasks.names())
def test_label_docstring_states_storage_loss(task: str) -> None:
    about = inspect.getdoc(type(tasks.label(space_of(task)))) or ""
    assert "Stored" in about, f"tasks/{task}/label.py: its docstring does not say how it is stored and what that loses"


@every_space
@CHEAP
@given(
    seed=st.integers(0, 50),
    classes=st.sampled_from([1, 2, 3, 7, 254, 255, 256, 300]),
    h=st.integers(1, 23),
    w=st.integers(1, 23),
)
def test_label_decode_inverts_encode(space: LabelSpace, seed: int, classes: int, h: int, w: int) -> None:
    """Within 0.01; the tighter bound of each task is tested with the task."""
    space = space_of(space.task, classes, space.scale)
    label, value = tasks.label(space), value_of(space, seed, (h, w), (4 * w + 1, 4 * h + 3))
    row = stored_row(label, value)
    assert_same_value(label.decode(row), value, share=0.01)
    assert 0 <= row["confidence"] <= 1
    assert set(label.encode(value)) - {"confidence"} == set(label.columns().names)


@every_space
def test_label_decode_inverts_encode_of_unknown_label(space: LabelSpace) -> None:
    label, value = tasks.label(space), value_of(space, 1)
    empty = unknown_value(label, value)
    row = stored_row(label, empty)
    assert_same_value(label.decode(row), empty)
    assert all(math.isfinite(cell) for cell in row.values() if isinstance(cell, float)), row


@every_space
@CHEAP
@given(seed=st.integers(0, 50), h=st.integers(1, 17), w=st.integers(1, 17))
def test_label_flip_twice_is_identity(space: LabelSpace, seed: int, h: int, w: int) -> None:
    label, value = tasks.label(space), value_of(space, seed, (h, w), (4 * w + 1, 4 * h + 3))
    before = {name: array.copy() for name, array in value.items()}
    assert_same_value(label.flip(label.flip(value)), value, share=1e-5)
    assert_same_value(value, before)


@every_space
@CHEAP
@given(seed=st.integers(0, 50), h=st.integers(1, 17), w=st.integers(1, 17))
def test_label_crop_to_whole_image_is_identity(space: LabelSpace, seed: int, h: int, w: int) -> None:
    dense = value_of(space, seed, (h, w), (w, h))
    assert_same_value(tasks.label(space).crop(dense, WHOLE, (h, w)), dense, share=1e-5)


@every_space
@pytest.mark.parametrize("seed", range(5))
def test_label_crop_and_flip_commute(space: LabelSpace, seed: int) -> None:
    label, value = tasks.label(space), value_of(space, seed, (16, 16))
    x0, y0, width, height = np.random.default_rng(seed).uniform(0.2, 0.8, 4)
    box = (x0, y0, x0 + width, y0 + height)  # may reach beyond the image
    mirrored = (1 - box[2], box[1], 1 - box[0], box[3])
    size = (13, 19)
    assert_same_value(
        label.flip(label.crop(value, box, size)), label.crop(label.flip(value), mirrored, size), share=1e-4
    )


@every_space
def test_label_draw_takes_image_of_any_size(space: LabelSpace) -> None:
    label = tasks.label(space)
    for value in (value_of(space, 3), unknown_value(label, value_of(space, 3))):
        for size in ((200, 150), (33, 65)):
            image = Image.new("RGB", size, (90, 120, 40))
            drawn = label.draw(image, value)
            assert (drawn.size, drawn.mode) == (size, "RGB")
            assert image.getcolors() == [(size[0] * size[1], (90, 120, 40))], "the image itself was drawn on"
    assert label.draw(image, value_of(space, 3)).tobytes() != image.tobytes()


@every_space
@pytest.mark.parametrize("dashed", [False, True])
def test_label_draw_plain_leaves_the_image_as_it_is(space: LabelSpace, dashed: bool) -> None:
    label, value = tasks.label(space), value_of(space, 3)
    for size in ((64, 48), (5, 90)):
        image = Image.new("RGB", size, (90, 120, 40))
        drawn = label.draw_plain(image, value, dashed)
        assert (drawn.size, drawn.mode) == (size, "RGB")
        assert image.getcolors() == [(size[0] * size[1], (90, 120, 40))], "the image itself was drawn on"
    assert label.layer in get_args(Layer)


@every_space
@CHEAP
@given(seed=st.integers(0, 50), h=st.integers(1, 17), w=st.integers(1, 17))
def test_label_distance_is_0_to_itself_and_1_to_unknown(space: LabelSpace, seed: int, h: int, w: int) -> None:
    label, value, other = tasks.label(space), value_of(space, seed, (h, w)), value_of(space, seed + 1, (w, h))
    assert label.distance(value, value) == pytest.approx(0, abs=1e-6)
    assert label.distance(label.flip(value), label.flip(value)) == pytest.approx(0, abs=1e-6)
    assert 0 <= label.distance(value, other) <= 1
    if space.scale == "metric":  # else the one is brought to the other's scale
        assert label.distance(value, other) == pytest.approx(label.distance(other, value), abs=0.05)
    empty = unknown_value(label, value)
    assert label.distance(empty, empty) == 0
    if len(value.get("boxes", [None])):
        assert label.distance(value, empty) == label.distance(empty, value) == 1


@every_space
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.3, 0.8), (1.0, 1.0)])
def test_label_describe_at_tells_what_is_at_a_place(space: LabelSpace, place: tuple[float, float]) -> None:
    label, value = tasks.label(space), value_of(space, 3)
    text = label.describe_at(value, place)
    mirrored = label.describe_at(label.flip(value), (1 - place[0], place[1]))
    assert text.replace("left", "right") == mirrored.replace("left", "right") or space.task == "texture"
    assert label.describe_at(unknown_value(label, value), place) in ("", "no class")
    assert text or space.task in NEVER_UNKNOWN


@every_space
def test_label_known_classes_are_those_of_any_row(space: LabelSpace) -> None:
    """Rows without a label say nothing, and a task whose labels leave no class open knows them all."""
    label = tasks.label(space)
    rows: list[Row] = [{"key": "k", "status": "none"}]
    rows += [{"key": "k", "status": "ok", **label.encode(value_of(space, seed))} for seed in range(4)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*COMMON, *label.columns()]))
    assert label.known_classes(table.select([*label.partial_columns])).tolist() == [True] * len(space.classes)
    none = label.known_classes(table.slice(0, 1).select([*label.partial_columns]))
    assert none.tolist() == [not label.partial_columns] * len(space.classes)


@every_space
def test_label_class_amounts_agree_with_rows(space: LabelSpace) -> None:
    """Rows without a label count for nothing."""
    label = tasks.label(space)
    rows: list[Row] = [{"key": "k", "status": "none"}]
    rows += [{"key": "k", "status": "ok", **label.encode(value_of(space, seed))} for seed in range(4)]
    table = pa.Table.from_pylist([*rows, rows[0]], schema=pa.schema([*COMMON, *label.columns()]))
    held = label.class_amounts(table.select([*label.amount_columns]))
    found = {(int(row), int(number)) for row, number in zip(held.rows, held.classes, strict=True)}
    assert len(found) == len(held.rows)
    assert (np.diff(held.rows) >= 0).all()
    assert ((held.amounts > 0) & (held.amounts <= 1 + 1e-6)).all()
    if label.amount_columns:
        expected = {(n, int(c)) for n in range(1, 5) for c in np.flatnonzero(label.count(rows[n], 0.0)[0])}
        assert found == expected
    else:
        assert not found


@every_space
def test_label_count_falls_with_threshold(space: LabelSpace) -> None:
    label = tasks.label(space)
    row = stored_row(label, value_of(space, 4))
    held, kept = label.count(row, 0.0)
    np.testing.assert_array_equal(held, kept)
    assert held.sum() > 0
    for threshold in (0.3, 0.5, 0.9):
        again, fewer = label.count(row, threshold)
        np.testing.assert_array_equal(again, held)
        assert (fewer <= kept).all()
        kept = fewer


def other_entries(field: pa.Field, entry: Any) -> Iterator[Any]:
    """Yield entries of a column's type that are none that its label wrote."""
    others: list[Any] = [
        None,
        -1,
        7,
        2**31 - 1,
        math.nan,
        math.inf,
        b"",
        b"(\xb5/\xfd",
        [],
        [None],
        [-1, 0],
        [2**31 - 1],
        "a",
    ]
    if isinstance(entry, bytes | list):
        others += [entry[: len(entry) // 2], entry[1:], entry * 2]
    if isinstance(entry, list):
        others += [[other] * len(entry) for other in (math.nan, math.inf, -1e30, None, -1, 2**31 - 1, [math.nan] * 4)]
    for other in others:
        with contextlib.suppress(pa.ArrowException, TypeError, OverflowError):
            yield pa.array([other], field.type)[0].as_py()


@every_space
def test_label_decode_of_damaged_row_is_a_data_error_or_a_label(space: LabelSpace) -> None:
    label, image = tasks.label(space), Image.new("RGB", (40, 30))
    row = stored_row(label, value_of(space, 4))
    for field in label.columns():
        for other in other_entries(field, row[field.name]):
            damaged, value = row | {field.name: other}, None
            with contextlib.suppress(DataError), explain_label_errors("labels.parquet", "k"):
                label.count(damaged, 0.5)
                value = label.decode(damaged, 0.5)
            if value is not None:
                assert label.draw(image, value).size == image.size
                assert isinstance(label.describe(value) + label.describe_at(value, (0.5, 0.5)), str)
    column = next(name for name, entry in row.items() if isinstance(entry, bytes | list))
    with (
        pytest.raises(DataError, match=r"labels\.parquet: the label of k is damaged"),
        explain_label_errors("labels.parquet", "k"),
    ):
        label.decode(row | {column: None})
