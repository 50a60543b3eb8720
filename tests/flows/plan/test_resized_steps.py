"""Steps that copy training images at the size that trainings need: who reads them, and what is refused."""

from __future__ import annotations

import pytest

from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Step

RECIPE = """
name: copies
data:
  world: {kind: scenes, count: 8, test: 2, seed: 1, size: 48, tasks: [classification, segmentation]}
  pool: {kind: scenes, count: 8, seed: 2, size: 48}
  own: {kind: scenes, count: 8, test: 2, seed: 3, size: 48, tasks: [classification]}
  beside: {kind: scenes, count: 8, test: 2, seed: 4, size: 48, tasks: [classification]}
teachers:
  masks: {kind: supervised, task: segmentation, data: world, backbone: test_resnet, image_size: 64}
  gabor: {kind: analytic, image_size: 96}
pool: [pool]
student: {backbone: test_resnet, image_size: 64, loss_weights: {gabor: 1}}
stages: [{name: first, method: simclr, data: [own, pool], image_size: 96}]
evaluate: {probes: [knn], probe_sets: [own], finetune: [own], starts: [student]}
compare: {all: {data: [own], methods: {simclr: {method: simclr}}, steps: [1], batch: 4, seeds: 1, probes: [knn],
  finetune: true, image_size: 128}}
"""


def steps_of(*overrides: str) -> dict[str, Step]:
    return {step.name: step for step in build_steps(parse_recipe(RECIPE, "copies", overrides))}


def readers(steps: dict[str, Step], name: str) -> set[str]:
    return {step.name for step in steps.values() if name in step.inputs}


def test_resized_steps_are_read_by_trainings_alone() -> None:
    steps = steps_of("resized={world: 128, pool: 96, own: 128}")
    assert readers(steps, "resized.world") == {"teacher.masks"}
    assert readers(steps, "resized.pool") == {"student", "stage.first"}
    compared = {name for name in steps if name.startswith("compare.") and not name.endswith(".probe")}
    assert compared
    assert {name for name in steps if name.startswith("finetune.")}
    finetuned = {name for name in steps if name.startswith("finetune.")}
    assert readers(steps, "resized.own") == {"stage.first", *compared, *finetuned}
    assert steps["resized.pool"].inputs == ("data.pool",)
    assert steps["resized.pool"].config == {"set": "pool", "short_side": 96}
    assert list(steps).index("resized.pool") < list(steps).index("teacher.masks")


def test_resized_steps_change_no_other_step() -> None:
    """A training has one input more, and so another fingerprint; without the key it has that which it always had."""
    before, after = steps_of(), steps_of("resized.pool=96")
    assert after.keys() - before.keys() == {"resized.pool"}
    for name, step in before.items():
        assert after[name].config == step.config
        assert tuple(each for each in after[name].inputs if each != "resized.pool") == step.inputs
    assert not any(each.startswith("resized") for step in before.values() for each in step.inputs)


@pytest.mark.parametrize(
    ("override", "place", "size"),
    [
        ("resized.world=63", "teachers.masks", 64),
        ("resized.pool=32", "student", 64),
        ("resized.pool=95", r"stages\.first", 96),
        ("resized.own=127", r"compare\.all", 128),
    ],
)
def test_resized_inputs_refuse_copies_smaller_than_a_training_needs(override: str, place: str, size: int) -> None:
    name, given = override.split("=")
    message = rf"{name} is {given}, but {place} reads this set at an image_size of {size}, .*give {size} or more"
    with pytest.raises(ConfigError, match=message):
        steps_of(override)


def test_resized_inputs_refuse_copies_smaller_than_fine_tuning_needs() -> None:
    with pytest.raises(ConfigError, match=r"resized\.own is 127, but evaluate\.finetune reads .* image_size of 160"):
        steps_of("resized.own=127", "evaluate.image_size=160")


def test_check_copies_are_read_names_a_set_that_no_training_reads() -> None:
    with pytest.raises(ConfigError, match=r"resized\.beside is given, but no training reads this set"):
        steps_of("resized.beside=128")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resized.poool=128", "resized names 'poool', not under data; there are world, pool, own, beside"),
        ("resized.pool=16", r"resized\.pool"),
    ],
)
def test_recipe_refuses_resized_sets_that_are_not_there(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steps_of(override)
