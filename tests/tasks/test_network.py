"""`Network`: one backbone, one pyramid and a head per teacher, each built independently of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.recipe.teacher import TrainingConfig
from pipeline.stores.labels import LabelSpace, Value
from pipeline.training.autotune import ComputeConfig
from tasks.network import PYRAMID_STRIDES, Network, SimplePyramid, build_network, fuse, seed_part
from tasks.prediction import network_predictor

MakeNetwork = Callable[..., Network]
SPACES = {
    "kinds": LabelSpace("classification", ("a", "b", "c")),
    "boxes": LabelSpace("detection", ("a", "b")),
    "masks": LabelSpace("segmentation", ("a", "b", "c", "d")),
    "depth": LabelSpace("depth"),
    "normals": LabelSpace("normals"),
}
PLAIN = ("test_vit", "vit_tiny_patch16_224")


def pictures(count: int = 2, size: int = 64) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng).to(torch.uint8)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext", *PLAIN])
def test_network_runs_every_head_on_any_backbone(make_network: MakeNetwork, backbone: str) -> None:
    network = make_network(SPACES, backbone=backbone, image_size=64).eval()
    with torch.no_grad():
        outputs = network(pictures())
    assert outputs["kinds"].shape == (2, 3)
    assert outputs["masks"].shape == (2, 4, 16, 16)
    assert outputs["depth"].shape == (2, 1, 16, 16)
    assert outputs["normals"].shape == (2, 3, 16, 16)
    assert len(network.tasks["boxes"].predict(outputs["boxes"])["images"]) == 2


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_network_features_have_pyramid_strides_and_fused_stride_4(
    make_network: MakeNetwork, backbone: str, size: int
) -> None:
    features = make_network(SPACES, backbone=backbone, image_size=size).eval().features(pictures(1, size))
    sides = [max(-(-size // stride), 1) for stride in PYRAMID_STRIDES]
    assert [tuple(level.shape) for level in features.pyramid] == [(1, 16, side, side) for side in sides]
    assert features.fused is not None
    assert features.fused.shape == (1, 16, size // 4, size // 4)


def test_network_of_classification_has_no_pyramid(make_network: MakeNetwork) -> None:
    network = make_network({"kinds": SPACES["kinds"]}).eval()
    assert network.pyramid is None
    features = network.features(pictures(1, 32))
    assert (features.pyramid, features.fused) == ([], None)


def test_network_normalizes_images_as_the_backbone_expects(make_network: MakeNetwork) -> None:
    for name, mean, std in (("resnet10t", 0.485, 0.229), ("vit_tiny_patch16_224", 0.5, 0.5)):
        network = make_network({"kinds": SPACES["kinds"]}, backbone=name, image_size=64).eval()
        seen: list[Tensor] = []
        network.backbone.model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        network(torch.full((1, 3, 64, 64), 51, dtype=torch.uint8))
        torch.testing.assert_close(seen[0][0, 0], torch.full((64, 64), (0.2 - mean) / std))
        assert {"backbone.mean", "backbone.std"} <= network.state_dict().keys()


def first_weights(module: nn.Module) -> Tensor:
    return next(module.parameters())


def test_network_depends_on_the_seed_alone(make_network: MakeNetwork) -> None:
    one, again, other = (make_network(SPACES, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    for part, twin in ((one.backbone, other.backbone), *zip(one.heads.values(), other.heads.values(), strict=True)):
        assert not torch.equal(first_weights(part), first_weights(twin))


def test_seed_part_makes_parts_independent_of_others(make_network: MakeNetwork) -> None:
    both = make_network(SPACES).state_dict()
    alone = make_network({"masks": SPACES["masks"]}).state_dict()
    assert all(torch.equal(both[name], tensor) for name, tensor in alone.items())


def test_network_has_separate_heads_for_two_teachers_of_one_task(make_network: MakeNetwork) -> None:
    network = make_network({"streets": SPACES["masks"], "rooms": LabelSpace("segmentation", ("wall",))})
    outputs = network.eval()(pictures(1, 32))
    assert (outputs["streets"].shape[1], outputs["rooms"].shape[1]) == (4, 1)
    assert not torch.equal(first_weights(network.heads["streets"]), first_weights(network.heads["rooms"]))


def test_seed_part_makes_training_draws_independent_of_heads(make_network: MakeNetwork) -> None:
    make_network(SPACES, seed=3)
    after_all = torch.rand(3)
    make_network({"kinds": SPACES["kinds"]}, seed=3)
    assert torch.equal(torch.rand(3), after_all)
    seed_part(3, "training")
    assert torch.equal(torch.rand(3), after_all)


def test_network_runs_only_named_heads(make_network: MakeNetwork) -> None:
    network = make_network(SPACES).eval()
    assert set(network(pictures(1, 32), ["depth"])) == {"depth"}


def test_network_load_gives_what_save_wrote(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network(SPACES)
    network.train().features(pictures(4, 32))  # moves the statistics of its batch norms
    network.save(tmp_path)
    again = Network.load(tmp_path)
    assert not again.training
    assert again.config == network.config
    before, after = network.eval()(pictures(2, 32)), again(pictures(2, 32))
    for name in ("kinds", "masks", "depth", "normals"):
        assert torch.equal(before[name], after[name])
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        Network.load(tmp_path)


def target_of(network: Network, name: str, values: list[Any]) -> dict[str, Any]:
    return {"rows": torch.arange(len(values)), "target": network.tasks[name].collate(values)}


def test_network_losses_use_only_images_with_the_heads_label(make_network: MakeNetwork) -> None:
    """In eval mode, where images don't meet in a batch norm, the loss is that of these images alone."""
    network = make_network({"depth": SPACES["depth"]}).eval()
    images = pictures(3, 32)
    rng = torch.Generator().manual_seed(1)
    values = [{"depth": (torch.rand(8, 8, generator=rng) + 1).numpy()} for _ in range(2)]
    target = {**target_of(network, "depth", values), "rows": torch.tensor([0, 2])}
    some = network.losses(images, {"depth": target})["depth"]
    alone = network.losses(images[[0, 2]], {"depth": target_of(network, "depth", values)})["depth"]
    torch.testing.assert_close(some, alone)
    swapped = network.losses(images[[2, 1, 0]], {"depth": target})["depth"]
    assert not torch.allclose(some, swapped)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_network_trains_and_predicts_in_bfloat16(make_network: MakeNetwork, backbone: str) -> None:
    side = 64  # P6 is one cell: torch 2.15 has no good bfloat16 gradient there, on a CPU
    network = make_network(SPACES, backbone=backbone, image_size=side)
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(side // 4, side // 4, 3)).astype(np.float32)
    values: dict[str, Value] = {
        "kinds": {"probs": np.array([0.2, 0.8, 0], np.float32)},
        "boxes": {
            "boxes": np.array([[4, 4, 40, 50]], np.float32),
            "classes": np.ones(1, np.int32),
            "size": np.array([side] * 2, np.int32),
        },
        "masks": {"classes": rng.integers(0, 4, (side // 4, side // 4)).astype(np.uint16)},
        "depth": {"depth": rng.uniform(1, 9, (side // 4, side // 4)).astype(np.float32)},
        "normals": {"normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True)},
    }
    targets = {name: target_of(network, name, [value] * 2) for name, value in values.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = network.train().losses(pictures(2, side), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in losses.values())
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    predictor = network_predictor(network)
    predictor.compute = ComputeConfig("cpu", "bf16", False, {})
    found = predictor.values(predictor.predict(pictures(2, side), [(64, 64)] * 2), 0, (64, 64))
    for value in found.values():
        assert all(np.isfinite(array).all() for array in value.values())
        assert {array.dtype for array in value.values() if array.dtype.kind == "f"} <= {np.dtype(np.float32)}


def test_network_losses_skip_heads_without_target(make_network: MakeNetwork) -> None:
    assert make_network(SPACES).losses(pictures(2, 32), {}) == {}


def test_simple_pyramid_keeps_positions() -> None:
    torch.manual_seed(0)
    for stride, side in ((8, 16), (14, 16), (16, 8), (32, 4)):
        pyramid = SimplePyramid(4, 8, stride).eval()
        marked = torch.zeros(1, 4, side, side)
        marked[..., : side // 2, : side // 2] = 5
        levels = pyramid({"only": marked})
        assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
        blank = pyramid({"only": torch.zeros_like(marked)})
        change = (levels["p3"] - blank["p3"]).abs().sum(dim=1)[0]
        half = change.shape[-1] // 2
        assert levels["p3"].shape[-1] == side * stride // 8
        assert change[: half - 2, : half - 2].min() > 0
        assert change[half + 2 :, half + 2 :].max() < 1e-6


def test_fuse_resizes_and_adds() -> None:
    levels = [torch.full((1, 2, side, side), value) for side, value in ((8, 1.0), (4, 10.0), (1, 100.0))]
    torch.testing.assert_close(fuse(levels, 16), torch.full((1, 2, 16, 16), 111.0))


def test_build_network_reads_config_and_loads_weights(tmp_path: Path) -> None:
    config = TrainingConfig(backbone="test_resnet", image_size=32, width=16, proposals=16)
    network = build_network(config, {"kinds": SPACES["kinds"]}, seed=4)
    assert (network.config.backbone, network.config.seed, network.config.width) == ("test_resnet", 4, 16)
    assert network.config.spaces() == {"kinds": SPACES["kinds"]}
    donor = build_network(config, {"depth": SPACES["depth"]}, seed=9)
    torch.save(donor.backbone.model.state_dict(), tmp_path / "w.pth")
    started = build_network(
        config.model_copy(update={"weights": str(tmp_path / "w.pth")}), {"kinds": SPACES["kinds"]}, 4
    )
    for name, tensor in donor.backbone.state_dict().items():
        assert torch.equal(started.backbone.state_dict()[name], tensor)
    assert torch.equal(started.heads["kinds"].weight, network.heads["kinds"].weight)  # type: ignore[arg-type]
