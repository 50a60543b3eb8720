"""Sample pictures of single steps, made of what a step read and left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evaluation.report import step_samples
from evaluation.report.figures import Picture
from evaluation.report.run_record import RunRecord
from evaluation.report.step_samples import step_strips
from pipeline.storage.path import StoragePath

if TYPE_CHECKING:
    from tests.conftest import World


def strips_of(world: World, tmp_path: Path, step: str) -> list[list[Picture]]:
    artifacts = {name: world.artifacts[name] for name in (*world.steps[step].inputs, step)}
    return step_strips(RunRecord(StoragePath.of(str(tmp_path)), artifacts), world.artifacts[step])


def test_step_strips_of_a_set_have_all_true_labels(world: World, tmp_path: Path) -> None:
    strips = strips_of(world, tmp_path, "data.truth")
    tasks = [picture.title for picture in strips[0][1:]]
    assert tasks
    assert all([picture.title for picture in strip[1:]] == tasks for strip in strips)
    assert all(picture.note.startswith("true label") for strip in strips for picture in strip[1:])


def test_step_strips_of_a_teacher_have_the_labels_it_learned(world: World, tmp_path: Path) -> None:
    for strip in strips_of(world, tmp_path, "teacher.masks"):
        assert [picture.title for picture in strip] == ["truth", "segmentation"]
    assert strips_of(world, tmp_path, "teacher.gabor") == []


def test_step_strips_of_a_pool_are_its_images_in_one_strip(world: World, tmp_path: Path) -> None:
    [strip] = strips_of(world, tmp_path, "pool")
    assert {picture.title for picture in strip} == {"pool", "truth"}


def test_step_strips_of_labels_have_those_of_every_teacher(world: World, tmp_path: Path) -> None:
    strip, *_ = strips_of(world, tmp_path, "label")
    assert {f"teacher.{picture.title}" for picture in strip[1:]} == {
        step for step in world.artifacts if step.startswith("teacher.")
    }
    assert not any("true label" in picture.note for picture in strip)


def test_step_strips_are_few(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_samples, "MAX_PICTURES", 4)
    assert [len(strip) for strip in strips_of(world, tmp_path, "teacher.masks")] == [2, 2]
    monkeypatch.setattr(step_samples, "MAX_PICTURES", 2)
    assert len(strips_of(world, tmp_path, "label")) == 1, "one, however many teachers there are"
