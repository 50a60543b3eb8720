"""The student labels the pool as its teachers did, for whoever wants to see where they disagree."""

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
from pipeline.stores.naming import LABELLING
from tests.flows.tiny import STEPS

ASKED = ["labelling.student=true"]


@pytest.fixture(scope="module")
def labelled(whole: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the whole run's root, in which the student was asked for its labels."""
    root = tmp_path_factory.mktemp("labelled") / "root"
    shutil.copytree(whole, root)
    planned = must.plan(recipe, root, ASKED)
    assert [each.step.name for each in planned] == [*STEPS[:-1], LABELLING[1], STEPS[-1]]
    assert [each.step.name for each in planned if each.artifact is None] == [LABELLING[1]], "something else would be made again"
    outcome = must.run(recipe, root, ASKED)
    assert outcome.ran == 1
    counts = outcome.artifacts[LABELLING[1]].counts
    assert (counts["labelled_now"], counts["failed"], counts["choices"].keys()) == (48, 0, {"student"})
    return root


def test_they_are_looked_at_beside_the_teachers(labelled: Path) -> None:
    loading = Loading(Root.of(labelled))
    loading.refresh()
    assert not loading.progress.damaged
    stores = loading.newest()
    assert set(stores) == {"masks", "gabor", "student-masks", "student-gabor"}
    assert {found.maker: found.is_learned for found in loading.catalogue.stores if not found.is_true} == {
        "masks": True,
        "gabor": True,
        "student-masks": False,
        "student-gabor": False,
    }
    answers = Answers(loading)
    answers.differences.worked_out(stores["masks"], stores["student-masks"])
    differ = f"{stores['masks'].name}:{stores['student-masks'].name}.differ"
    found = answers.images(ImageSelection(order=f"-{differ}"), 100, 0, [differ])["images"]
    apart = [image[differ] for image in found]
    assert len(apart) == 48
    assert apart == sorted(apart, reverse=True)
    assert 0 < np.mean(apart) < 1


def test_nothing_is_labelled_twice_and_nothing_that_runs_refer_to_goes(labelled: Path, recipe: Path) -> None:
    assert must.run(recipe, labelled, ASKED).ran == 0
    assert must.run(recipe, labelled, [*ASKED, "labelling.batch=5"], Selection(LABELLING[1])).ran == 2
    assert all(verdict.kept for verdict in plan_gc(Workspace(Root.of(labelled)), keep=9))


def test_it_is_no_step_of_a_recipe_that_does_not_ask_for_it(whole: Path, recipe: Path) -> None:
    assert [each.step.name for each in must.plan(recipe, whole)] == STEPS
    with pytest.raises(ConfigError, match=r"Step 'student\.labels' is unknown"):
        must.plan(recipe, whole, [], Selection(LABELLING[1]))
