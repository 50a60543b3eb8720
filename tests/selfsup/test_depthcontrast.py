"""DepthContrast: its losses against their formulas, the depth that it sees, and a stage that leaves two backbones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import read_tensors
from pipeline.recipe.reader import parse_recipe
from selfsup.stages.step import stage_config
from tests.conftest import WORLD, World
from tests.disk import folder_of
from tests.selfsup import formulas
from tests.selfsup.sandbox import SMALL, StageSandbox, log, weights
from tests.selfsup.small_methods import make, views


def test_depthcontrast_contrasts_each_format_with_the_keys_and_the_queue_of_each() -> None:
    method: Any = make("depthcontrast", key_momentum=1.0)
    method.eval()
    before, batch = copy.deepcopy(method), views(method)
    found = method.losses(batch)
    *images, first, second = batch.unlabelled
    depths = [before._depth(first), before._depth(second)]
    encoded = {}
    for name, backbone, (query, key) in (
        ("image", before.backbone, images),
        ("depth", before.depth_backbone, depths),
    ):
        of_format = getattr(before, name)
        encoded[name] = of_format.head(backbone(query)), of_format.key_encoder(key), of_format.queue.keys
    assert set(found) == {"image to image", "image to depth", "depth to image", "depth to depth"}
    for name, loss in found.items():
        one, _, other = name.split()
        expected = formulas.info_nce(encoded[one][0], encoded[other][1], encoded[other][2], 0.1)
        assert loss.item() == pytest.approx(expected / 2, rel=1e-4), name
    for name in ("image", "depth"):
        torch.testing.assert_close(
            getattr(method, name).queue.keys[:8], F.normalize(encoded[name][1], dim=1), rtol=1e-4, atol=1e-5
        )


def test_depthcontrast_trains_both_backbones_from_one_start() -> None:
    method: Any = make("depthcontrast")
    for one, other in zip(method.backbone.parameters(), method.depth_backbone.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other
    found = method.losses(views(method))
    found["image to depth"].backward(retain_graph=True)
    assert all(one.grad is not None for one in method.backbone.parameters())
    assert all(one.grad is None for one in method.depth_backbone.parameters())
    found["depth to image"].backward()
    assert all(one.grad is not None for one in method.depth_backbone.parameters())
    assert all(one.grad is None for one in method.teacher.parameters())


def test_depthcontrast_depth_does_not_depend_on_scale_and_shift_of_the_teacher() -> None:
    method: Any = make("depthcontrast")
    images = torch.rand(3, 3, 32, 32)
    depth = method._depth(images)
    assert depth.shape == images.shape
    assert depth.min() >= 0
    assert depth.max() <= 1
    assert torch.equal(depth[:, 0], depth[:, 2])
    output = method.teacher.output
    method.teacher.output = lambda given: 3 * output(given) - 7
    torch.testing.assert_close(method._depth(images), depth, rtol=1e-3, atol=1e-4)
    method.teacher.output = lambda given: torch.ones_like(output(given))
    torch.testing.assert_close(method._depth(images), torch.full_like(images, 0.5), msg="a flat scene is gray")


def test_depthcontrast_with_trainable_norm_trains_the_norms_of_both_backbones() -> None:
    method: Any = make("depthcontrast", trainable="norm")
    one, other = (
        [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
        for backbone in (method.backbone, method.depth_backbone)
    )
    assert one == other
    assert len(one) < len(list(method.backbone.parameters()))


def test_run_stage_leaves_the_backbone_of_depth_as_well(sandbox: StageSandbox, world: World) -> None:
    asked = {"method": "depthcontrast", "teacher": "depth", "data": ["kinds"], "steps": 2}
    stage = stage_config({**SMALL, **asked}).model_dump(mode="json")
    made = sandbox.run(teachers={"teacher.depth": world.artifacts["teacher.depth"]}, **stage)
    assert made.has("depth/backbone.json")
    depth = read_tensors(folder_of(made) / "depth" / "backbone.safetensors")[1]
    own = weights(made)
    assert depth.keys() == own.keys()
    assert any(not torch.equal(depth[name], own[name]) for name in own)
    assert len(log(made)) == 2


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("masks", r"'masks' is of task 'segmentation', and 'depthcontrast' learns from one of task 'depth'"),
        ("nobody", r"teacher 'nobody' is unknown"),
    ],
)
def test_depthcontrast_refuses_teachers_of_another_task(teacher: str, says: str) -> None:
    stage = f"{{name: one, method: depthcontrast, teacher: {teacher}, data: [pool]}}"
    with pytest.raises(ConfigError, match=says):
        build_steps(parse_recipe(f"{WORLD}stages: [{stage}]\n", "world"))
