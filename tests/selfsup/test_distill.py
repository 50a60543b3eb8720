"""Distillation: its losses against their formulas, its queue, its frozen teacher, and a stage that has one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.learned_labels import LearnedLabels
from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Artifact
from selfsup.components.losses import map_distillation, queue_distillation
from selfsup.distill import mix_pairs
from selfsup.stages.step import stage_config
from tasks.frozen_teacher import FrozenTeacher
from tests.conftest import WORLD, World
from tests.selfsup.formulas import double, softmax, unit, vectors
from tests.selfsup.sandbox import SMALL, StageSandbox, log, weights
from tests.selfsup.small_methods import SETTING, classifier, frozen_teacher, initialized, make, views

DISTILL = {**SMALL, "method": "distill", "lr": 0.001, "steps": 3}


def kl(teacher: Any, student: Any) -> float:
    """Return the mean over rows of sum_k t_k log(t_k / s_k)."""
    return float((teacher * np.log(teacher / student)).sum(axis=1).mean())


def test_queue_distillation_equals_formula_and_leaves_out_empty_rows() -> None:
    student, teacher = vectors(6), vectors(6, seed=1)
    queue = torch.nn.functional.normalize(torch.cat([teacher, vectors(4, seed=2)]), dim=1)
    t, s = (softmax(unit(each) @ double(queue).T / 0.07) for each in (teacher, student))
    assert queue_distillation(student, teacher, queue, 0.07).item() == pytest.approx(kl(t, s), rel=1e-5)
    padded = torch.cat([queue, torch.zeros(5, queue.shape[1])])
    assert queue_distillation(student, teacher, padded, 0.07).item() == pytest.approx(kl(t, s), rel=1e-5)


def test_queue_distillation_with_one_vector_in_the_queue_is_0() -> None:
    queue = torch.cat([torch.nn.functional.normalize(vectors(1), dim=1), torch.zeros(3, 16)])
    assert queue_distillation(vectors(6), vectors(6, seed=1), queue, 0.07).item() == 0


def test_map_distillation_equals_formula() -> None:
    student, teacher = vectors(2 * 12, 5).view(2, 5, 3, 4), vectors(2 * 12, 7, seed=1).view(2, 7, 3, 4)
    rows = []
    for one, other in zip(teacher, student, strict=True):
        cells = [unit(each.flatten(1).T) for each in (one, other)]
        rows.append(kl(*(softmax(each @ each.T / 0.07) for each in cells)))
    assert map_distillation(student, teacher, 0.07).item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_map_distillation_does_not_depend_on_the_order_of_cells() -> None:
    student, teacher = vectors(2 * 12, 5).view(2, 5, 3, 4), vectors(2 * 12, 7, seed=1).view(2, 7, 3, 4)
    order = torch.randperm(12)
    one, other = (each.flatten(2)[:, :, order].view_as(each) for each in (student, teacher))
    assert map_distillation(one, other, 0.07).item() == pytest.approx(
        map_distillation(student, teacher, 0.07).item(), 1e-5
    )


def grid(side: int) -> Tensor:
    return vectors(4 * 16, 8).view(4, 8, 4, 4).repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)


def test_distillation_of_a_student_equal_to_its_teacher_is_0_without_gradient() -> None:
    vector, maps = vectors(6).requires_grad_(), grid(4).requires_grad_()
    queue = torch.nn.functional.normalize(vector.detach(), dim=1)
    loss = queue_distillation(3 * vector, vector, queue, 0.07) + map_distillation(2 * maps, maps, 0.07)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    for each in (vector.grad, maps.grad):
        assert each is not None
        torch.testing.assert_close(each, torch.zeros_like(each), atol=1e-5, rtol=0)


def test_map_distillation_resizes_the_student_to_the_teacher() -> None:
    student, teacher = vectors(4 * 16, 8).view(4, 8, 4, 4), vectors(4 * 64, 8, seed=1).view(4, 8, 8, 8)
    resized = torch.nn.functional.interpolate(student, (8, 8), mode="bilinear")
    assert map_distillation(student, teacher, 0.07) == map_distillation(resized, teacher, 0.07)


def test_distillation_queue_holds_the_newest_vectors_first() -> None:
    method: Any = make("distill", queue=12, mixup=False)
    assert not method.queue.any()
    seen = []
    for step in range(2):
        batch = views(method, step)
        seen.append(torch.nn.functional.normalize(method.teacher(batch.unlabelled[0]).vector, dim=1))
        method.losses(batch)
        expected = torch.cat([*seen[::-1], torch.zeros(12, method.queue.shape[1])])[:12]
        torch.testing.assert_close(method.queue, expected)


@pytest.mark.parametrize(("images", "length"), [(10, 16), (60, 20), (900, 300), (10**6, 8192)])
def test_distillation_queue_is_a_third_of_the_set(images: int, length: int) -> None:
    assert len(make("distill", SETTING._replace(images=images)).get_buffer("queue")) == length


def test_distillation_queue_holds_a_batch() -> None:
    with pytest.raises(ValueError, match=r"queue \(7\) is less than batch \(8\)"):
        make("distill", queue=7)
    assert len(make("distill", SETTING._replace(images=60, batch=32)).get_buffer("queue")) == 32


def test_distillation_without_maps_has_no_head_for_them() -> None:
    method: Any = make("distill", maps=0)
    assert method.map_head is None
    assert method.losses(views(method)).keys() == {"distill"}
    weighted: Any = make("distill", maps=0.5)
    whole: Any = make("distill")
    torch.manual_seed(0)
    half = weighted.losses(views(weighted))["maps"]
    torch.manual_seed(0)
    assert half.item() == pytest.approx(0.5 * whole.losses(views(whole))["maps"].item(), rel=1e-5)


def test_mix_pairs_is_a_mean_of_two_images() -> None:
    torch.manual_seed(0)
    images = torch.eye(8)[:, None, None].expand(8, 3, 2, 8)
    mixed = mix_pairs(images)[:, 0, 0]
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(8))
    share = mixed.diagonal()[mixed.diagonal() < 1][0]
    shares = {round(value, 5) for value in mixed.flatten().tolist()}
    assert shares <= {0.0, 1.0, round(share.item(), 5), round(1 - share.item(), 5)}


def test_frozen_teacher_is_no_part_of_its_method() -> None:
    method: Any = initialized("distill").train()
    [network] = method.teacher._network
    inside = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    assert not inside & {id(tensor) for tensor in (*method.parameters(), *method.buffers())}
    assert not any(name.startswith("teacher") for name in method.state_dict())
    assert not network.training
    assert not any(one.requires_grad for one in network.parameters())
    assert copy.deepcopy(method).teacher is method.teacher, "an average of the method has no teacher of its own"
    method.to(torch.float64)
    assert {one.dtype for one in network.parameters()} == {torch.float64}, "it follows the method"


def test_frozen_teacher_sees_images_at_its_own_size() -> None:
    teacher = frozen_teacher(48)
    images = torch.rand(2, 3, 48, 48)
    [network] = teacher._network
    vector, maps = network.readout((images * 255).round().byte())
    found = teacher(images)
    torch.testing.assert_close(found.vector, vector)
    torch.testing.assert_close(found.map, maps[-1])
    assert found.map is not None
    assert teacher(torch.rand(2, 3, 80, 80)).map.shape == found.map.shape
    assert teacher.width == vector.shape[1]


def test_frozen_teacher_refuses_models_that_tell_too_little() -> None:
    assert FrozenTeacher(classifier(), with_map=False).width == 96
    with pytest.raises(ConfigError, match=r"the model of teacher 'kinds' tells no map of an image: set maps to 0"):
        FrozenTeacher(classifier(), with_map=True)
    silent = classifier()
    silent.network = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"teacher 'kinds' tells no vector of an image: take a teacher of kind"):
        FrozenTeacher(silent, with_map=False)


def test_run_stage_distills_from_a_teacher_of_the_recipe(sandbox: StageSandbox, world: World) -> None:
    stage: dict[str, Any] = {**DISTILL, "teacher": "kinds"}
    made = sandbox.run(teachers={"teacher.kinds": world.artifacts["teacher.kinds"]}, **stage)
    assert made.counts["family"] == "distillation"
    assert weights(made)
    assert all({"distill", "maps"} <= line["losses"].keys() for line in log(made))


def test_learned_labels_of_a_distilled_stage_are_its_teachers(world: World) -> None:
    teacher = world.artifacts["teacher.kinds"]
    config = {"stage": {**DISTILL, "teacher": "kinds"}, "start": None}
    made = Artifact(world.runtime.root, "", {"config": config, "inputs": {"teacher.kinds": {}}})
    assert LearnedLabels({"teacher.kinds": teacher, "stage.one": made}).of("stage.one") == {("truth", "classification")}


@pytest.mark.parametrize(
    ("teacher", "maps", "says"),
    [
        ("gabor", 0, r"teacher 'gabor' is of kind 'analytic', whose models tell no vector of an image: take a teacher"),
        ("world", 0, r"teacher 'world' is unknown\. .*Known: boxes, depth, gabor, kinds, masks, things"),
        ("things", 1, r"teacher 'things' is of kind 'pretrained', whose models tell no map of an image: set maps to 0"),
    ],
)
def test_distillation_refuses_teachers_that_tell_too_little(teacher: str, maps: float, says: str) -> None:
    stage = f"{{name: one, method: distill, teacher: {teacher}, maps: {maps}, data: [pool]}}"
    pretrained = "teachers:\n  things: {kind: pretrained, model: test_resnet, weights: timm, classes: [a, b]}"
    weights = "loss_weights: {gabor: 1, things: 1}"
    text = WORLD.replace("teachers:", pretrained).replace("loss_weights: {gabor: 1}", weights)
    with pytest.raises(ConfigError, match=says):
        build_steps(parse_recipe(f"{text}stages: [{stage}]\n", "world"))


def test_stage_config_of_distillation_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"teacher\n  Field required"):
        stage_config(DISTILL)
