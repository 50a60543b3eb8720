"""Detection: boxes on disk, crops and flips, average precision against pycocotools, images without boxes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.augment import Placement
from pipeline.stores.labels import LabelSpace, Value
from tasks.average_precision import BOXES, AveragePrecision
from tasks.detection.label import TaskLabel
from tasks.detection.model import TaskModel
from tasks.instances import MIN_VISIBLE
from tasks.network import Network
from tasks.prediction import to_numpy
from tasks.rcnn import MAX_BOXES, DetectionHead

SPACE = LabelSpace("detection", ("cup", "spoon", "plate"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def found(
    boxes: ArrayLike, scores: ArrayLike | None = None, classes: ArrayLike | None = None, size: ArrayLike = (100, 50)
) -> Value:
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(corners)
    return {
        "boxes": corners,
        "scores": np.asarray(np.ones(count) if scores is None else scores, np.float32),
        "classes": np.asarray(np.zeros(count) if classes is None else classes, np.int32),
        "size": np.asarray(size, np.int32),
    }


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> Value:
    start = rng.random((count, 2)) * 0.7
    corners = np.hstack([start, start + 0.05 + rng.random((count, 2)) * (0.95 - start)]) * np.tile(size, 2)
    return found(corners, rng.random(count), rng.integers(0, 3, count), size)


def near(rng: np.random.Generator, value: Value, much: float) -> Value:
    """Return the boxes with noise: some missing, some of another class, and a few new ones."""
    keep = rng.random(len(value["boxes"])) < 0.8
    moved = value["boxes"][keep] + rng.normal(0, much, (keep.sum(), 4)).astype(np.float32)
    classes = np.where(rng.random(keep.sum()) < 0.1, (value["classes"][keep] + 1) % 3, value["classes"][keep])
    size = (int(value["size"][0]), int(value["size"][1]))
    more = random_boxes(rng, int(rng.integers(0, 4)), size)
    corners = np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return found(
        np.vstack([corners, more["boxes"]]),
        rng.random(len(corners) + len(more["boxes"])),
        np.concatenate([classes, more["classes"]]),
        size,
    )


def test_encode_keeps_boxes_without_loss() -> None:
    value = random_boxes(np.random.default_rng(0), 7, (640, 480))
    back = LABEL.decode(LABEL.encode(value))
    for name, array in value.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("score", [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
def test_decode_keeps_box_at_threshold(score: float) -> None:
    row = LABEL.encode(found([[0, 0, 9, 9], [0, 0, 8, 8]], [score, score - 0.001], [0, 1]))
    assert LABEL.decode(row, score)["classes"].tolist() == [0]
    held, kept = LABEL.count(row, score)  # in objects: the sum of their scores
    np.testing.assert_allclose(held, [score, score - 0.001, 0], rtol=1e-6)
    np.testing.assert_allclose(kept, [score, 0, 0], rtol=1e-6)


def test_encode_counts_boxes() -> None:
    row = LABEL.encode(found(np.ones((3, 4)), [0.5, 0.499, 0.9]))
    assert (row["count"], row["count_50"], row["width"], row["height"]) == (3, 2, 100, 50)
    assert row["confidence"] == pytest.approx(0.9)
    assert LABEL.encode(found([]))["confidence"] == 0


def test_flip_moves_both_edges() -> None:
    assert LABEL.flip(found([[10, 5, 40, 25]]))["boxes"].tolist() == [[60, 5, 90, 25]]


def test_crop_moves_scales_and_clips_boxes() -> None:
    value = found([[10, 5, 40, 25], [60, 30, 90, 45], [40, 10, 60, 20]], [0.9, 0.8, 0.7], [0, 1, 2])
    left = LABEL.crop(value, (0.0, 0.0, 0.5, 1.0), (100, 100))
    assert left["boxes"].tolist() == [[20, 10, 80, 50], [80, 20, 100, 40]]  # the second: half of it is inside
    assert left["classes"].tolist() == [0, 2]
    np.testing.assert_allclose(left["scores"], [0.9, 0.7])
    assert left["size"].tolist() == [100, 100]


@pytest.mark.parametrize(("inside", "kept"), [(MIN_VISIBLE + 0.01, 1), (MIN_VISIBLE - 0.01, 0)])
def test_crop_drops_boxes_that_are_hardly_visible(inside: float, kept: int) -> None:
    x0 = 50 - 20 * inside
    cut = LABEL.crop(found([[x0, 10, x0 + 20, 20]]), (0.0, 0.0, 0.5, 1.0), (64, 64))
    assert len(cut["boxes"]) == kept


def test_crop_without_boxes_is_a_valid_label() -> None:
    cut = LABEL.crop(found([[60, 10, 70, 20]]), (0.0, 0.0, 0.5, 1.0), (64, 64))
    assert cut["boxes"].shape == (0, 4)
    assert LABEL.flip(cut)["boxes"].shape == (0, 4)


def coco(pairs: list[tuple[Value, Value]]) -> dict[str, float]:
    """Return AP and AP50 by pycocotools; predictions are first rescaled to the size of the true image."""
    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, (predicted, true) in enumerate(pairs, start=1):
        for box, name in zip(true["boxes"].tolist(), true["classes"].tolist(), strict=True):
            truth.append({"id": len(truth) + 1, "iscrowd": 0, **annotation(number, box, name)})
        scale = (true["size"] / predicted["size"]).tolist() * 2
        for box, name, score in zip(
            predicted["boxes"].tolist(), predicted["classes"].tolist(), predicted["scores"].tolist(), strict=True
        ):
            scaled = [edge * by for edge, by in zip(box, scale, strict=True)]
            guesses.append({"score": score, **annotation(number, scaled, name)})
    images = [
        {"id": number, "width": int(true["size"][0]), "height": int(true["size"][1])}
        for number, (_, true) in enumerate(pairs, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": images,
            "annotations": truth,
            "categories": [{"id": n, "name": str(n)} for n in (1, 2, 3)],
        }
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(guesses), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"ap": float(evaluation.stats[0]), "ap50": float(evaluation.stats[1])}


def annotation(image: int, box: list[float], name: int) -> dict[str, Any]:
    sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return {"image_id": image, "category_id": name + 1, "bbox": sides, "area": sides[2] * sides[3]}


def ours(pairs: list[tuple[Value, Value]]) -> dict[str, float]:
    metric = AveragePrecision(3, BOXES)
    for predicted, true in pairs:
        metric.update(predicted, true)
    return metric.compute()


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_agrees_with_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(40, 700, (9, 2))]
    truth = [random_boxes(rng, int(count), size) for count, size in zip(rng.integers(0, 12, 9), sizes, strict=True)]
    truth[3] = found([], size=sizes[3])  # an image without a box, which is found in
    pairs = [(near(rng, value, 0.02 * min(value["size"])), value) for value in truth]
    pairs[5] = (found([], size=sizes[5]), truth[5])  # an image in which nothing is found
    scores = ours(pairs)
    assert scores == pytest.approx(coco(pairs), abs=1e-9)
    assert 0.1 < scores["ap"] < scores["ap50"] < 1


def test_average_precision_rescales_predictions_to_the_true_size() -> None:
    rng = np.random.default_rng(8)
    truth = [random_boxes(rng, 5, (400, 200)) for _ in range(4)]
    guesses = [near(rng, value, 6) for value in truth]
    small = [
        {**one, "boxes": one["boxes"] * np.array([0.25, 0.5, 0.25, 0.5], np.float32), "size": np.array([100, 100])}
        for one in guesses
    ]
    expected = ours(list(zip(guesses, truth, strict=True)))
    assert ours(list(zip(small, truth, strict=True))) == pytest.approx(expected, abs=1e-9)
    assert coco(list(zip(small, truth, strict=True))) == pytest.approx(expected, abs=1e-6)


def test_average_precision_of_a_class_is_that_of_its_boxes_alone() -> None:
    rng = np.random.default_rng(4)
    truth = [random_boxes(rng, 8, (300, 200)) for _ in range(6)]
    guesses = [near(rng, value, 5) for value in truth]
    metric = AveragePrecision(3, BOXES)
    for predicted, true in zip(guesses, truth, strict=True):
        metric.update(predicted, true)
    for index, score in metric.compute_by_class().items():
        alone = [(of_class(guess, index), of_class(true, index)) for guess, true in zip(guesses, truth, strict=True)]
        assert score.values == pytest.approx(coco(alone), abs=1e-9)
        assert score.support == sum(len(true["boxes"]) for _, true in alone)


def of_class(value: Value, index: int) -> Value:
    """Return the boxes of one class."""
    rows = value["classes"] == index
    return {name: array if name == "size" else array[rows] for name, array in value.items()}


def test_average_precision_skips_classes_not_in_the_truth() -> None:
    truth = found([[0, 0, 20, 20]], classes=[1])
    assert ours([(truth, truth)]) == {"ap": 1.0, "ap50": 1.0}
    also = found([[0, 0, 20, 20], [50, 0, 70, 20]], [0.9, 0.95], [1, 2])
    assert ours([(also, truth)]) == {"ap": 1.0, "ap50": 1.0}


def test_average_precision_is_0_without_predictions_and_undefined_without_truth() -> None:
    truth = found([[0, 0, 20, 20]])
    assert ours([(found([]), truth)]) == {"ap": 0.0, "ap50": 0.0}
    assert ours([(truth, found([]))]) == {}, "nothing is there to be found"


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network({"boxes": SPACE}, image_size=64)


def losses(network: Network, values: list[Value]) -> torch.Tensor:
    images = torch.randint(0, 256, (len(values), 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target = TASK.collate([LABEL.crop(value, (0, 0, 1, 1), (64, 64)) for value in values])
    torch.manual_seed(0)
    return network.train().losses(images, {"boxes": {"rows": torch.arange(len(values)), "target": target}})["boxes"]


def test_loss_learns_background_from_image_without_box(network: Network) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    history = []
    for _ in range(10):
        loss = losses(network, [found([]), found([])])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert np.isfinite(history).all()
    assert history[-1] < 0.3 * history[0]


def test_loss_takes_images_with_and_without_boxes(network: Network) -> None:
    loss = losses(network, [found([]), found([[10, 5, 40, 25]], classes=[2])])
    loss.backward()
    assert loss.isfinite()
    gradients = [parameter.grad for parameter in network.heads["boxes"].parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_value_gives_boxes_in_pixels_of_the_image(network: Network) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        prediction = TASK.predict(network.eval()(images)["boxes"])
    arrays = to_numpy(prediction)
    for size in ((64, 64), (640, 320)):
        value = TASK.value(arrays, 0, Placement(size, (64, 64)))
        assert value["size"].tolist() == list(size)
        assert 0 < len(value["boxes"]) <= MAX_BOXES
        assert (value["boxes"] >= 0).all()
        assert (value["boxes"] <= np.tile(size, 2) + 1e-3).all()
        assert (np.diff(value["scores"]) <= 0).all()
        assert set(value["classes"].tolist()) <= {0, 1, 2}
    half, whole = (TASK.value(arrays, 0, Placement((side, side), (64, 64))) for side in (32, 64))
    np.testing.assert_allclose(half["boxes"] * 2, whole["boxes"], rtol=1e-6)


def test_detection_head_has_the_layers_of_must(network: Network) -> None:
    """The RPN has two hidden convolutions; the box head four convolutions and one fully connected layer."""
    head = network.heads["boxes"]
    rpn = [m for m in head.rpn.head.conv.modules() if isinstance(m, torch.nn.Conv2d)]  # type: ignore[union-attr]
    box = head.boxes.box_head  # type: ignore[union-attr]
    assert len(rpn) == 2
    assert sum(isinstance(m, torch.nn.Conv2d) for m in box.modules()) == 4  # type: ignore[union-attr]
    assert sum(isinstance(m, torch.nn.Linear) for m in box.modules()) == 1  # type: ignore[union-attr]


def test_constant_label_is_mean_box_of_most_frequent_class() -> None:
    values = [found([[0, 0, 50, 25], [50, 25, 100, 50], [0, 0, 1, 1]], classes=[1, 1, 0]), found([], size=(9, 9))]
    guess = TASK.constant_label(values)
    np.testing.assert_allclose(guess["boxes"], [[0.25, 0.25, 0.75, 0.75]])
    assert (guess["classes"].tolist(), guess["size"].tolist(), guess["scores"].tolist()) == ([1], [1, 1], [1])
    assert TASK.constant_label([found([])])["boxes"].shape == (0, 4)
    assert TASK.constant_label([])["boxes"].shape == (0, 4)


def test_detection_boxes_are_in_the_valid_region_and_in_pixels_of_the_image(network: Network) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    valid = [(64, 64), (64, 20)]
    with torch.no_grad():
        prediction = to_numpy(TASK.predict(network.eval()(images)["boxes"], valid))
    whole, wide = (one["boxes"] for one in prediction["images"])
    assert whole[:, 3].max() > 20
    assert wide[:, 3].max() == 20
    assert (wide[:, 3] > wide[:, 1]).all(), "none lies in the padding"
    value = TASK.value(prediction, 1, Placement((640, 200), (64, 20)))
    np.testing.assert_allclose(value["boxes"], 10 * wide)


def test_detection_boxes_do_not_depend_on_the_valid_regions_of_other_images(network: Network) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    valid = [(64, 20), (64, 64)]
    predicted = []
    for count in (1, 2, 1):  # with one model: nothing of the first images may stay
        with torch.no_grad():
            prediction = to_numpy(TASK.predict(network.eval()(images[:count])["boxes"], valid[:count]))
        predicted.append(prediction["images"][0])
    head = network.heads["boxes"]
    assert isinstance(head, DetectionHead)
    assert head.boxes.box_roi_pool.scales == [1 / 8, 1 / 16, 1 / 32]
    for other in predicted[1:]:
        np.testing.assert_allclose(other["boxes"], predicted[0]["boxes"], atol=1e-3)
        np.testing.assert_allclose(other["scores"], predicted[0]["scores"], atol=1e-5)


def test_detection_loss_takes_proposals_from_the_valid_region(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed: list[torch.Tensor] = []
    head = network.heads["boxes"]
    assert isinstance(head, DetectionHead)
    head.boxes.register_forward_pre_hook(lambda module, given: proposed.extend(given[1]))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    target = TASK.collate([found([[2, 2, 30, 16]], size=(64, 64))], [(64, 20)])
    TASK.loss(network.train()(images)["boxes"], target).backward()
    assert proposed[0][:, 3].max() <= 20
