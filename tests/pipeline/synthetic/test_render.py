"""The ray-traced world: its labels against independent geometry, and the sources `scenes` and `photographs`."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

import tasks
from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, TrueLabels, photographs, scenes
from pipeline.stores.rle import box_around, decode_mask
from pipeline.synthetic.layout import CLASSES, SHAPE_SAMPLERS, Camera, Primitive, Scene, rotation_matrix, sample_scene
from pipeline.synthetic.materials import Lens, Light, Material, Sky
from pipeline.synthetic.render import SceneKey, find_surfaces, pixel_centers, render, scene_rng, shade, trace
from pipeline.synthetic.shapes import Floats, Frustum, Plane, Polyhedron, Shape, Sphere, Torus
from pipeline.synthetic.textures import LOOKS, Look, load_textures

ALL_TASKS = ("classification", "detection", "masks", "keypoints", "segmentation", "depth", "normals")
KEYS = [SceneKey(3, look, 96, index) for look in LOOKS for index in range(12)]
Config, Source = scenes.Config, scenes.Source


def rays(key: SceneKey, camera: Camera) -> Floats:
    """Return the rays (3, H, W) of all pixels in camera axes, for one metre of depth, by a second pinhole model."""
    middle = (np.arange(key.size) + 0.5 - key.size / 2) / (camera.focal * key.size)
    x, y = np.meshgrid(middle, -middle)
    return np.stack([x, y, -np.ones_like(x)])


def one_sphere(distance: float) -> Scene:
    """Return a scene with a sphere of radius 0.5 straight ahead, one metre above the ground, under a sun overhead."""
    gray, black = np.full(3, 0.5, np.float32), np.zeros(3, np.float32)
    paint, axes = Material(0, gray, gray, 1.0, 0.0), np.eye(3, dtype=np.float32)
    ground = Primitive(Plane(), axes, black, -1, paint)
    ball = Primitive(Sphere(0.5), axes, np.array([0, 1, -distance], np.float32), CLASSES.index("sphere"), paint)
    camera = Camera(np.array([0, 1, 0], np.float32), axes, 1.0)
    light = Light(np.array([0, 1, 0], np.float32), gray, gray, gray)
    return Scene(camera, (ground, ball), light, Sky(gray, gray, 0, 0.0), Lens(0.5, 1.0, gray, 0.0, 0.0, 0.0))


def inside(shape: Shape, p: Floats) -> NDArray[np.bool_]:
    """Return True for points (3, ...) inside a solid of one of the classes, by its textbook inequality."""
    around = np.hypot(p[0], p[2])
    if isinstance(shape, Sphere):
        room = shape.radius - np.hypot(around, p[1])
    elif isinstance(shape, Torus):
        room = shape.tube - np.hypot(around - shape.ring, p[1])
    elif isinstance(shape, Frustum):
        room = shape.bottom + (shape.top - shape.bottom) * (p[1] / shape.height + 0.5) - around
    elif isinstance(shape, Polyhedron) and len(shape.corners) == 8:
        room = np.minimum(shape.half_extents[0] - np.abs(p[0]), shape.half_extents[2] - np.abs(p[2]))
    else:
        room = shape.half_extents[0] * (0.5 - p[1] / (2 * shape.half_extents[1])) - np.maximum(
            np.abs(p[0]), np.abs(p[2])
        )
    within: NDArray[np.bool_] = (room >= 0) & (np.abs(p[1]) <= shape.half_extents[1])
    return within


@pytest.mark.parametrize("name", CLASSES)
def test_shape_intersect_finds_where_the_inside_begins(name: str) -> None:
    rng = np.random.default_rng(5)
    shape, _ = SHAPE_SAMPLERS[name](1.0, rng)
    origin = rng.normal(size=(3, 300)) * 0.3 + np.array([[0.8], [1.2], [2.0]])
    direction = rng.normal(size=(3, 300)) * 0.35 - origin
    found = shape.intersect(origin.astype(np.float32), direction.astype(np.float32))
    steps = np.linspace(0, 2, 4001)
    within = inside(shape, origin[:, :, None] + direction[:, :, None] * steps)
    expected = np.where(within.any(axis=1), steps[within.argmax(axis=1)], np.inf)
    grazes = within.sum(axis=1) < 20
    assert 50 < np.isfinite(found).sum() < 290
    np.testing.assert_allclose(found[~grazes & within.any(axis=1)], expected[~grazes & within.any(axis=1)], atol=6e-4)
    assert np.isinf(found[~within.any(axis=1)]).mean() > 0.97


@pytest.mark.parametrize("tilt", [0.0, 0.7, 1.4, 2.1])
@pytest.mark.parametrize("name", CLASSES)
def test_shape_support_is_the_lowest_point(name: str, tilt: float) -> None:
    rng = np.random.default_rng(6)
    shape, rotation = SHAPE_SAMPLERS[name](1.0, rng)[0], rotation_matrix(0.4, tilt)
    spread = rng.uniform(-1, 1, (3, 100_000)) * np.array(shape.half_extents)[:, None]
    lowest = (rotation @ spread[:, inside(shape, spread)])[1].min()
    assert -shape.support(-rotation[1]) - 1e-5 <= lowest < -shape.support(-rotation[1]) + 0.05


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_render_normals_agree_with_the_depth_map(key: SceneKey) -> None:
    picture = render(key)
    points = rays(key, sample_scene(key.look, scene_rng(key)).camera) * picture.depth
    across, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normal = np.cross(down, across, axis=0)
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
    exact = np.moveaxis(picture.normals, 2, 0)
    same = np.ones_like(picture.depth[1:-1, 1:-1], np.bool_)
    for window in (np.s_[1:-1, 2:], np.s_[1:-1, :-2], np.s_[2:, 1:-1], np.s_[:-2, 1:-1]):
        same &= (exact[:, *window] * exact[:, 1:-1, 1:-1]).sum(axis=0) > 0.98
        same &= picture.instances[window] == picture.instances[1:-1, 1:-1]
        same &= np.abs(picture.depth[window] / np.maximum(picture.depth[1:-1, 1:-1], 1e-6) - 1) < 0.1
    angle = np.degrees(np.arccos(np.clip((normal * exact[:, 1:-1, 1:-1]).sum(axis=0), -1, 1)))[same]
    assert same.mean() > 0.3
    assert np.median(angle) < 0.5
    assert np.quantile(angle, 0.98) < 6


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_render_labels_exactly_the_surfaces(key: SceneKey) -> None:
    picture = render(key)
    length = np.linalg.norm(picture.normals, axis=2)
    known = picture.depth > 0
    assert picture.depth.dtype == picture.normals.dtype == np.float32
    np.testing.assert_allclose(length[known], 1, atol=1e-5)
    assert not length[~known].any()
    assert known[picture.instances >= 0].all()
    assert picture.depth.max() <= 20
    direction = rays(key, sample_scene(key.look, scene_rng(key)).camera)
    facing = (np.moveaxis(picture.normals, 2, 0) * direction).sum(axis=0)
    assert (facing[known] < 1e-3).all()  # seen from the front: the normal is against the ray


def test_trace_halves_the_size_at_twice_the_distance() -> None:
    pictures = {distance: trace(one_sphere(distance), pixel_centers(256), 256) for distance in (3.0, 6.0)}
    masks = {distance: (hits.primitive == 1).reshape(256, 256) for distance, hits in pictures.items()}
    widths = {distance: mask.any(axis=0).sum() for distance, mask in masks.items()}
    # The outline of a sphere: a cone of half angle asin(r / d).
    assert widths[3.0] == pytest.approx(2 * 256 * np.tan(np.arcsin(0.5 / 3)), abs=2)
    assert widths[6.0] == pytest.approx(widths[3.0] / 2, abs=1.5)
    assert masks[6.0].sum() == pytest.approx(masks[3.0].sum() / 4, rel=0.04)
    for distance, hits in pictures.items():
        assert hits.depth[masks[distance].ravel()].min() == pytest.approx(distance - 0.5, abs=1e-3)


def test_shade_casts_a_shadow_below_the_sphere_only() -> None:
    scene, size = one_sphere(3.0), 128
    hits = trace(scene, pixel_centers(size), size)
    surface = find_surfaces(scene, hits, load_textures("studio"), size)
    light, lit = shade(scene, hits, surface, load_textures("studio"))
    ground = hits.primitive == 0
    gap = np.hypot(surface.point[0], surface.point[2] + 3)
    assert (ground & (gap < 0.45)).any()
    assert not lit[ground & (gap < 0.49)].any()
    assert lit[ground & (gap > 0.51)].all()
    assert light[:, ground & (gap < 0.45)].max() < light[:, ground & (gap > 1) & (hits.depth < 10)].min()


def values(picture_key: SceneKey, tasks: tuple[str, ...] = ALL_TASKS) -> tuple[TrueLabels, SourceRecord]:
    """Return the true labels of one training picture as the source gives them, and its record."""
    config = Config.model_validate(
        {"count": picture_key.index + 1, "seed": picture_key.seed, "size": picture_key.size, "tasks": tasks}
    )
    record = list(Source(config).records())[picture_key.index]
    return record.truth((config.size, config.size)), record


@pytest.mark.parametrize("index", range(8))
def test_scenes_source_boxes_are_tight_around_visible_parts(index: int) -> None:
    key = SceneKey(4, "studio", 96, index)
    picture, (truth, _) = render(key), values(key)
    boxes = truth.values["detection"]
    tight, dropped = [], 0
    for number, kind in enumerate(picture.class_ids):
        pixels = np.argwhere(picture.instances == number)
        if len(pixels) >= 0.002 * 96 * 96:
            (y0, x0), (y1, x1) = pixels.min(axis=0), pixels.max(axis=0) + 1
            tight.append([x0, y0, x1, y1, kind])
        else:
            dropped += len(pixels) > 0
    np.testing.assert_array_equal(np.column_stack([boxes["boxes"], boxes["classes"]]), tight)
    assert boxes["boxes"].dtype == boxes["scores"].dtype == np.float32
    assert boxes["classes"].dtype == boxes["size"].dtype == np.int32
    assert boxes["size"].tolist() == [96, 96]
    assert len(truth.notes) == dropped


@pytest.mark.parametrize("index", range(8))
def test_scenes_source_labels_of_one_picture_agree(index: int) -> None:
    key = SceneKey(4, "studio", 96, index)
    truth = values(key)[0].values
    probs, classes = truth["classification"]["probs"], truth["segmentation"]["classes"]
    assert probs.sum() == 1
    main = int(probs.argmax())
    picture = render(key)
    largest = Counter(picture.instances[picture.instances >= 0].tolist()).most_common(1)[0][0]
    assert picture.class_ids[largest] == main
    assert ((classes > 0) == (picture.instances >= 0)).all()
    assert (classes[picture.instances == largest] == main + 1).all()
    assert classes.dtype == np.uint16
    assert set(truth["detection"]["classes"] + 1) <= set(np.unique(classes))
    assert (truth["segmentation"]["confidence"] == 1).all()


@pytest.mark.parametrize("index", range(4))
def test_scenes_source_masks_are_the_visible_pixels_of_the_boxes(index: int) -> None:
    key = SceneKey(4, "studio", 96, index)
    picture, truth = render(key), values(key)[0].values
    masks = [decode_mask(mask, (96, 96)) for mask in truth["masks"]["masks"]]
    assert len(masks) == len(truth["detection"]["boxes"])
    for name, array in truth["detection"].items():
        np.testing.assert_array_equal(truth["masks"][name], array)
    for mask, box, kind in zip(masks, truth["detection"]["boxes"], truth["masks"]["classes"], strict=True):
        [number] = np.unique(picture.instances[mask])
        assert mask.sum() == (picture.instances == number).sum()
        assert picture.class_ids[number] == kind
        assert box_around(mask) == tuple(box)


@pytest.mark.parametrize("index", range(4))
def test_scenes_source_keypoints_are_ends_of_the_visible_part(index: int) -> None:
    """Each is on its side of the box, beside a pixel of the object, and the mirrored picture has the mirrored ends."""
    key = SceneKey(4, "studio", 96, index)
    picture, truth = render(key), values(key)[0].values["keypoints"]
    label = tasks.label(scenes.SPACES["keypoints"])
    mirrored = dataclasses.replace(picture, instances=picture.instances[:, ::-1])
    for name, array in scenes.keypoints(mirrored).items():
        np.testing.assert_allclose(array, label.flip(truth)[name], err_msg=name)
    masks = [decode_mask(mask, (96, 96)) for mask in values(key)[0].values["masks"]["masks"]]
    for (x0, y0, x1, y1), points in zip(truth["boxes"], truth["keypoints"], strict=True):
        top, right, bottom, left = points
        assert (top[1], right[0], bottom[1], left[0]) == (y0, x1, y1, x0)
        assert x0 < top[0] < x1
        assert y0 < left[1] < y1
    assert truth["areas"].tolist() == [mask.sum() for mask in masks]


def test_scenes_source_spaces_name_the_classes() -> None:
    spaces = Source(Config(count=1, seed=0, tasks=("segmentation", "detection", "depth"))).spaces()
    assert list(spaces) == ["segmentation", "detection", "depth"]
    assert spaces["segmentation"].classes == ("background", *CLASSES)
    assert spaces["detection"].classes == CLASSES
    assert spaces["depth"].scale == "metric"
    assert Source(Config(count=1, seed=0)).spaces() == {}


def test_scenes_source_depends_on_the_seed_alone() -> None:
    sets = {seed: [r.read() for r in Source(Config(count=4, seed=seed, size=48)).records()] for seed in (1, 2)}
    load_textures.cache_clear()
    again = [record.read() for record in Source(Config(count=6, seed=1, size=48)).records()]
    assert again[:4] == sets[1]
    assert len({*again, *sets[2]}) == 10
    shifted = [record.read() for record in Source(Config(count=4, seed=1, size=48, look="shifted")).records()]
    assert not {*shifted} & {*again}


def test_render_gives_the_same_scene_at_any_size() -> None:
    large, small = (render(SceneKey(0, "studio", size, 5)) for size in (120, 40))
    np.testing.assert_array_equal(large.class_ids, small.class_ids)
    np.testing.assert_array_equal(large.instances[1::3, 1::3], small.instances)  # the middles of 3 x 3 pixels
    np.testing.assert_allclose(large.depth[1::3, 1::3], small.depth, rtol=1e-3)


def test_scenes_source_reads_a_jpeg_of_the_picture() -> None:
    _, record = values(SceneKey(4, "studio", 96, 2))
    with Image.open(io.BytesIO(record.read())) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
        error = np.asarray(image).astype(int) - render(SceneKey(4, "studio", 96, 2)).image
    assert np.abs(error).mean() < 6


def test_scenes_source_renders_once_for_bytes_and_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[SceneKey] = []

    def counted(key: SceneKey) -> object:
        calls.append(key)
        return render(key)

    monkeypatch.setattr(scenes, "render", counted)
    for record in Source(Config(count=3, seed=0, size=32, tasks=("depth",))).records():
        record.read()
        record.truth((32, 32))
    assert len(calls) == 3


def test_scenes_source_splits_do_not_overlap() -> None:
    records = list(Source(Config(count=3, seed=0, size=32, val=2, test=1)).records())
    assert [record.split for record in records] == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert [record.name for record in records] == [f"scene-{i:06d}.jpg" for i in range(6)]
    assert len({record.read() for record in records}) == 6


def test_render_balances_classes_and_foreground() -> None:
    mains, shares, objects, sky = Counter[int](), [], [], 0
    for look in LOOKS:
        for index in range(90):
            picture = render(SceneKey(11, look, 32, index))
            area = np.bincount(picture.instances[picture.instances >= 0], minlength=len(picture.class_ids))
            mains[int(picture.class_ids[area.argmax()])] += 1
            shares.append(area.sum() / 32**2)
            objects.append(int((area > 0).sum()))
            sky += bool((picture.depth == 0).any())
    assert min(mains[kind] for kind in range(len(CLASSES))) > 15  # 30 expected
    assert max(mains.values()) < 50
    assert 0.12 < np.mean(shares) < 0.35
    assert min(shares) > 0.02
    assert max(shares) < 0.8
    assert 2 < np.mean(objects) < 4
    assert 50 < sky < 130


@pytest.mark.parametrize("look", LOOKS)
def test_render_exposes_pictures_well(look: Look) -> None:
    means = [render(SceneKey(12, look, 48, index)).image.mean() for index in range(20)]
    deviations = [render(SceneKey(12, look, 48, index)).image.std() for index in range(20)]
    assert min(means) > 60
    assert max(means) < 180
    assert min(deviations) > 12


def test_scenes_source_refuses_truth_for_another_size() -> None:
    record = next(Source(Config(count=1, seed=0, size=32, tasks=("depth",))).records())
    with pytest.raises(DataError, match="32 x 32, not 64 x 32"):
        record.truth((64, 32))


def test_scenes_source_file_stamps_follow_renderer_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = [Source(Config(count=1, seed=seed)).file_stamps() for seed in (0, 0, 1)]
    monkeypatch.setattr(scenes, "VERSION", 99)
    assert stamps[0] == stamps[1] != stamps[2]
    assert Source(Config(count=1, seed=0)).file_stamps() != stamps[0]


@pytest.mark.parametrize(
    ("module", "make"),
    [("skimage", lambda: Source(Config(count=1, seed=0))), ("sklearn", lambda: photos(4))],
)
def test_bundled_image_names_missing_package(
    module: str, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(ConfigError, match=r"uv pip install scikit-"):
        make()


@pytest.mark.parametrize("wrong", [{"look": "gloomy"}, {"tasks": ["colour"]}, {"size": 8}, {"workers": 2}])
def test_scenes_config_refuses_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"kind": "scenes", "count": 1, "seed": 0, **wrong})


def test_texture_bank_look_up_mirrors_textures() -> None:
    across = np.array([[0.2, -0.2, 1.8, 2.2], [0.4, 0.4, -0.4, 1.6]], np.float32)
    colors = load_textures("studio").look_up(np.full(4, 20, np.int32), across, np.ones(4, np.float32))
    np.testing.assert_allclose(colors, np.repeat(colors[:, :1], 4, axis=1), atol=1e-3)
    other = load_textures("studio").look_up(np.full(4, 20, np.int32), across + np.float32(0.3), np.ones(4, np.float32))
    assert np.ptp(other[0]) > 0.005  # moved off the axis, the four are different places


def test_texture_bank_look_up_averages_distant_textures() -> None:
    spread = np.random.default_rng(0).random((2, 500), np.float32)
    fine, coarse = (
        load_textures("studio").look_up(np.full(500, 3, np.int32), spread, np.full(500, width, np.float32))
        for width in (1, 64)
    )
    assert coarse.std(axis=1).max() < 0.3 * fine.std(axis=1).min()


def photos(count: int, seed: int = 0) -> photographs.Source:
    return photographs.Source(photographs.Config(count=count, seed=seed, size=64))


def test_photographs_source_crops_evenly_and_to_size() -> None:
    records = list(photos(30).records())
    names = [record.name for record in records]
    assert len(set(names)) == 30
    assert names == sorted(names)
    assert {name.rsplit("-", 1)[0] for name in names} >= {"astronaut", "chelsea", "china", "flower", "rocket"}
    assert {record.split for record in records} == {"train"}
    sizes = [Image.open(io.BytesIO(record.read())).size for record in records]
    assert {max(size) for size in sizes} == {64}
    assert len({min(size) for size in sizes}) > 8
    assert not records[0].truth(sizes[0]).values
    assert not photos(1).spaces()


def test_photographs_source_depends_on_the_seed_alone() -> None:
    first, second, other = ([r.read() for r in photos(13, seed).records()] for seed in (0, 0, 1))
    assert first == second
    assert len({*first, *other}) == 26
    assert photos(13, 0).file_stamps() != photos(13, 1).file_stamps()
