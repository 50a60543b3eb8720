"""Test that missing labels are reported once the sets are read, before training, and only in runs that need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import must
from evaluation import label_subsets
from flows.plan.selection import Selection
from flows.plan.stage_steps import stage_needs
from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Inputs
from selfsup.stages import step
from tests.flows.measured import MEASURED

STAGE = "stages: [{name: s, method: simclr, data: [kinds], batch: 16, steps: 1, labels: {%s}}]"
COMPARED = """
compare: {first: {data: [kinds], steps: [1, 2], batch: 16, seeds: 3, shares: [0.5, 1.0], %s,
  methods: {plain: {method: simclr}, few: {method: simclr%s}}}}
"""
WHOLE = Selection()
COMPARE = Selection("compare")


def written(folder: Path, section: str) -> Path:
    path = folder / "recipe.yaml"
    blind = "  blind: {kind: scenes, count: 9, seed: 4, size: 48, tasks: [classification]}\n  kinds:"
    path.write_text(MEASURED.replace("  kinds:", blind) + section, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("section", "steps", "says"),
    [
        (
            STAGE % "per_class: 90, images: 2",
            WHOLE,
            r"stages\.s: labels: of 12 images \d+ are labelled as '\w+', and 90 of each class are asked for",
        ),
        (
            STAGE.replace("labels: {%s}", "validate: {every: 1}").replace("kinds", "world"),
            WHOLE,
            r"stages\.s: validate: the set 'world' has no images with labels for 'classification' in its split "
            r"'train' or 'val'\.",
        ),
        (
            "evaluate: {probes: [knn], labels: [100000]}",
            WHOLE,
            r"evaluate: labels: 100000 labelled images asked for; kinds has 12 to learn from",
        ),
        (
            "evaluate: {finetune: [world], labels: [13]}",
            WHOLE,
            r"evaluate: labels: 13 labelled images asked for; world has 12 to learn from",
        ),
        (
            "evaluate: {probes: [knn], probe_sets: [blind]}",
            WHOLE,
            r"evaluate: the set 'blind' can't be measured on: no held-out image has a label for 'classification'",
        ),
        (
            "evaluate: {probes: [], finetune: [blind]}",
            WHOLE,
            r"evaluate: the set 'blind' can't be measured on: no held-out image has a label for 'classification'",
        ),
        (
            COMPARED % ("labels: [all, 13]", ""),
            COMPARE,
            r"compare\.first: labels: 13 labelled images asked for; kinds has 12",
        ),
        (
            COMPARED % ("labels: [all]", ", labels: {classes: 2, images: 8}"),
            COMPARE,
            r"compare\.first\.methods\.few: labels: of \d+ images \d+ are labelled as '\w+', and 8 of each",
        ),
    ],
)
def test_label_checks_end_a_run_once_the_set_is_read(section: str, steps: Selection, says: str, tmp_path: Path) -> None:
    recipe, root = written(tmp_path, section), tmp_path / "root"
    for runner in ("inline", "threads"):
        with pytest.raises(ConfigError, match=says):
            must.run(recipe, root, [f"runtime.runner={runner}", f"seed={len(runner)}"], steps)
        made = {path.parent.parent.name for path in root.glob("artifacts/*/*/manifest.json")}
        assert made
        assert all(name.startswith(("data.", "pool")) for name in made), "nothing was trained"
    with pytest.raises(ConfigError, match=says):
        must.plan(recipe, root, steps=steps)
    assert must.plan(recipe, root, steps=Selection("teacher.masks")), "which asks for no such labels"


def test_label_checks_of_many_rows_read_labels_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of 3 seeds, 2 methods, 2 lengths and 2 shares measures all rows on one set with the same labels."""
    recipe, root = written(tmp_path, COMPARED % ("labels: [all, 13]", "")), tmp_path / "root"
    looked: list[str] = []
    find_splits = label_subsets.find_splits

    def counted(found: IngestedSet, task: str, preferred: str) -> label_subsets.Splits:
        looked.append(task)
        return find_splits(found, task, preferred)

    monkeypatch.setattr(label_subsets, "find_splits", counted)
    with pytest.raises(ConfigError):
        must.run(recipe, root, ["runtime.runner=inline"], COMPARE)
    assert looked == ["classification"]


def test_label_checks_of_stages_with_the_same_images_read_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of 6 and 12 images for all; those with labels by seed, where not all are seen."""
    told = COMPARED % ("labels: [all]", ", labels: {classes: 2, images: 2}")
    recipe, root, looked = written(tmp_path, told), tmp_path / "root", Counter[tuple[float, bool]]()

    def counted(config: Mapping[str, Any], inputs: Inputs) -> None:
        looked[config["stage"]["share"], config["stage"]["labels"] is not None] += 1

    monkeypatch.setattr(step, "load_stage_data", counted)
    for pool in ("pool", "pool.compare_first"):
        must.run(recipe, root, ["runtime.runner=inline"], Selection(pool))
    assert not looked
    must.plan(recipe, root, steps=COMPARE)
    assert looked == {(0.5, False): 1, (1.0, False): 1, (0.5, True): 3, (1.0, True): 1}


def test_stage_needs_a_check_for_each_batch_that_labelled_images_have_to_fit() -> None:
    def needs(batch: int, labels: dict[str, int] | None) -> list[Any]:
        return stage_needs({"seed": 0, "stage": {"share": 1.0, "labels": labels, "batch": batch}})

    assert needs(4, None) == needs(64, None)
    assert needs(4, {"images": 2}) != needs(64, {"images": 2})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["data.world.test=0", "teachers.masks.require={miou: 0.1}"],
            r"teachers\.masks: require: the set 'world' has no held-out image with a label for 'segmentation'",
        ),
        (
            ["data.world.test=0", "evaluate={probes: [], sets: [world]}"],
            r"evaluate: sets: the set 'world' has no held-out image with a label for segmentation",
        ),
    ],
)
def test_label_checks_of_teachers_and_evaluation_come_before_training(
    settings: list[str], says: str, tmp_path: Path
) -> None:
    recipe, root = written(tmp_path, ""), tmp_path / "root"
    with pytest.raises(ConfigError, match=says):
        must.run(recipe, root, settings)
    made = {path.parent.parent.name for path in root.glob("artifacts/*/*/manifest.json")}
    assert all(name.startswith(("data.", "pool")) for name in made), "nothing was trained"


def test_student_of_true_labels_alone_needs_them_in_the_pool(tmp_path: Path) -> None:
    recipe, root = written(tmp_path, ""), tmp_path / "root"
    blind = ["student.labels=true_only", "pool=[blind]"]
    with pytest.raises(
        ConfigError, match=r"student: labels is 'true_only', but no training image of .*\(world\) is in"
    ):
        must.run(recipe, root, blind)
    made = {path.parent.parent.name for path in root.glob("artifacts/*/*/manifest.json")}
    assert all(name.startswith(("data.", "pool")) for name in made), "nothing was labelled"
    assert must.plan(recipe, root, ["student.labels=true_only", "pool=[blind, world]"])
    copied = ["student.labels=true_only", "pool=[copy]", "data.copy={kind: scenes, count: 12, seed: 1, size: 48}"]
    must.run(recipe, root, copied, Selection("data.copy"))
    assert must.plan(recipe, root, copied), "images are matched by their bytes"
