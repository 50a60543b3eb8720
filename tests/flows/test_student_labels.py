"""The student labels the pool too, to show where it disagrees with its teachers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import must
from browser.answers import Answers
from browser.filters import ImageSelection
from browser.loading import Loading
from flows.gc.inventory import plan_gc
from flows.plan.selection import Selection
from pipeline.errors import ConfigError
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.naming import STUDENT_LABEL_STEP
from tests.flows.tiny import STEPS

ASKED = ["labelling.student=true"]


@pytest.fixture(scope="module")
def labelled(finished_root: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the finished root in which the student has labelled the pool."""
    root = tmp_path_factory.mktemp("labelled") / "root"
    shutil.copytree(finished_root, root)
    planned = must.plan(recipe, root, ASKED)
    assert [each.step.name for each in planned] == [*STEPS[:-1], STUDENT_LABEL_STEP, STEPS[-1]]
    assert [each.step.name for each in planned if each.artifact is None] == [STUDENT_LABEL_STEP], (
        "something else would be made again"
    )
    outcome = must.run(recipe, root, ASKED)
    assert outcome.ran == 1
    counts = outcome.artifacts[STUDENT_LABEL_STEP].counts
    assert (counts["labelled_now"], counts["failed"], counts["choices"].keys()) == (48, 0, {"student"})
    return root


def test_student_labels_are_browsed_beside_the_teachers(labelled: Path) -> None:
    loading = Loading(Root.of(labelled))
    loading.refresh()
    assert not loading.progress.damaged
    stores = loading.newest_stores()
    assert set(stores) == {"masks", "gabor", "student-masks", "student-gabor"}
    assert {found.maker: found.is_learned for found in loading.catalogue.stores if not found.is_true} == {
        "masks": True,
        "gabor": True,
        "student-masks": False,
        "student-gabor": False,
    }
    answers = Answers(loading)
    answers.differences.compute(stores["masks"], stores["student-masks"])
    differ = f"{stores['masks'].name}:{stores['student-masks'].name}.differ"
    found = answers.images(ImageSelection(order=f"-{differ}"), 100, 0, [differ])["images"]
    apart = [image[differ] for image in found]
    assert len(apart) == 48
    assert apart == sorted(apart, reverse=True)
    assert 0 < np.mean(apart) < 1


def test_student_labels_are_reused_and_kept_by_plan_gc(labelled: Path, recipe: Path) -> None:
    assert must.run(recipe, labelled, ASKED).ran == 0
    assert must.run(recipe, labelled, [*ASKED, "labelling.batch=5"], Selection(STUDENT_LABEL_STEP)).ran == 2
    assert all(verdict.kept for verdict in plan_gc(Workspace(Root.of(labelled)), keep=9))


def test_student_labels_are_planned_only_if_the_recipe_asks_for_them(finished_root: Path, recipe: Path) -> None:
    assert [each.step.name for each in must.plan(recipe, finished_root)] == STEPS
    with pytest.raises(ConfigError, match=r"Step 'student\.labels' is unknown"):
        must.plan(recipe, finished_root, [], Selection(STUDENT_LABEL_STEP))
