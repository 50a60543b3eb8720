"""Label spaces of every task, and labels to test with: predictions of untrained heads on random features.

Tasks are found by their folders, nobody lists them here.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from torch import nn

import tasks
from pipeline.data.augment import Placement
from pipeline.stores.labels import COMMON, Label, LabelSpace, Row, Value
from pipeline.stores.rasters import DENSE_STRIDE, Box
from pipeline.stores.skeleton import Skeleton
from tasks.prediction import to_numpy
from tasks.task import FeatureInfo, Features, Task

SIDE = 64
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
BEYOND: Box = (2.0, 2.0, 3.0, 3.0)
NEVER_UNKNOWN = {"detection", "masks", "keypoints"}
"""Tasks in whose labels nothing can be unknown: no object means that there is nothing to find."""
CHEAP = settings(max_examples=25)


def names_of(count: int) -> tuple[str, ...]:
    """Return class names that suit every task: with each one its mirror image, `<scale>@<180 - degrees>`."""
    pairs = [f"{number}@{angle}" for number in range(count // 2) for angle in (45, 135)]
    return tuple([*pairs, f"{count}@90"][:count] if count % 2 == 0 else [*pairs, f"{count}@90"])


SKELETON = Skeleton(("nose", "left_eye", "right_eye", "tail"), ((0, 1), (0, 2), (0, 3)), ((1, 2),))


def space_of(task: str, classes: int = 6, scale: Literal["metric", "relative"] = "metric") -> LabelSpace:
    """Return a label space with all that any task needs of one."""
    return LabelSpace(task, names_of(classes), scale, skeleton=SKELETON)


def spaces_of(task: str) -> list[LabelSpace]:
    """Return a label space of the task, and one of relative scale if its columns differ."""
    metric, relative = space_of(task), space_of(task, scale="relative")
    one, other = tasks.label(metric).columns(), tasks.label(relative).columns()
    return [metric] if one.equals(other, check_metadata=True) else [metric, relative]


def name_of(space: LabelSpace) -> str:
    return f"{space.task}-{space.scale}"


SPACES = [space for task in tasks.names() for space in spaces_of(task)]
every_space = pytest.mark.parametrize("space", SPACES, ids=name_of)


@functools.lru_cache(maxsize=8)
def head_of(space: LabelSpace) -> tuple[Task, nn.Module]:
    torch.manual_seed(0)
    task = tasks.model(space)
    return task, task.head(FeatureInfo(8, 8, SIDE, 16)).eval()


def features(seed: int, shape: tuple[int, int] = (16, 16), count: int = 1, loud: float = 20.0) -> Features:
    """Return random features of `count` images; the fused map is of `shape`."""
    rng = torch.Generator().manual_seed(seed)
    levels = [loud * torch.randn(count, 8, side, side, generator=rng) for side in (8, 4, 2, 1, 1)]
    vector, fused = torch.randn(count, 8, generator=rng), torch.randn(count, 8, *shape, generator=rng)
    # classifiers start near 0: only loud features are told apart
    return Features(20 * loud * vector, levels, loud * fused)


@torch.no_grad()
def value_of(
    space: LabelSpace, seed: int, shape: tuple[int, int] = (16, 16), size: tuple[int, int] = (SIDE, SIDE)
) -> Value:
    """Return a label of the space, as its task predicts it for an image of `size` = (width, height).

    A dense label is of `shape`.
    """
    task, head = head_of(space)
    stride = tasks.label(space).stride
    placement = Placement(size, (max(SIDE, stride * shape[1]), max(SIDE, stride * shape[0])))
    fused = (shape[0] * stride // DENSE_STRIDE, shape[1] * stride // DENSE_STRIDE)
    value = task.value(to_numpy(task.predict(head(features(seed, fused)))), 0, placement)
    return {name: array.copy() for name, array in value.items()}


def stored_row(label: Label, value: Value) -> Row:
    """Return the value's row, converted to the types of a Parquet file and back."""
    schema = pa.schema([*COMMON, *label.columns()])
    row: Row = pa.Table.from_pylist([{"key": "k", "status": "ok", **label.encode(value)}], schema=schema).to_pylist()[0]
    return row


def unknown_value(label: Label, value: Value) -> Value:
    """Return a label with nothing known: cropped beyond the image, at a threshold that nothing reaches."""
    beyond = label.crop(value, BEYOND, (16, 16))
    return label.decode(stored_row(label, beyond), 2.0)


def assert_same_value(one: Value, other: Value, share: float = 0.0) -> None:
    """Assert that two labels have the same arrays: integers equal, floats within `share` of their size (or of 1)."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.shape == other[name].shape, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, other[name], atol=share + 1e-6, rtol=share + 1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array, other[name], err_msg=name)
