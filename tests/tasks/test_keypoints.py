"""Keypoints: labels on disk, mirrored and cropped; average precision against pycocotools; the heat maps."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.augment import Placement
from pipeline.errors import ConfigError, DataError
from pipeline.stores.labels import LabelSpace, Value, explain_label_errors
from pipeline.stores.skeleton import Skeleton
from tasks.keypoints.label import TaskLabel
from tasks.keypoints.model import TaskModel, read_heatmaps
from tasks.keypoints.oks import match_radii, sigmas, similarities
from tasks.network import Network
from tasks.prediction import check_finite_label, to_numpy
from tasks.task import FeatureInfo

FACE = Skeleton(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),))
SPACE = LabelSpace("keypoints", ("cat", "dog"), skeleton=FACE)
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)
SIZE = (60, 40)


def objects(points: Any, visibility: Any = None, scores: Any = None, classes: Any = None, **more: Any) -> Value:
    """Return the label of objects with these points (N, K, 2), of which all are visible unless stated."""
    keypoints = np.asarray(points, np.float32)
    count, known = len(keypoints), keypoints.shape[:2]
    seen = np.full(known, 2, np.uint8) if visibility is None else np.asarray(visibility, np.uint8)
    boxes = np.concatenate([keypoints.min(axis=1) - 2, keypoints.max(axis=1) + 2], axis=1)
    return {
        "boxes": np.clip(boxes, 0, np.tile(SIZE, 2)).astype(np.float32),
        "scores": np.asarray(np.ones(count) if scores is None else scores, np.float32),
        "classes": np.asarray(np.zeros(count) if classes is None else classes, np.int32),
        "size": np.array(SIZE, np.int32),
        "keypoints": np.where(seen[..., None] > 0, keypoints, 0),
        "visibility": seen,
        "keypoint_scores": (seen > 0).astype(np.float32),
        "areas": np.full(count, 150, np.float32),
        **more,
    }


CAT = objects([[[20, 10], [25, 8], [15, 8]]], [[2, 1, 2]])


def test_encode_keeps_keypoints_without_loss_and_counts_those_that_are_known() -> None:
    value = objects(np.random.default_rng(0).random((4, 3, 2)) * SIZE, [[0, 1, 2], [2, 2, 2], [0, 0, 0], [1, 1, 0]])
    row = LABEL.encode(value)
    back = LABEL.decode(row)
    for name, array in value.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert (row["count"], row["count_keypoints"], row["confidence"]) == (4, 7, 1.0)


def test_decode_drops_objects_by_probability_and_points_by_score() -> None:
    value = objects(
        np.ones((2, 3, 2)) * 9, scores=[0.4, 0.9], keypoint_scores=np.full((2, 3), [0.2, 0.5, 0.9], np.float32)
    )
    kept = LABEL.decode(LABEL.encode(value), 0.5)
    assert kept["scores"].tolist() == [np.float32(0.9)]
    assert kept["visibility"].tolist() == [[0, 2, 2]]
    assert kept["keypoints"][0].tolist() == [[0, 0], [9, 9], [9, 9]]
    assert kept["keypoint_scores"][0, 0] == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"keypoints": [[1.0, 2.0]]},
        {"keypoints": []},
        {"keypoints": [[float("nan")] * 6]},
        {"visibility": [[0, 1, 3]]},
        {"visibility": [[0, 1, None]]},
        {"keypoint_scores": [[0.0, 1.5, 1.0]]},
        {"areas": [-1.0]},
        {"areas": [1.0, 2.0]},
    ],
    ids=str,
)
def test_decode_of_damaged_keypoints_is_a_data_error(damage: dict[str, Any]) -> None:
    row = LABEL.encode(CAT)
    with pytest.raises(DataError, match="the label of k is damaged"), explain_label_errors("file", "k"):
        LABEL.decode(row | damage)


def test_flip_exchanges_left_and_right_and_twice_is_identity() -> None:
    flipped = LABEL.flip(CAT)
    assert flipped["keypoints"][0].tolist() == [[40, 10], [45, 8], [35, 8]], "the left eye is still right of the nose"
    assert flipped["visibility"].tolist() == [[2, 2, 1]], "the hidden eye is now the right one"
    for name, array in LABEL.flip(flipped).items():
        np.testing.assert_array_equal(array, CAT[name])
    unknown = objects([[[20, 10], [25, 8], [15, 8]]], [[2, 0, 2]])
    assert LABEL.flip(unknown)["keypoints"][0].tolist() == [[40, 10], [45, 8], [0, 0]]


def test_crop_moves_points_and_forgets_those_outside() -> None:
    cut = LABEL.crop(CAT, (0.25, 0.0, 0.75, 1.0), (80, 60))  # 15 to 45 across, twice as large
    assert cut["keypoints"][0].tolist() == [[10, 20], [20, 16], [0, 16]]
    assert cut["visibility"].tolist() == [[2, 1, 2]], "a point on the edge is inside"
    assert cut["areas"].tolist() == [150 * 4]
    cut = LABEL.crop(CAT, (0.3, 0.0, 0.8, 1.0), (80, 60))
    assert cut["visibility"].tolist() == [[2, 1, 0]]
    assert (cut["keypoints"][0, 2].tolist(), cut["keypoint_scores"][0].tolist()) == ([0, 0], [1, 1, 0])


def test_draw_marks_known_points_and_joins_them() -> None:
    def drawn(visibility: list[int]) -> Any:
        value = objects([[[30, 10], [50, 30], [10, 30]]], [visibility])
        return np.asarray(LABEL.draw_plain(Image.new("RGB", (120, 80)), value))

    both, one, none = drawn([2, 2, 2]), drawn([2, 2, 0]), drawn([0, 0, 0])
    assert both[40, 80].any(), "in the middle of nose and left eye"
    assert both[40, 40].any(), "in the middle of nose and right eye"
    assert one[40, 80].any()
    assert not one[40, 40].any()
    assert not none[21:58, 22:98].any(), "the box alone"
    assert LABEL.describe(CAT) == "1 object with keypoints"


def test_distance_compares_points_and_boxes_where_no_point_is_known() -> None:
    other = {**CAT, "keypoints": CAT["keypoints"] + np.float32(30)}
    assert LABEL.distance(CAT, CAT) == 0
    assert LABEL.distance(CAT, other) == LABEL.distance(other, CAT) == 1, "of the same boxes"
    blank = objects([[[20, 10], [25, 8], [15, 8]]], [[0, 0, 0]])
    assert LABEL.distance(blank, blank) == 0


def test_similarities_are_0_5_at_the_match_radius() -> None:
    away = match_radii(3)[:, None] * np.sqrt(150) * [[1, 0], [0, 1], [-1, 0]]
    moved = {**CAT, "keypoints": (CAT["keypoints"] + away).astype(np.float32)}
    assert similarities(moved, CAT) == pytest.approx(0.5, abs=1e-5)
    twice = {**CAT, "keypoints": CAT["keypoints"] * 2, "size": CAT["size"] * 2}
    assert similarities(twice, CAT) == pytest.approx(1)


def random_objects(rng: np.random.Generator, count: int, points: int) -> Value:
    places = rng.random((count, 1, 2)) * [40, 20] + rng.random((count, points, 2)) * 20
    return objects(
        places,
        rng.choice([0, 1, 2], (count, points)) * (rng.random((count, 1)) < 0.8),
        rng.random(count),
        2 * rng.integers(0, 2, count),
        areas=rng.uniform(50, 400, count).astype(np.float32),
    )


def near(rng: np.random.Generator, value: Value) -> Value:
    """Return the objects with all points known and off by a few pixels: some missing, some of another class."""
    kept = rng.random(len(value["boxes"])) < 0.8
    points = value["keypoints"][kept] + rng.normal(0, rng.uniform(0.1, 2), (kept.sum(), *value["keypoints"].shape[1:]))
    classes = np.where(rng.random(kept.sum()) < 0.1, 0, value["classes"][kept])
    return objects(points, scores=rng.random(kept.sum()), classes=classes)


def coco_scores(pairs: list[tuple[Value, Value]]) -> dict[str, float]:
    """Return AP and AP50 of keypoints by pycocotools."""
    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []

    def flat(value: Value) -> list[list[float]]:
        triples = np.concatenate([value["keypoints"].astype(float), value["visibility"][..., None]], axis=2)
        return [each.ravel().tolist() for each in triples]

    for number, (predicted, true) in enumerate(pairs, start=1):
        corners = true["boxes"].astype(float)
        columns = flat(true), true["classes"].tolist(), true["areas"].tolist(), corners.tolist()
        for points, name, area, (x0, y0, x1, y1) in zip(*columns, strict=True):
            about = {"image_id": number, "category_id": name + 1, "area": area, "iscrowd": 0, "id": len(truth) + 1}
            count = sum(seen > 0 for seen in points[2::3])
            bbox = [x0, y0, x1 - x0, y1 - y0]
            truth.append({**about, "bbox": bbox, "keypoints": points, "num_keypoints": count})
        for points, name, score in zip(
            flat(predicted), predicted["classes"].tolist(), predicted["scores"].tolist(), strict=True
        ):
            guesses.append({"image_id": number, "category_id": name + 1, "score": score, "keypoints": points})
    images = [{"id": number, "width": SIZE[0], "height": SIZE[1]} for number in range(1, len(pairs) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        categories = [{"id": n, "name": str(n)} for n in (1, 2, 3)]
        known.dataset = {"images": images, "annotations": truth, "categories": categories}
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(guesses), "keypoints")
        count = pairs[0][1]["keypoints"].shape[1]
        if count != 17:
            evaluation.params.kpt_oks_sigmas = np.full(count, 0.05)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"ap": float(evaluation.stats[0]), "ap50": float(evaluation.stats[1])}


@pytest.mark.parametrize("points", [3, 17])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_keypoints_agrees_with_pycocotools(seed: int, points: int) -> None:
    """Of objects without a labelled point, images and classes without objects, and more than 20 detections."""
    rng = np.random.default_rng(seed)
    truth = [random_objects(rng, count, points) for count in (3, 0, 6, 30, 5)]
    pairs = [(near(rng, value), value) for value in truth]
    pairs[1] = (random_objects(rng, 2, points), truth[1])
    metric = TaskModel(
        LabelSpace("keypoints", ("a", "b", "c"), skeleton=Skeleton(tuple(map(str, range(points)))))
    ).metrics()
    for predicted, true in pairs:
        metric.update(predicted, true)
    scores = metric.compute()
    assert scores == pytest.approx(coco_scores(pairs), abs=1e-9)
    assert 0.02 < scores["ap"] < scores["ap50"] < 1
    counted = sum(int((value["visibility"] > 0).any(axis=1).sum()) for value in truth)
    assert sum(score.support for score in metric.compute_by_class().values()) == counted


def test_sigmas_are_cocos_for_17_points_alone() -> None:
    person = COCOeval(iouType="keypoints").params.kpt_oks_sigmas
    np.testing.assert_allclose(sigmas(17), person, atol=1e-12)
    assert sigmas(3).tolist() == [0.05] * 3


def test_metric_of_objects_without_labelled_points_is_none() -> None:
    metric = TASK.metrics()
    metric.update(CAT, objects([[[20, 10], [25, 8], [15, 8]]], [[0, 0, 0]]))
    assert metric.compute() == {}


def test_scored_examples_are_right_where_points_match() -> None:
    predicted = objects([[[20, 10], [25, 8], [15, 8]], [[40, 30], [45, 28], [35, 28]]], scores=[0.9, 0.3])
    true = objects([[[20, 10], [25, 8], [15, 8]], [[40, 38], [45, 22], [35, 22]]])
    examples = TASK.scored_examples(predicted, true)
    assert examples is not None
    assert examples.right.tolist() == [1, 0]


def test_read_heatmaps_finds_the_mean_near_the_best_cell_and_its_probability() -> None:
    maps = torch.full((1, 2, 56, 56), -20.0)
    maps[0, 0, 10, 20] = maps[0, 0, 10, 21] = 20.0
    maps[0, 1, 5, 5], maps[0, 1, 50, 50] = 20.0 + np.log(3), 20.0
    points, scores = read_heatmaps(maps, torch.tensor([[10.0, 20.0, 66.0, 132.0]]))
    np.testing.assert_allclose(points[0].numpy(), np.array([[31, 41], [15.5, 31]]), atol=1e-3)
    np.testing.assert_allclose(scores[0].numpy(), [1, 0.75], atol=1e-3)
    points, scores = read_heatmaps(torch.zeros(0, 2, 56, 56), torch.zeros(0, 4))
    assert (points.shape, scores.shape) == ((0, 2, 2), (0, 2))


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network({"things": SPACE}, image_size=64)


def test_value_has_points_in_pixels_of_the_image_and_none_in_the_padding(network: Network) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        prediction = to_numpy(TASK.predict(network.eval()(images)["things"], [(64, 64), (64, 20)]))
    value = TASK.value(prediction, 1, Placement((640, 200), (64, 20)))
    check_finite_label(value)
    assert value["keypoints"].shape == (len(value["boxes"]), 3, 2)
    assert len(value["boxes"]) > 0
    assert (value["keypoints"] >= value["boxes"][:, None, :2] - 1e-3).all()
    assert (value["keypoints"] <= value["boxes"][:, None, 2:] + 1e-3).all()
    assert (value["visibility"] == 2).all()
    assert ((value["keypoint_scores"] > 0) & (value["keypoint_scores"] <= 1)).all()


def test_loss_of_heatmaps_ignores_unknown_points(network: Network) -> None:
    """Of one object with and without known points: only the former trains the keypoint head, and only its maps."""
    points = np.array([[[30, 30], [40, 20], [20, 20]]], np.float32)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for visibility in ([0, 0, 0], [0, 2, 1], [0, 0, 1]):
        value = objects(points, [visibility], size=np.array([64, 64], np.int32))
        value["boxes"] = np.array([[4, 4, 60, 60]], np.float32)
        network.zero_grad()
        target = TASK.collate([value])
        network.train().to(memory_format=torch.channels_last)
        loss = network.losses(images, {"things": {"rows": torch.arange(1), "target": target}})["things"]
        loss.backward()
        assert loss.isfinite()
        head: Any = network.heads["things"]
        grad = head.boxes.keypoint_predictor.kps_score_lowres.weight.grad
        assert grad.abs().sum(dim=(0, 2, 3)).gt(0).tolist() == [seen > 0 for seen in visibility]


def test_head_is_that_of_detection_with_eight_convolutions_for_keypoints(network: Network) -> None:
    heads: Any = network.heads["things"].boxes
    convolutions = [each for each in heads.keypoint_head.modules() if isinstance(each, torch.nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [2 * network.config.width] * 8
    assert heads.keypoint_predictor.kps_score_lowres.out_channels == 3


def test_head_without_keypoints_in_the_label_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="the labels name no keypoints"):
        TaskModel(LabelSpace("keypoints", ("cat",))).head(FeatureInfo(8, 8, 64, 16))


def test_predict_is_float32_under_autocast(network: Network) -> None:
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        [found] = TASK.predict(network.eval()(images)["things"])["images"]
    assert {found[name].dtype for name in ("boxes", "scores", "keypoints", "keypoint_scores")} == {torch.float32}


def test_constant_label_has_the_mean_places_of_the_points_in_the_mean_box() -> None:
    one = objects(
        [[[12, 10], [0, 0], [0, 0]]], [[2, 0, 0]], classes=[1], boxes=np.array([[10, 10, 20, 20]], np.float32)
    )
    two = objects(
        [[[24, 20], [28, 16], [0, 0]]], [[2, 2, 0]], classes=[1], boxes=np.array([[20, 10, 30, 30]], np.float32)
    )
    guess = TASK.constant_label(iter([one, two]))
    np.testing.assert_allclose(guess["boxes"], [[15 / 60, 10 / 40, 25 / 60, 25 / 40]], atol=1e-6)
    assert guess["visibility"].tolist() == [[2, 2, 0]]
    np.testing.assert_allclose(guess["keypoints"][0, 0], [18 / 60, (10 + 0.25 * 15) / 40], atol=1e-6)
    assert len(TASK.constant_label([LABEL.crop(CAT, (2.0, 2.0, 3.0, 3.0), (8, 8))])["boxes"]) == 0
