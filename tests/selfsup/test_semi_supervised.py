"""CoMatch and STARTUP: their losses against their formulas, what they remember, and stages that have them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.stage import PolicyConfig
from selfsup.components.losses import graph_contrast, label_graph, mean_cross_entropy
from selfsup.stages.crops import draw_crop
from selfsup.stages.objective import override_policies
from selfsup.stages.step import stage_config
from tests.conftest import WORLD, World
from tests.selfsup import formulas
from tests.selfsup.formulas import double, softmax, unit, vectors
from tests.selfsup.sandbox import SMALL, StageSandbox, log, weights
from tests.selfsup.small_methods import SETTING, backbone, config, make, views, with_teacher

PROBS = torch.tensor([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.0, 0.95, 0.05], [0.4, 0.3, 0.3]])


def test_label_graph_equals_formula() -> None:
    similarity = double(PROBS) @ double(PROBS).T
    similarity[similarity < 0.8] = 0
    np.fill_diagonal(similarity, 1)
    expected = similarity / similarity.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(label_graph(PROBS, 0.8), expected, atol=1e-6)
    np.testing.assert_allclose(label_graph(PROBS, 0.8, slice(1, 3)), expected[1:3], atol=1e-6)
    assert label_graph(PROBS, 0.8)[0].tolist() == pytest.approx([1 / 1.9, 0.9 / 1.9, 0, 0])


def test_graph_contrast_equals_formula_and_is_info_nce_of_a_graph_without_neighbours() -> None:
    first, second, graph = vectors(4), vectors(4, seed=1), label_graph(PROBS, 0.8)
    probs = softmax(unit(first) @ unit(second).T / 0.2)
    expected = -(double(graph) * np.log(probs)).sum(axis=1)
    assert graph_contrast(first, second, graph, 0.2).item() == pytest.approx(expected.mean(), rel=1e-5)
    own = slice(1, 3)
    assert graph_contrast(first, second, graph[own], 0.2, own).item() == pytest.approx(expected[own].mean(), rel=1e-5)
    alone = graph_contrast(first, second, torch.eye(4), 0.2).item()
    assert alone == pytest.approx(-np.log(np.diagonal(probs)).mean(), rel=1e-5)


def test_mean_cross_entropy_is_0_with_a_graph_without_images() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = mean_cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_comatch_pseudo_labels_are_aligned_then_smoothed_once_its_queue_is_full() -> None:
    method: Any = make("comatch")
    logits, z = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), F.normalize(vectors(2), dim=1)
    found = method._pseudo_labels(logits, z)
    probs = logits.softmax(dim=1)
    shared = probs / probs.mean(dim=0)
    torch.testing.assert_close(found.aligned, shared / shared.sum(dim=1, keepdim=True))
    torch.testing.assert_close(found.smoothed, found.aligned)
    torch.testing.assert_close(method.means[0], probs.mean(dim=0))
    method.queue.copy_(F.normalize(vectors(len(method.queue), seed=3), dim=1))
    method.queue_labels.copy_(F.one_hot(torch.arange(len(method.queue)) % 2).float())
    later = method._pseudo_labels(logits, z)
    near = (z @ method.queue.T / 0.2).softmax(dim=1) @ method.queue_labels
    torch.testing.assert_close(later.smoothed, 0.9 * later.aligned + 0.1 * near)
    torch.testing.assert_close(later.smoothed.sum(dim=1), torch.ones(2))


def test_comatch_remembers_labelled_images_with_their_classes() -> None:
    method: Any = make("comatch")
    method.losses(views(method, labelled=2))
    assert method.queue_labels[:8].tolist() == F.one_hot(torch.arange(2).repeat(4)).float().tolist()
    assert method.queue_labels[8:16].any(dim=1).all(), "then the unlabelled ones"
    assert not method.queue_labels[16:].any()
    torch.testing.assert_close(method.queue[:16].norm(dim=1), torch.ones(16))


def test_comatch_with_threshold_0_learns_the_soft_labels_of_all_images() -> None:
    """With no smoothing it is the cross entropy of the strong view with the aligned label of the weak one."""
    method: Any = make("comatch", threshold=0, smoothing=0)
    method.eval()
    batch = views(method, labelled=2)
    found = method.losses(batch)
    logits = [method.classifier(method.backbone(images)) for images in batch.unlabelled[:2]]
    fresh: Any = make("comatch")
    aligned = fresh._pseudo_labels(logits[0].detach(), torch.zeros(8, 16)).aligned

    torch.testing.assert_close(found["pseudo"], F.cross_entropy(logits[1], aligned))
    none = make("comatch", threshold=1).losses(batch)["pseudo"]
    assert none.item() == 0


def test_comatch_teaches_the_graph_of_smoothed_labels_to_the_strong_views() -> None:
    method: Any = make("comatch", graph_threshold=0.3)
    for step in range(6):
        method.losses(views(method, step))
    method.eval()
    batch, before = views(method, 6), copy.deepcopy(method)
    found = method.losses(batch)["graph"].item()
    weak, first, second = (F.normalize(before.head(before.backbone(each)), dim=1) for each in batch.unlabelled)
    labels = before._pseudo_labels(before.classifier(before.backbone(batch.unlabelled[0])), weak)
    assert not torch.allclose(labels.aligned, labels.smoothed), "the queue is full"
    expected = graph_contrast(first, second, label_graph(labels.smoothed, 0.3), 0.2).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_startup_contrasts_the_augmented_views_as_simclr() -> None:
    method: Any = make("startup")
    method.eval()
    batch = views(method)
    z = [method.head(method.backbone(images)) for images in batch.unlabelled[:2]]
    assert method.losses(batch)["simclr"].item() == pytest.approx(formulas.nt_xent(z[0], z[1], 1.0), rel=1e-4)


def test_plain_views_are_those_of_the_method_whatever_a_recipe_says() -> None:
    changed = PolicyConfig(area=(0.3, 0.4), jitter=1, flip=0)
    for name, plain in (("comatch", [0]), ("startup", [2]), ("depthcontrast", [2, 3]), ("simclr", [])):
        kinds = make(name).view_kinds()
        found = override_policies(kinds, changed)
        assert [number for number, kind in enumerate(found) if kind == kinds[number]] == plain, name


def test_draw_crop_of_all_the_area_is_the_whole_image() -> None:
    policy = make("startup").view_kinds()[2].policy
    assert draw_crop(policy, (1000, 300), np.random.default_rng(0)) == (0, 0, 1000, 300, False)


def test_startup_learns_the_distributions_of_its_teacher() -> None:
    method: Any = make("startup")
    method.eval()
    batch = views(method)
    taught = method.teacher.probs(batch.unlabelled[2])
    torch.testing.assert_close(taught.sum(dim=1), torch.ones(8))
    expected = []
    for view in batch.unlabelled[:2]:
        log_q = method.classifier(method.backbone(view)).log_softmax(dim=1)
        expected.append((double(taught) * (np.log(double(taught)) - double(log_q))).sum(axis=1).mean())
    assert method.losses(batch)["teacher"].item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize(("names", "is_shared"), [(tuple("abcde"), True), (("a", "b"), False), ((), True)])
def test_startup_learns_labelled_images_of_the_teachers_classes_by_one_classifier(
    names: tuple[str, ...], is_shared: bool
) -> None:
    stage = config("startup", labels={"images": 4})
    method: Any = stage.build_for_stage(backbone(), with_teacher(stage, SETTING._replace(class_names=names)))
    assert (method.other_classifier is method.classifier) == is_shared
    if names:
        assert method.losses(views(method, labelled=2))["cross_entropy"].isfinite()


def test_run_stage_matches_few_labels(sandbox: StageSandbox) -> None:
    settings = {"method": "comatch", "data": ["kinds"], "labels": {"images": 2}, "batch": 8, "steps": 4}
    made = sandbox.run(**stage_config({**SMALL, **settings}).model_dump(mode="json"))
    assert weights(made)
    assert all({"pseudo", "graph", "cross_entropy"} <= line["losses"].keys() for line in log(made))


def test_run_stage_learns_from_a_classifier_of_the_recipe(sandbox: StageSandbox, world: World) -> None:
    asked = {
        "method": "startup",
        "teacher": "kinds",
        "data": ["kinds"],
        "steps": 3,
        "labels": {"images": 2},
        "batch": 8,
    }
    stage = stage_config({**SMALL, **asked}).model_dump(mode="json")
    made = sandbox.run(teachers={"teacher.kinds": world.artifacts["teacher.kinds"]}, **stage)
    assert all({"simclr", "teacher", "cross_entropy"} <= line["losses"].keys() for line in log(made))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("method: comatch", r"comatch learns from some labelled images: write labels: \{\}"),
        ("method: comatch, labels: {method: supcon}", r"by their cross entropy: leave method out"),
        (
            "method: startup, teacher: kinds, labels: {smoothing: 0.1, temperature: 1}",
            r"leave temperature and smoo",
        ),
        ("method: startup, teacher: masks", r"'masks' is of task 'segmentation', and 'startup' learns from .*'classif"),
        ("method: startup, teacher: nobody", r"teacher 'nobody' is unknown"),
    ],
)
def test_stages_of_few_labels_refuse(stage: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_steps(parse_recipe(f"{WORLD}stages: [{{name: one, data: [truth], {stage}}}]\n", "world"))
