"""A small run on objects of the generated world, with a teacher and a student of one task, and what all such leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import must
from pipeline.data.dataset import ImageDataset
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from student.dataset import heads_of, student_dataset

LEAST = 0.02
"""Score of the objects that the student learns from."""


def objects_recipe(task: str, teacher: str) -> str:
    """Return a recipe with a `teacher` of the task, whose set is `world`."""
    return f"""
name: objects
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1}}
data:
  world: {{kind: scenes, count: 10, val: 2, test: 3, seed: 1, size: 48, tasks: [{task}]}}
  pool: {{kind: scenes, count: 4, seed: 2, size: 48}}
teachers:
  {teacher}: {{kind: supervised, task: {task}, data: world, backbone: test_resnet, image_size: 64, width: 16,
    proposals: 16, steps: 3, batch: 4, require: none, calibrate: null}}
pool: [pool, world]
student: {{backbone: test_resnet, image_size: 64, width: 16, proposals: 16, steps: 2, batch: 4,
  thresholds: {{{task}: {LEAST}}}}}
"""


def run_objects(recipe: str, folder: Path) -> Any:
    """Run a recipe in a root in the folder, and return the outcome."""
    path = folder / "objects.yaml"
    path.write_text(recipe, "utf-8")
    return must.run(path, folder / "root")


def check_measured(outcome: Any, task: str, teacher: str) -> None:
    """Check that the run measured teacher, student and baseline, and that its report speaks of the task."""
    metrics = json.loads((outcome.folder / "metrics.json").read())
    models = (f"teacher:{teacher}", "student", "baseline")
    found = {(each["model"], each["metric"]) for each in metrics}
    assert found >= {(model, metric) for model in models for metric in ("ap", "ap50")}
    assert task in (outcome.folder / "report.html").read().decode()


def inputs_of(outcome: Any) -> Inputs:
    """Return all artifacts of the run as the inputs of a step."""
    return Inputs(dict(outcome.artifacts), Runtime(Root.of(str(outcome.folder.parent.parent)), "cpu", "32", 1))


def learned_dataset(outcome: Any, task: str) -> ImageDataset:
    """Return the images and labels that the student learned from."""
    inputs, config = inputs_of(outcome), StudentConfig(thresholds={task: LEAST})
    return student_dataset(config, heads_of(config, inputs), inputs)
