"""Test the steps of comparisons: methods crossed with starts and settings, and what a run of them leaves."""

from __future__ import annotations

import collections
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import must
from cli.main import main
from pipeline.errors import ConfigError
from tests.flows.measured import LAST, SMALL, steps_of, written

TWO = "simclr: {method: simclr, hidden: 32}, byol: {method: byol, hidden: 32}"
CROSSED = """
compare: {all: {data: [kinds, pool], methods: {simclr: {method: simclr}, mocov2: {method: mocov2, lr: 0.1}}, seeds: 3,
  starts: [student, scratch], backbones: [test_resnet, resnet18], shares: [0.25, 1.0], steps: [10, 20], batch: 8}}
"""
VARIED = ("start", "backbone", "share", "steps")
"""Keys in which the stages of a method may differ."""
PAIRS = [("student", "test_resnet"), ("scratch", "test_resnet"), ("scratch", "resnet18")]


def trials_of(section: str) -> list[dict[str, Any]]:
    """Return the rows that are measured, one per seed."""
    return [step.config["trial"] for step in steps_of(section).values() if "trial" in step.config]


def test_comparison_steps_cross_everything_with_everything() -> None:
    """Each method is crossed with each start, backbone, share, number of steps and seed."""
    found = collections.Counter(tuple(trial.values()) for trial in trials_of(CROSSED))
    methods = ("supervised", "simclr", "mocov2")
    crossed = itertools.product(methods, PAIRS, (0.25, 1.0), (10, 20), range(3))
    wanted: list[tuple[Any, ...]] = [(method, *pair, *rest) for method, pair, *rest in crossed]
    wanted += [("none", *pair, None, None, seed) for pair in PAIRS for seed in range(3)]
    assert found == collections.Counter(wanted)


def test_comparison_steps_have_scratch_student_and_supervised_rows() -> None:
    rows = {(trial["method"], trial["start"]) for trial in trials_of(SMALL)}
    assert rows == {("none", "scratch"), ("none", "student"), ("supervised", "student"), ("simclr", "student")}
    elsewhere = SMALL.replace("data: [kinds]", "data: [pool], set: kinds")
    rows = {(trial["method"], trial["start"]) for trial in trials_of(elsewhere)}
    assert ("supervised", "student") not in rows, "the images have no labels to be supervised by"


def test_comparison_steps_from_scratch_alone_need_no_student() -> None:
    alone = SMALL.replace("probes", "starts: [scratch], probes")
    assert not [
        name for name, step in steps_of(alone).items() if name.startswith("compare.") and "student" in step.inputs
    ]
    rows = {(trial["method"], trial["start"]) for trial in trials_of(alone)}
    assert rows == {("none", "scratch"), ("supervised", "scratch"), ("simclr", "scratch")}


def test_comparison_steps_train_and_measure_all_methods_alike() -> None:
    steps = steps_of(CROSSED)
    stages = [step for step in steps.values() if "stage" in step.config]
    assert len(stages) == 2 * 3 * 2 * 2 * 3
    assert all("pool.compare_all" in step.inputs for step in stages)
    for method in ("simclr", "mocov2"):
        mine = [step.config["stage"] for step in stages if step.config["stage"]["method"] == method]
        rest = [{key: value for key, value in stage.items() if key not in VARIED} for stage in mine]
        assert all(each == rest[0] for each in rest)
        assert (rest[0]["batch"], rest[0]["data"]) == (8, ["kinds", "pool"])
    probes = [step for step in steps.values() if step.kind.name == "compare_probe"]
    common = ("set", "splits", "probes", "labels", "seeds", "corruptions")
    assert len({json.dumps({key: step.config[key] for key in common}) for step in probes}) == 1
    assert {step.config["seed"] for step in probes} == {0, 1, 2}
    for step in probes:
        assert step.config["trial"]["seed"] == step.config["seed"], "a row's labels are drawn by its own seed"


def test_comparison_steps_have_the_same_long_tail_for_all_rows() -> None:
    tail = CROSSED.replace("seeds: 3", "seeds: 3, long_tail: 0.1").replace("[kinds, pool]", "[kinds]")
    steps = steps_of(tail)
    assert steps["pool.compare_all"].config == {"pool": ["kinds"], "long_tail": 0.1, "seed": 0}
    trained = [step for step in steps.values() if step.name.startswith("compare.") and "trial" not in step.config]
    assert len(trained) > 10
    assert all("pool.compare_all" in step.inputs for step in trained), "supervised training as well"
    assert steps_of(CROSSED)["pool.compare_all"].config == {"pool": ["kinds", "pool"]}


def test_comparison_steps_give_a_methods_settings_to_it_alone() -> None:
    stages = [step.config["stage"] for step in steps_of(CROSSED).values() if "stage" in step.config]
    assert {stage["lr"] for stage in stages if stage["method"] == "mocov2"} == {0.1}
    assert 0.1 not in {stage["lr"] for stage in stages if stage["method"] == "simclr"}


def test_comparison_steps_start_from_weights_and_stages(tmp_path: Path) -> None:
    stages = "stages: [{name: one, method: simclr, data: [pool], batch: 4, steps: 1}]"
    steps = steps_of(stages + SMALL.replace("probes", "starts: [stage.one], probes"))
    assert steps["compare.all.simclr.stage.one.test_resnet.share1.steps1.seed0"].inputs[0] == "stage.one"


def test_comparison_steps_leave_out_backbones_a_method_is_not_for() -> None:
    rows = {
        (trial["method"], trial["backbone"])
        for trial in trials_of(CROSSED.replace("lr: 0.1", "lr: 0.1, backbones: [resnet18]"))
    }
    assert ("simclr", "test_resnet") in rows
    assert ("mocov2", "resnet18") in rows
    assert ("mocov2", "test_resnet") not in rows


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("[resnet81]", r"compare\.all\.methods\.mocov2\.backbones: 'resnet81' is unknown\. Did you mean 'resnet18'\? "),
        ("[resnet18, test_resnt]", r"backbones: 'test_resnt' .* Known: resnet18, test_resnet\."),
        ("resnet18d", r"methods\.mocov2\.backbones is 'resnet18d': write a list of timm models, as in \[resnet18\]"),
        ("3", r"methods\.mocov2\.backbones is 3: write a list"),
        ("[]", r"methods\.mocov2\.backbones is \[\]: write a list"),
        ("[7]", r"methods\.mocov2\.backbones is \[7\]: write a list"),
        ("null", r"methods\.mocov2\.backbones is None: write a list"),
    ],
)
def test_comparison_refuses_backbones_of_a_method_that_it_does_not_have(said: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        steps_of(CROSSED.replace("lr: 0.1", f"lr: 0.1, backbones: {said}"))


def test_comparison_refuses_a_method_without_a_backbone() -> None:
    said = CROSSED.replace("lr: 0.1", "lr: 0.1, backbones: [resnet18]").replace("[student, scratch]", "[student]")
    says = r"mocov2\.backbones is \['resnet18'\], but no start has one of these: starts are"
    with pytest.raises(ConfigError, match=says):
        steps_of(said)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("method: simclr", "method: simcl", r"compare\.all\.methods\.simclr\.method: 'simcl' .*Did you mean 'simclr'"),
        (
            "method: simclr",
            "method: simclr, temprature: 7",
            r"methods\.simclr\.temprature: unknown key \(value 7\)\. Did you mean .temperature.",
        ),
        ("method: simclr", "method: simclr, steps: 7", r"methods\.simclr\.steps: all methods have it in common"),
        ("method: simclr", "method: simclr, data: [pool]", r"methods\.simclr\.data: all methods have it in common"),
        ("method: simclr", "lr: 0.1", r"methods\.simclr names no method: write \{method: simclr\}"),
        ("{simclr: {", "{none: {", r"'none' is a row of every comparison; call the method another name"),
        ("{simclr: {", "{supervised: {", r"'supervised' is a row of every comparison"),
        ("seeds: 1", "seeds: 1, supervised: {steps: 7}", r"supervised\.steps: all rows have it in common"),
        ("seeds: 1", "seeds: 1, supervised: {lr: high}", r"compare\.all\.supervised\.lr: .*\(value 'high'\)"),
        ("data: [kinds]", "data: [kind]", r"compare\.all\.data: 'kind' is unknown\. Did you mean 'kinds'"),
        ("data: [kinds]", "data: [pool], set: kids", r"compare\.all\.set: 'kids' is unknown\. Did you mean 'kinds'"),
        (
            "data: [kinds]",
            "data: [world]",
            r"compare\.all\.probes names 'knn', but world has no labels that it learns from",
        ),
        ("probes: [knn]", "probes: []", r"neither probes nor finetune are asked for"),
        ("probes: [knn]", "probes: [kn]", r"compare\.all\.probes: 'kn' is unknown\. Did you mean 'knn'"),
        ("probes: [knn]", "schedule: quik", r"compare\.all\.schedule: 'quik' is unknown\. Did you mean 'quick'"),
        ("steps: [1, 2]", "steps: [2, 2]", r"steps: 2 is there twice"),
        (
            "steps: [1, 2]",
            "starts: [studnt]",
            r"compare\.all\.starts: start 'studnt' is unknown\. Did you mean 'student'",
        ),
    ],
)
def test_comparison_refuses_what_cannot_be_compared(old: str, new: str, says: str) -> None:
    assert old in SMALL
    with pytest.raises(ConfigError, match=says):
        steps_of(SMALL.replace(old, new))


def test_comparison_refuses_a_backbone_and_names_those_that_a_method_can_use(tmp_path: Path) -> None:
    recipe = written(tmp_path / "mae.yaml", SMALL.replace("simclr: {method: simclr}", "mae: {method: mae}"))
    with pytest.raises(
        ConfigError, match=r"compare\.all\.methods\.mae on test_resnet: .* vision transformer.*'test_resnet'"
    ):
        must.run(recipe, tmp_path / "root", steps=LAST)
    assert not (tmp_path / "root" / "artifacts").exists()


def test_compare_without_a_section_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", str(recipe), "--root", str(tmp_path / "root")])
    assert end.value.code == 2
    assert "has no section `compare`. Add one, for example compare:" in capsys.readouterr().err


# A run of it
