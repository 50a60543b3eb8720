"""MuST (Ghiasi et al., ICCV 2021): the student's architecture, labelling, and independent heads.

Numbered by ten properties of an implementation; 1 to 6 are in test_must_paper.py.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import tasks
from pipeline.data.augment import AugmentParams, transform_image, transform_label
from pipeline.models.checkpoint import read_tensors
from pipeline.sources._classes import true_boxes
from pipeline.steps.artifact import Inputs
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace, Value
from student.train import train_student
from tasks.network import Network, fuse
from teachers import supervised
from teachers.labelling.labeller import label_pool

if TYPE_CHECKING:
    from tests.conftest import World

MakeNetwork = Callable[..., Network]
DEPTH = LabelSpace("depth")
NORMALS = LabelSpace("normals")
HEADS = {
    "kinds": LabelSpace("classification", ("a", "b", "c")),
    "boxes": LabelSpace("detection", ("a", "b")),
    "masks": LabelSpace("segmentation", ("a", "b", "c", "d")),
    "depth": DEPTH,
    "normals": NORMALS,
}


def pictures(count: int = 2, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


# 7. The shape of the student


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_7_fused_map_is_the_sum_of_all_levels_at_stride_4(make_network: MakeNetwork, backbone: str) -> None:
    features = make_network(HEADS, backbone=backbone, image_size=64).eval().features(pictures())
    assert features.fused is not None
    assert features.fused.shape[-2:] == (16, 16)
    parts = [F.interpolate(level, size=(16, 16), mode="bilinear") for level in features.pyramid]
    torch.testing.assert_close(features.fused, torch.stack(parts).sum(dim=0))
    for number, part in enumerate(parts):
        without = [torch.zeros_like(lev) if n == number else lev for n, lev in enumerate(features.pyramid)]
        torch.testing.assert_close(features.fused - fuse(without, 16), part, atol=1e-5, rtol=1e-4)
        doubled = [2 * level if n == number else level for n, level in enumerate(features.pyramid)]
        torch.testing.assert_close(fuse(doubled, 16) - features.fused, part, atol=1e-5, rtol=1e-4)


def random_targets(network: Network, count: int = 2, size: int = 64) -> dict[str, Any]:
    """Return a target of random labels for every head."""
    rng = np.random.default_rng(3)
    cells = (size // 4, size // 4)
    normals = rng.normal(size=(count, *cells, 3)).astype(np.float32)
    values: Mapping[str, list[Value]] = {
        "kinds": [{"probs": rng.dirichlet(np.ones(3)).astype(np.float32)} for _ in range(count)],
        "boxes": [true_boxes([[4, 4, 40, 50]], [1], (size, size))] * count,
        "masks": [{"classes": rng.integers(0, 4, cells).astype(np.uint16)} for _ in range(count)],
        "depth": [{"depth": rng.uniform(1, 9, cells).astype(np.float32)} for _ in range(count)],
        "normals": [{"normals": one / np.linalg.norm(one, axis=-1, keepdims=True)} for one in normals],
    }
    return {
        name: {"rows": torch.arange(count), "target": task.collate(values[name])}
        for name, task in network.tasks.items()
    }


def touched(network: Network, head: str) -> set[str]:
    """Return the parts ("backbone", "pyramid", "heads.<name>") that a head's loss gives a gradient."""
    network.zero_grad(set_to_none=True)
    targets = random_targets(network)
    network.train().losses(pictures(), {head: targets[head]})[head].backward()
    named = [name.split(".") for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())]
    return {".".join(parts[:2]) if parts[0] == "heads" else parts[0] for parts in named}


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_7_classification_head_reads_c5_only(make_network: MakeNetwork, backbone: str) -> None:
    network = make_network(HEADS, backbone=backbone, image_size=64)
    assert touched(network, "kinds") == {"backbone", "heads.kinds"}
    images = pictures()
    before = network.eval()(images)
    assert network.pyramid is not None
    with torch.no_grad():
        for parameter in network.pyramid.parameters():
            parameter.mul_(2)
    after = network(images)
    assert torch.equal(before["kinds"], after["kinds"])
    assert not torch.equal(before["depth"], after["depth"])


def test_7_dense_heads_have_three_hidden_convolutions_and_a_linear_one(make_network: MakeNetwork) -> None:
    network = make_network(HEADS)
    for name in ("masks", "depth", "normals"):
        convolutions = [m for m in network.heads[name].modules() if isinstance(m, torch.nn.Conv2d)]
        assert [c.kernel_size for c in convolutions] == [(3, 3)] * 3 + [(1, 1)]


# 8. Labelling: a frozen teacher, and one geometry for image and labels


def test_8_predict_leaves_the_teacher_unchanged(world: World) -> None:
    predictor = world.artifacts["teacher.masks"].load_all(supervised.load)
    assert not any(module.training for module in predictor.network.modules())
    before = {name: tensor.clone() for name, tensor in predictor.network.state_dict().items()}
    assert any("running_mean" in name for name in before)
    images = pictures(4, 32)
    one, other = (predictor.predict(images, [(32, 32)] * 4)["masks"] for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.network.state_dict().items())


def test_8_label_pool_twice_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    runtime = dataclasses.replace(world.runtime, root=Root.of(tmp_path))
    shutil.copytree(world.runtime.root / "machine", tmp_path / "machine", dirs_exist_ok=True)
    (tmp_path / "out").mkdir()
    inputs = Inputs(world.inputs("label").artifacts, runtime)
    label_pool(world.steps["label"].config, inputs, tmp_path / "out")
    first = {path.name: path for path in Path(world.runtime.root / "labels").rglob("*.parquet")}
    again = {path.name: path for path in (tmp_path / "labels").rglob("*.parquet")}
    assert len(list(Path(world.runtime.root / "labels").rglob("*.parquet"))) == 5 * 5
    assert first.keys() == again.keys()
    for folder in Path(world.runtime.root / "labels").iterdir():
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / "labels" / folder.name / path.name).read_bytes()


def sphere(size: int = 64) -> tuple[Image.Image, Value, Value]:
    """Return an image of a ball colored by its normals (red x, green y, blue z), its normals and its depth."""
    y, x = np.mgrid[:size, :size]
    nx, ny = (x + 0.5) / size * 2 - 1, 1 - (y + 0.5) / size * 2
    inside = nx**2 + ny**2 < 0.9
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    normals = np.where(inside[..., None], np.stack([nx, ny, nz], axis=-1), 0).astype(np.float32)
    pixels = np.rint(127.5 + 127.5 * normals).astype(np.uint8)
    depth = np.where(inside, 3 - nz, 0).astype(np.float32)
    return Image.fromarray(pixels), {"normals": normals}, {"depth": depth}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.7, 0.9), (0.5, 0.25, 1.0, 0.75)])
def test_8_view_image_and_view_label_crop_and_flip_alike(box: tuple[float, float, float, float], flip: bool) -> None:
    image, normals, depth = sphere()
    view = AugmentParams(box, flip)
    seen = transform_image(image, view, 64) / 127.5 - 1
    facing = transform_label(tasks.label(NORMALS), normals, view, 64)["normals"]
    away = transform_label(tasks.label(DEPTH), depth, view, 64)["depth"]
    known = facing.any(axis=-1) & (np.abs(seen).max(axis=-1) > 0.1)
    sign = np.array([-1, 1, 1]) if flip else np.ones(3)
    inner = known & (away < 2.5)  # off the rim, where neighbours differ
    assert inner.mean() > 0.25
    np.testing.assert_allclose(facing[inner], (seen * sign)[inner], atol=0.06)
    np.testing.assert_allclose(away[inner], 3 - facing[inner][:, 2], atol=1e-5)  # metres stay metres


# 9. Heads keep to themselves


@pytest.mark.parametrize("head", list(HEADS))
def test_9_loss_of_a_head_gives_no_other_head_a_gradient(make_network: MakeNetwork, head: str) -> None:
    shared = {"backbone"} if head == "kinds" else {"backbone", "pyramid"}
    assert touched(make_network(HEADS, image_size=64), head) == {*shared, f"heads.{head}"}


# 10. Weight 0


def trained(world: World, weights: dict[str, float], without: list[str], out: Path) -> dict[str, Tensor]:
    """Return the student's weights after two steps."""
    config = dict(world.steps["student"].config)
    config["student"] = {**config["student"], "loss_weights": weights}
    out.mkdir()
    train_student(config, world.inputs("student", without), out)
    return read_tensors(out / "model.safetensors")[1]


@pytest.mark.parametrize("left_out", ["boxes", "masks"])
def test_10_loss_weight_0_trains_as_without_the_teacher_bit_for_bit(
    world: World, tmp_path: Path, left_out: str
) -> None:
    silenced = trained(world, {"gabor": 1, left_out: 0}, [], tmp_path / "silenced")
    absent = trained(world, {"gabor": 1}, [f"teacher.{left_out}"], tmp_path / "absent")
    assert silenced.keys() == absent.keys()
    assert all(torch.equal(tensor, absent[name]) for name, tensor in silenced.items())
    assert not any(name.startswith(f"heads.{left_out}") for name in silenced)
    whole = trained(world, {"gabor": 1}, [], tmp_path / "whole")
    assert not all(torch.equal(tensor, whole[name]) for name, tensor in silenced.items())
