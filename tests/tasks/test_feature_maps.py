"""Feature maps: their storage, views of them, and the loss against matrices written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import hadamard

from pipeline.data.augment import AugmentParams, Placement, full_image_box, transform_label
from pipeline.models.backbone import Backbone
from pipeline.models.timm_models import statistics
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.rasters import FULL_IMAGE
from tasks.feature_maps.label import TaskLabel
from tasks.feature_maps.model import BackboneMaps, FeatureMapNetwork, TaskModel

SPACE = LabelSpace("feature_maps", tuple("123456"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)
Map = NDArray[np.float32]
MAPS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=5).map(lambda shape: (*shape, 6)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def random_map(seed: int, shape: tuple[int, int] = (5, 7), unknown: float = 0.0) -> Map:
    """Return a map (h, w, 6), of which a share of the cells is unknown."""
    rng = np.random.default_rng(seed)
    components = (rng.normal(size=(*shape, 6)) * np.array([6, 4, 3, 2, 1, 0.5])).astype(np.float32)
    components[rng.random(shape) < unknown] = 0
    return components


def ramp(h: int, w: int) -> Map:
    """Return a map whose components are the places of the centres of its cells: x, y, and 1."""
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    ones = np.ones((h, w))
    return np.stack([x, y, ones, ones, ones, ones], axis=-1).astype(np.float32)


@given(MAPS)
def test_encode_keeps_feature_maps_to_half_a_step(components: Map) -> None:
    row = LABEL.encode({"map": components})
    back = LABEL.decode(row)["map"]
    assert (np.abs(back - components) <= row["scale"] / 2 + 2**-23 * np.abs(components)).all()
    tiny = np.finfo(np.float32).tiny
    assert row["scale"] == pytest.approx(max(float(np.abs(components).max()) / 127, tiny), rel=1e-6)


@given(st.integers(0, 10_000))
def test_encode_keeps_unknown_cells_of_feature_maps(seed: int) -> None:
    components = random_map(seed, unknown=0.4)
    row = LABEL.encode({"map": components})
    np.testing.assert_array_equal(LABEL.decode(row)["map"].any(axis=-1), components.any(axis=-1))
    assert row["unknown"] == pytest.approx(1 - components.any(axis=-1).mean())


def test_encode_is_read_as_the_columns_state() -> None:
    components = random_map(0)
    row = LABEL.encode({"map": components})
    stored = np.frombuffer(zstandard.decompress(row["map"]), np.int8).reshape(row["h"], row["w"], 6)
    np.testing.assert_array_equal(stored * np.float32(row["scale"]), LABEL.decode(row)["map"])
    about = {field.name: field.metadata[b"about"].decode() for field in LABEL.columns() if field.metadata}
    assert about["map"].startswith("int8 (h, w, K), zstd; times `scale`")


def test_encode_writes_the_length_over_known_cells() -> None:
    components = np.zeros((2, 2, 6), np.float32)
    components[0, 0, :2] = 3, 4
    row = LABEL.encode({"map": components})
    assert (row["length"], row["unknown"], row["confidence"]) == (pytest.approx((25 / 6) ** 0.5), 0.75, 1)


@given(st.integers(0, 10_000))
def test_crop_interpolates_between_the_centres_of_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = rng.uniform(0.1, 0.5, 2)
    x1, y1 = rng.uniform(0.6, 0.9, 2)
    found = LABEL.crop({"map": ramp(8, 11)}, (x0, y0, x1, y1), (5, 6))["map"]
    inside = ramp(5, 6) * np.array([x1 - x0, y1 - y0, 1, 1, 1, 1]) + np.array([x0, y0, 0, 0, 0, 0])
    np.testing.assert_allclose(found, inside, atol=1e-5)


def test_crop_has_no_part_of_unknown_cells() -> None:
    components = ramp(4, 4)
    components[:, :2] = 0
    found = LABEL.crop({"map": components}, FULL_IMAGE, (4, 8))["map"]
    np.testing.assert_array_equal(found.any(axis=-1), np.tile([False] * 4 + [True] * 4, (4, 1)))
    np.testing.assert_allclose(found[:, 4:, 2], 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 4, 0], components[:, 2, 0], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_crop_and_flip_of_unknown_cells_commute(seed: int) -> None:
    value = {"map": random_map(seed, unknown=0.3)}
    x0, y0, width, height = np.random.default_rng(seed).uniform(0.1, 0.9, 4)
    box, mirrored = (x0, y0, x0 + width, y0 + height), (1 - x0 - width, y0, 1 - x0, y0 + height)
    one, other = LABEL.flip(LABEL.crop(value, box, (6, 5))), LABEL.crop(LABEL.flip(value), mirrored, (6, 5))
    np.testing.assert_allclose(one["map"], other["map"], atol=1e-4)


def test_transform_label_of_padded_image_is_unknown_in_the_padding() -> None:
    params = AugmentParams(full_image_box("pad", (128, 64), 64))
    target = TASK.collate([transform_label(LABEL, {"map": ramp(3, 6)}, params, LABEL.target_side(64))])
    assert target["map"].shape == (1, 6, 4, 4)
    assert TASK.known(target)[0].tolist() == [[True] * 4, [True] * 4, [False] * 4, [False] * 4]


def test_draw_gives_a_vector_one_color_in_all_images() -> None:
    one, other = random_map(0), random_map(1) * 3
    other[2, 3] = 2 * one[0, 0]
    other[4, 6] = 0
    image = Image.new("RGB", (70, 50))
    first, second = (LABEL.draw(image, {"map": components}) for components in (one, other))
    assert first.getpixel((5, 5)) == second.getpixel((35, 25))
    assert second.getpixel((65, 45)) == (0, 0, 0)


def test_distance_is_the_mean_of_angles_of_cells() -> None:
    one, other = np.zeros((2, 1, 2, 6), np.float32)
    one[0, :, 0], other[0, 0, 0], other[0, 1, 3] = 1, 5, 2
    assert LABEL.distance({"map": one}, {"map": other}) == pytest.approx((0 + 0.5) / 2)
    assert LABEL.distance({"map": one}, {"map": -one}) == 1


def smooth_l1(one: Map, other: Map) -> float:
    matrix = hadamard(8)[:6] / 6**0.5
    return float(F.smooth_l1_loss(torch.from_numpy(one @ matrix), torch.from_numpy(other @ matrix)))


def test_loss_is_the_angle_and_the_smooth_l1_distance_of_known_cells() -> None:
    guess, truth = random_map(0, (2, 3)), random_map(1, (2, 3))
    truth[1, 2] = truth[0, 0] = 0
    losses = [
        (1 - float(one @ other) / np.linalg.norm(one) / np.linalg.norm(other) + smooth_l1(one, other)) / 2
        for one, other in zip(guess.reshape(-1, 6), truth.reshape(-1, 6), strict=True)
        if other.any()
    ]
    assert len(losses) == 4
    found = TASK.loss(torch.from_numpy(guess).permute(2, 0, 1)[None], TASK.collate([{"map": truth}]))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (7, 5), (2, 2)])
def test_live_target_is_that_of_the_stored_label(shape: tuple[int, int]) -> None:
    output = torch.from_numpy(random_map(0, shape)).permute(2, 0, 1)[None]
    [value] = [{"map": row.numpy()} for row in TASK.predict(output)["map"]]
    stored = TASK.collate([transform_label(LABEL, value, AugmentParams(), LABEL.target_side(96))])
    np.testing.assert_allclose(TASK.live_target(output, 96)["map"], stored["map"], atol=1e-5)


def test_live_target_is_unknown_in_padding_as_a_stored_label_is() -> None:
    """An image of 96 x 64 pixels in a square of 96."""
    output, valid = torch.from_numpy(random_map(0, (6, 6))).permute(2, 0, 1)[None], torch.tensor([[96, 64]])
    target = TASK.live_target(output, 96, valid)
    assert TASK.known(target)[0].all(dim=1).tolist() == [True] * 4 + [False] * 2
    assert TASK.known(target).equal(TASK.live_known(1, 96, valid))
    stored = {"map": output[0].permute(1, 2, 0).numpy()[:4]}
    padded = transform_label(LABEL, stored, AugmentParams((0.0, 0.0, 1.0, 1.5)), LABEL.target_side(96))
    np.testing.assert_allclose(target["map"][0].permute(1, 2, 0), padded["map"], atol=1e-5)


def score(*pairs: tuple[Map, Map]) -> dict[str, float]:
    metric = TASK.metrics()
    for guess, truth in pairs:
        metric.update({"map": guess}, {"map": truth})
    return metric.compute()


def test_metrics_are_those_of_known_cells() -> None:
    guess, truth = np.zeros((2, 1, 3, 6), np.float32)
    guess[0, 0, 0], truth[0, 0, 0] = 2, 1
    truth[0, 1, 1] = 3
    guess[0, 2, 0] = 9  # unknown in the truth
    assert score((guess, truth)) == {"cosine": pytest.approx(0.5), "r2": pytest.approx(1 - (1 + 9) / (1 + 9))}


def test_metrics_interpolate_predictions_at_the_cells_of_the_truth() -> None:
    """Where these lie between the centres of predicted cells."""
    coarse, fine = ramp(8, 8), ramp(7, 12)
    inner = np.zeros_like(fine)
    inner[1:-1, 1:-1] = fine[1:-1, 1:-1]
    assert score((coarse, inner)) == {"cosine": pytest.approx(1), "r2": pytest.approx(1)}


@pytest.mark.parametrize("size", [(128, 64), (100, 68), (128, 128)])
def test_value_covers_the_valid_region(size: tuple[int, int]) -> None:
    """Of 128 pixels, in 8 cells: it may end within a cell."""
    value: Value = TASK.value({"map": ramp(8, 8)[None]}, 0, Placement(size, size))
    rows, columns = -(-size[1] // 16), -(-size[0] // 16)
    places = ramp(rows, columns)[..., :2] * np.array(size) / 128
    np.testing.assert_allclose(value["map"][..., :2], np.maximum(places, 1 / 16), atol=1e-5)


def test_value_of_backbone_maps_is_its_whole_grid() -> None:
    prediction = {"map": random_map(0, (9, 9))[None]}
    found = BackboneMaps(SPACE).value(prediction, 0, Placement((300, 200), (128, 128)))
    np.testing.assert_array_equal(found["map"], prediction["map"][0])


def test_constant_label_is_the_mean_of_known_cells() -> None:
    maps = [random_map(seed, (3, 2 + seed), unknown=0.3) for seed in range(3)]
    cells = np.concatenate([each[each.any(axis=-1)] for each in maps])
    found = TASK.constant_label({"map": each} for each in maps)["map"]
    np.testing.assert_allclose(found, cells.mean(axis=0)[None, None], rtol=1e-5)


@pytest.fixture(scope="module")
def network() -> FeatureMapNetwork:
    torch.manual_seed(0)
    return FeatureMapNetwork(Backbone("test_vit", 96, statistics("test_vit")), "dino", 5).eval()


@torch.no_grad()
def test_feature_map_network_tells_components_of_the_cells(network: Any) -> None:
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network.components.axes.normal_(generator=torch.Generator().manual_seed(1))
    outputs, vectors = network.forward_with_vector(images)
    vector, maps = network.backbone.readout(images)
    np.testing.assert_allclose(vectors, vector)
    expected = torch.einsum("bdhw,kd->bkhw", maps[-1], network.components.axes)
    np.testing.assert_allclose(outputs["dino"], expected, rtol=1e-4, atol=1e-4)
    assert outputs["dino"].shape == (3, 5, 6, 6)


@torch.no_grad()
def test_fitted_vectors_are_cells_whatever_the_batch(network: Any) -> None:
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = network.fitted_vectors(images)
    assert drawn.shape == (3, 16, network.backbone.channels[-1])
    alone = torch.cat([network.fitted_vectors(image[None]) for image in images])
    np.testing.assert_allclose(drawn, alone, rtol=1e-4, atol=1e-5)
    all_cells = network.readout(images).maps[-1].flatten(2).transpose(1, 2)
    places = torch.cdist(drawn, all_cells).argmin(dim=2)
    np.testing.assert_allclose(drawn, all_cells.take_along_dim(places[..., None], 1))
    assert all(len(set(row)) == 16 for row in places.tolist()), "no cell twice"
    assert len({tuple(row) for row in places.tolist()}) == 3, "not the same cells of all images"
