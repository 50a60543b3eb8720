"""What every task owes the house. Tasks are found by their folders, nobody lists them here.

Labels to test with are a task's own: what an untrained head says about random features. What is unknown in them comes
from cropping beyond the image and from thresholds that nothing reaches.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import tasks
from pipeline.labels import COMMON, Box, Label, LabelSpace, Row, Value
from tasks.learning import to_numpy
from tasks.network import PYRAMID_STRIDES, Network, NetworkConfig
from tasks.task import FeatureInfo, Features, Task

SIDE = 64
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
BEYOND: Box = (2.0, 2.0, 3.0, 3.0)
EMPTY_SAYS_SOMETHING = {"detection"}
"""Tasks in whose labels nothing can be unknown: no box means that there is nothing to find."""
CHEAP = settings(max_examples=25)


def names_of(count: int) -> tuple[str, ...]:
    """Class names that suit every task: each one's mirror image, `<scale>@<180 - degrees>`, is among them."""
    pairs = [f"{number}@{angle}" for number in range(count // 2) for angle in (45, 135)]
    return tuple([*pairs, f"{count}@90"][:count] if count % 2 == 0 else [*pairs, f"{count}@90"])


def spaces_of(task: str, classes: int = 6) -> list[LabelSpace]:
    """A label space of the task, and one of relative scale if that is something else on disk."""
    metric, relative = LabelSpace(task, names_of(classes)), LabelSpace(task, names_of(classes), "relative")
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
    return task, task.head(FeatureInfo(8, 8, PYRAMID_STRIDES, SIDE, 16)).eval()


def features(seed: int, shape: tuple[int, int] = (16, 16), count: int = 1, loud: float = 20.0) -> Features:
    """Random features of `count` images; the fused map, and with it a dense label, is of `shape`."""
    rng = torch.Generator().manual_seed(seed)
    levels = [loud * torch.randn(count, 8, side, side, generator=rng) for side in (8, 4, 2, 1, 1)]
    top, fused = torch.randn(count, 8, 2, 2, generator=rng), torch.randn(count, 8, *shape, generator=rng)
    return Features(
        20 * loud * top, levels, loud * fused
    )  # classifiers start near 0: only loud features are told apart


@torch.no_grad()
def value_of(
    space: LabelSpace, seed: int, shape: tuple[int, int] = (16, 16), size: tuple[int, int] = (SIDE, SIDE)
) -> Value:
    """A label of the space as its task predicts it for an image of `size` = (width, height)."""
    task, head = head_of(space)
    value = task.value(to_numpy(task.predict(head(features(seed, shape)))), 0, size)
    return {name: array.copy() for name, array in value.items()}


def on_disk(label: Label, value: Value) -> Row:
    """The value's row as it comes back from a Parquet file's types."""
    schema = pa.schema([*COMMON, *label.columns()])
    row: Row = pa.Table.from_pylist([{"key": "k", "status": "ok", **label.encode(value)}], schema=schema).to_pylist()[0]
    return row


def nothing_known(label: Label, value: Value) -> Value:
    """The label with nothing in it: what lies outside the image, under a threshold that nothing reaches."""
    beyond = label.crop(value, BEYOND, (16, 16))
    return label.decode(on_disk(label, beyond), 2.0)


def same(one: Value, other: Value, share: float = 0.0) -> None:
    """Assert that two labels have the same arrays: integers equal, floats within `share` of their size (or of 1)."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.shape == other[name].shape, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, other[name], atol=share + 1e-6, rtol=share + 1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array, other[name], err_msg=name)


# A task's label: what it is on disk and to the eye


@pytest.mark.parametrize("task", tasks.names())
def test_a_task_is_a_folder_of_two_files_named_like_it(task: str) -> None:
    label = importlib.import_module(f"tasks.{task}.label").TaskLabel
    model = importlib.import_module(f"tasks.{task}.model").TaskModel
    assert issubclass(label, Label)
    assert issubclass(model, Task)
    assert label.task == task
    assert model.better
    assert set(model.better.values()) <= {"higher", "lower"}


@pytest.mark.parametrize("task", tasks.names())
def test_a_label_states_what_storing_it_costs(task: str) -> None:
    about = inspect.getdoc(type(tasks.label(LabelSpace(task, names_of(4))))) or ""
    assert "Stored" in about, f"tasks/{task}/label.py: its docstring does not say how it is stored and what that loses"


@every_space
@CHEAP
@given(
    seed=st.integers(0, 50),
    classes=st.sampled_from([1, 2, 3, 7, 254, 255, 256, 300]),
    h=st.integers(1, 23),
    w=st.integers(1, 23),
)
def test_a_label_survives_its_store(space: LabelSpace, seed: int, classes: int, h: int, w: int) -> None:
    """Within a hundredth; the tighter bound that each task states is tested beside the task."""
    space = LabelSpace(space.task, names_of(classes), space.scale)
    label, value = tasks.label(space), value_of(space, seed, (h, w), (4 * w + 1, 4 * h + 3))
    row = on_disk(label, value)
    same(label.decode(row), value, share=0.01)
    assert 0 <= row["confidence"] <= 1
    assert set(label.encode(value)) - {"confidence"} == set(label.columns().names)


@every_space
def test_a_label_without_content_survives_its_store(space: LabelSpace) -> None:
    label, value = tasks.label(space), value_of(space, 1)
    empty = nothing_known(label, value)
    row = on_disk(label, empty)
    same(label.decode(row), empty)
    assert all(math.isfinite(cell) for cell in row.values() if isinstance(cell, float)), row


@every_space
@CHEAP
@given(seed=st.integers(0, 50), h=st.integers(1, 17), w=st.integers(1, 17))
def test_two_flips_are_none(space: LabelSpace, seed: int, h: int, w: int) -> None:
    label, value = tasks.label(space), value_of(space, seed, (h, w), (4 * w + 1, 4 * h + 3))
    before = {name: array.copy() for name, array in value.items()}
    same(label.flip(label.flip(value)), value, share=1e-5)
    same(value, before)


@every_space
@CHEAP
@given(seed=st.integers(0, 50), h=st.integers(1, 17), w=st.integers(1, 17))
def test_cropping_to_the_whole_at_the_same_size_changes_nothing(space: LabelSpace, seed: int, h: int, w: int) -> None:
    dense = value_of(space, seed, (h, w), (w, h))
    same(tasks.label(space).crop(dense, WHOLE, (h, w)), dense, share=1e-5)


@every_space
@pytest.mark.parametrize("seed", range(5))
def test_the_flip_of_a_crop_is_the_mirrored_crop_of_the_flip(space: LabelSpace, seed: int) -> None:
    label, value = tasks.label(space), value_of(space, seed, (16, 16))
    x0, y0, width, height = np.random.default_rng(seed).uniform(0.2, 0.8, 4)
    box = (x0, y0, x0 + width, y0 + height)  # may reach beyond the image
    mirrored = (1 - box[2], box[1], 1 - box[0], box[3])
    size = (13, 19)
    same(label.flip(label.crop(value, box, size)), label.crop(label.flip(value), mirrored, size), share=1e-4)


@every_space
def test_a_label_is_drawn_on_an_image_of_any_size(space: LabelSpace) -> None:
    label = tasks.label(space)
    for value in (value_of(space, 3), nothing_known(label, value_of(space, 3))):
        for size in ((200, 150), (33, 65)):
            image = Image.new("RGB", size, (90, 120, 40))
            drawn = label.draw(image, value)
            assert (drawn.size, drawn.mode) == (size, "RGB")
            assert image.getcolors() == [(size[0] * size[1], (90, 120, 40))], "the image itself was drawn on"
    assert label.draw(image, value_of(space, 3)).tobytes() != image.tobytes()


@every_space
@CHEAP
@given(seed=st.integers(0, 50), h=st.integers(1, 17), w=st.integers(1, 17))
def test_a_label_differs_from_itself_by_nothing_and_from_one_without_content_by_all(
    space: LabelSpace, seed: int, h: int, w: int
) -> None:
    label, value, other = tasks.label(space), value_of(space, seed, (h, w)), value_of(space, seed + 1, (w, h))
    assert label.differ(value, value) == pytest.approx(0, abs=1e-6)
    assert label.differ(label.flip(value), label.flip(value)) == pytest.approx(0, abs=1e-6)
    assert 0 <= label.differ(value, other) <= 1
    if space.scale == "metric":  # else the one is brought to the other's scale
        assert label.differ(value, other) == pytest.approx(label.differ(other, value), abs=0.05)
    empty = nothing_known(label, value)
    assert label.differ(empty, empty) == 0
    if len(value.get("boxes", [None])):
        assert label.differ(value, empty) == label.differ(empty, value) == 1


@every_space
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.3, 0.8), (1.0, 1.0)])
def test_a_label_tells_what_is_at_a_place(space: LabelSpace, place: tuple[float, float]) -> None:
    label, value = tasks.label(space), value_of(space, 3)
    told = label.at(value, place)
    mirrored = label.at(label.flip(value), (1 - place[0], place[1]))
    assert told.replace("left", "right") == mirrored.replace("left", "right") or space.task == "texture"
    assert label.at(nothing_known(label, value), place) in ("", "no class")
    assert told or space.task == "detection"


@every_space
def test_what_a_file_of_labels_holds_is_what_its_rows_hold(space: LabelSpace) -> None:
    """By class; and of rows without a label nothing."""
    label = tasks.label(space)
    rows: list[Row] = [{"key": "k", "status": "none"}]
    rows += [{"key": "k", "status": "ok", **label.encode(value_of(space, seed))} for seed in range(4)]
    table = pa.Table.from_pylist([*rows, rows[0]], schema=pa.schema([*COMMON, *label.columns()]))
    held = label.holds(table.select([*label.counted]))
    found = {(int(row), int(number)) for row, number in zip(held.rows, held.classes, strict=True)}
    assert len(found) == len(held.rows)
    assert (np.diff(held.rows) >= 0).all()
    assert ((held.amounts > 0) & (held.amounts <= 1 + 1e-6)).all()
    if label.counted:
        expected = {(n, int(c)) for n in range(1, 5) for c in np.flatnonzero(label.count(rows[n], 0.0)[0])}
        assert found == expected
    else:
        assert not found


@every_space
def test_a_threshold_of_0_keeps_all_and_a_higher_one_no_more(space: LabelSpace) -> None:
    label = tasks.label(space)
    row = on_disk(label, value_of(space, 4))
    held, kept = label.count(row, 0.0)
    np.testing.assert_array_equal(held, kept)
    assert held.sum() > 0
    for threshold in (0.3, 0.5, 0.9):
        again, fewer = label.count(row, threshold)
        np.testing.assert_array_equal(again, held)
        assert (fewer <= kept).all()
        kept = fewer


# A task's model: how it is learned


def target_of(task: Task, values: list[Value]) -> Any:
    """Targets in the raster that heads work in; boxes in the input's pixels, as the loader makes them."""
    side = SIDE if "boxes" in values[0] else SIDE // 4
    return task.collate([tasks.label(task.space).crop(value, WHOLE, (side, side)) for value in values])


def tiny(space: LabelSpace, backbone: str) -> Network:
    about = {"backbone": backbone, "image_size": SIDE, "width": 16, "proposals": 16, "heads": {"head": space.to_json()}}
    return Network(NetworkConfig.model_validate(about)).train()


@every_space
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_loss_is_finite_and_falls_on_one_batch(space: LabelSpace, backbone: str) -> None:
    network = tiny(space, backbone)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    target = target_of(network.tasks["head"], [value_of(space, seed) for seed in range(4)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = network.losses(images, {"head": {"rows": torch.arange(4), "target": target}})["head"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all(), losses
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:2]), losses


@every_space
@pytest.mark.parametrize("pieces", [[1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
def test_the_loss_of_a_batch_is_that_of_its_pieces_by_how_much_is_in_each(space: LabelSpace, pieces: list[int]) -> None:
    """Of images of which one or the other knows little. Detection draws samples, whose number varies a little."""
    network = tiny(space, "test_convnext").eval()  # its norms look at one image
    task, label = network.tasks["head"], tasks.label(space)
    values = [value_of(space, seed) for seed in range(4)]
    values[1] = label.crop(values[1], (0.5, 0.5, 1.5, 1.5), (SIDE, SIDE))
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    if space.task == "detection":
        network.heads.train()

    def loss(run: slice) -> tuple[float, float]:
        target = target_of(task, values[run])
        rows = torch.arange(len(values[run]))
        with torch.no_grad():
            mean = network.losses(images[run], {"head": {"rows": rows, "target": target}})["head"]
        return float(mean), task.amount(target)

    whole, amount = loss(slice(0, 4))
    ends = np.cumsum(pieces).tolist()
    found = [loss(slice(end - size, end)) for size, end in zip(pieces, ends, strict=True)]
    assert sum(share for _, share in found) == amount > 0
    tolerance = 0.3 if space.task == "detection" else 1e-4
    assert sum(mean * share / amount for mean, share in found) == pytest.approx(whole, rel=tolerance)


def output_of(space: LabelSpace, count: int) -> tuple[Task, Tensor]:
    """The raw output for random features, as a leaf that gradients arrive at."""
    task, head = head_of(space)
    with torch.no_grad():
        output: Tensor = head(features(9, count=count, loud=1.0))
    return task, output.clone().requires_grad_()


CAN_BE_UNKNOWN = [space for space in SPACES if space.task not in EMPTY_SAYS_SOMETHING]
DENSE = [space for space in CAN_BE_UNKNOWN if output_of(space, 1)[1].ndim == 4]
can_be_unknown = pytest.mark.parametrize("space", CAN_BE_UNKNOWN, ids=name_of)
dense = pytest.mark.parametrize("space", DENSE, ids=name_of)


@can_be_unknown
def test_the_loss_is_0_without_gradient_where_nothing_is_known(space: LabelSpace) -> None:
    task, output = output_of(space, 2)
    empty = nothing_known(tasks.label(space), value_of(space, 5))
    loss = task.loss(output, target_of(task, [empty, empty]))
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.any()


@can_be_unknown
def test_an_image_without_label_changes_nothing_for_the_others(space: LabelSpace) -> None:
    task, both = output_of(space, 2)
    value = value_of(space, 6)
    alone = both.detach()[:1].clone().requires_grad_()
    empty = nothing_known(tasks.label(space), value)
    one, two = task.loss(alone, target_of(task, [value])), task.loss(both, target_of(task, [value, empty]))
    one.backward()
    two.backward()
    assert alone.grad is not None
    assert both.grad is not None
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(both.grad[:1], alone.grad)
    assert not both.grad[1].any()
    assert alone.grad.any()


@dense
def test_what_the_network_says_of_unknown_pixels_is_ignored(space: LabelSpace) -> None:
    task, output = output_of(space, 1)
    shifted = tasks.label(space).crop(value_of(space, 7), (-0.5, 0.0, 0.5, 1.0), (16, 16))  # left half: unknown
    target = task.collate([shifted])
    elsewhere = output.detach().clone()
    elsewhere[..., :8] = 5 * torch.randn(elsewhere[..., :8].shape, generator=torch.Generator().manual_seed(2))
    elsewhere.requires_grad_()
    one, other = task.loss(output, target), task.loss(elsewhere, target)
    one.backward()
    other.backward()
    assert output.grad is not None
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(output.grad, elsewhere.grad)
    assert not output.grad[..., :8].any()
    assert output.grad[..., 8:].any()


@every_space
def test_every_metric_that_is_named_is_computed_and_no_other(space: LabelSpace) -> None:
    task, _ = head_of(space)
    before = task.metrics().compute()  # of nothing yet
    metric = task.metrics()
    metric.update(value_of(space, 1), value_of(space, 2))
    assert set(before) == set(metric.compute()) == set(task.better)
    assert all(math.isfinite(value) for value in [*before.values(), *metric.compute().values()])


@every_space
def test_a_perfect_prediction_scores_perfectly_and_another_does_not(space: LabelSpace) -> None:
    task, _ = head_of(space)
    perfect, other = task.metrics(), task.metrics()
    for seed in range(4):
        value = value_of(space, seed)
        perfect.update(value, value)
        other.update(value_of(space, 10 + seed), value)
    for name, score in perfect.compute().items():
        higher = task.better[name] == "higher"
        assert score == pytest.approx(1.0 if higher else 0.0, abs=0.006), name
        worse = other.compute()[name]
        assert (worse < score) if higher else (worse > score), name


@every_space
def test_metrics_do_not_depend_on_the_order_of_the_images(space: LabelSpace) -> None:
    task, _ = head_of(space)
    pairs = [(value_of(space, seed), value_of(space, seed + 20)) for seed in range(5)]
    pairs[2] = (pairs[2][0], pairs[2][0])
    forward, backward = task.metrics(), task.metrics()
    for predicted, true in pairs:
        forward.update(predicted, true)
    for predicted, true in reversed(pairs):
        backward.update(predicted, true)
    assert forward.compute() == pytest.approx(backward.compute(), rel=1e-9)
    assert forward.compute() == forward.compute(), "asking twice changes the answer"


@every_space
@torch.no_grad()
def test_a_prediction_does_not_depend_on_the_batch_it_is_in(space: LabelSpace) -> None:
    task, head = head_of(space)
    batch = features(11, count=3)
    together = to_numpy(task.predict(head(batch)))
    for index in range(3):
        alone = to_numpy(task.predict(head(batch.select(torch.tensor([index])))))
        same(task.value(alone, 0, (50, 40)), task.value(together, index, (50, 40)), share=1e-3)


@every_space
def test_the_constant_guess_is_a_label(space: LabelSpace) -> None:
    task, _ = head_of(space)
    label = tasks.label(space)
    values = [value_of(space, seed) for seed in range(3)]
    guess = task.constant(iter(values))
    same(label.decode(on_disk(label, guess)), guess, share=0.01)
    metric = task.metrics()
    for value in values:
        metric.update(guess, value)
    assert all(math.isfinite(score) for score in metric.compute().values())
