"""Measure labelling, the student's step, and stages of SimCLR and DINO on a GPU, each against its limit.

    bash benchmarks/gpu/run.sh speed

The limit of each is the slowest of decoding on all cores, its models alone on batches in the GPU's memory, and copies
to it, measured in the same run. Beside them: timm's models in a plain loop of inference, one after the other; lightly's
loop of SimCLR; and torch's DataLoader with the same model. `--tiny` tries it on a CPU.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from benchmarks import stage_speed
from benchmarks.comparison_rows import run
from benchmarks.gpu.items import SECONDS, Item, ItemResults, SecondsOption, TinyOption
from benchmarks.gpu.timm_loop import measure_timm
from benchmarks.label_speed import measure_labelling
from benchmarks.measure import medians, print_table
from benchmarks.student_step import ALONE, measure_student
from flows.plan.run_plan import find_inputs
from pipeline.recipe.reader import read_recipe
from pipeline.storage.root import Root
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import find_device

RECIPE = Path(__file__).parent / "speed.yaml"
GOAL, LIGHTLY_GOAL = 0.95, 1.5
"""Of the limit, and of lightly's loop."""
TEACHERS = ("kinds", "boxes", "masks", "depth", "normals")
TINY = [
    *("data.world.count=12", "data.world.size=48", "data.scenes.count=24", "data.scenes.size=48"),
    *("pool=[scenes, world]", "data.photos={kind: scenes, seed: 3, count: 1, size: 48}"),
    *(f"teachers.{name}.{key}" for name in TEACHERS for key in ("image_size=32", "width=16", "batch=4")),
    *(f"teachers.{name}.backbone=test_resnet" for name in ("kinds", "boxes", "masks")),
    *(f"teachers.{name}.backbone=test_vit" for name in ("depth", "normals")),
    *("student.backbone=test_resnet", "student.image_size=32", "student.width=16", "student.batch=4"),
    *("labelling.batch=4", "runtime.workers=1"),
]
TIMM, ALL_OF_THE_CORES = "timm's loops, one after the other", "all work of the cores, encoding too"
HEAD = ("what", "images/s", "share of the limit", "goal", "limit by", "against", "times as fast")


class Scale:
    """Sizes of what is measured on a GPU, or, tiny, on a CPU."""

    def __init__(self, tiny: bool) -> None:
        self.overrides = TINY if tiny else []
        self.images, self.timm_images = (8, 192) if tiny else (4096, 4096)
        self.steps, self.windows, self.rounds = (2, 1, 1) if tiny else (40, 3, 1)
        self.workers = 1 if tiny else 16
        self.stage: dict[str, Any] = {"backbone": "test_resnet", "size": 32, "batch": 4} if tiny else LARGE_STAGE


LARGE_STAGE: dict[str, Any] = {"backbone": "resnet50", "size": 224, "batch": 256}


def measure_labels(scale: Scale, root: str) -> dict[str, Any]:
    """Measure labelling by five teachers, and timm's loops of their backbones."""
    recipe = read_recipe(RECIPE, scale.overrides)
    run(RECIPE, root, scale.overrides, "pool")
    for name in TEACHERS:
        run(RECIPE, root, scale.overrides, f"teacher.{name}")
    step, inputs = find_inputs(recipe, Root.of(root), "label")
    found = measure_labelling(inputs, step.config["batch"], scale.images, alone=True)
    teachers: dict[str, Any] = {name: recipe.teachers[name] for name in TEACHERS}
    backbones = {name: (teacher.backbone, teacher.image_size) for name, teacher in teachers.items()}
    computes = {name: ComputeConfig(**choice) for name, choice in found["choices"].items()}
    return {**found, "timm": measure_timm(inputs, backbones, scale.timm_images, computes)}


def measure_student_step(scale: Scale, root: str) -> dict[str, Any]:
    """Measure the student's step."""
    run(RECIPE, root, scale.overrides, "student")
    recipe = read_recipe(RECIPE, scale.overrides)
    return measure_student(recipe, root, scale.steps, scale.windows, alone=True)


def measure_stage(method: str, scale: Scale, device: str) -> dict[str, Any]:
    """Measure a stage of this method on photographs."""
    photos = str((stage_speed.DATA / "pool").resolve())
    part = stage_speed.Part(
        "", photos, device=device, steps=scale.steps, workers=scale.workers, method=method, **scale.stage
    )
    with tempfile.TemporaryDirectory() as folder:
        return stage_speed.measure_kinds(part, scale.rounds, Path(folder), alone=True, weigh=False)


def rates_of(name: str, result: Mapping[str, Any]) -> tuple[float, dict[str, float], dict[str, float]]:
    """Return the images per second of an item, of what may limit it, and of what it is compared with."""
    if name == "labelling":
        rates = result["images_per_s"]
        against = {TIMM: result["timm"]["rate"], ALL_OF_THE_CORES: host_rate(result)}
        return rates["labeller"], result["alone"], against
    if name == "student":
        rates = result["images_per_s"]
        return rates["loader"], {key: rates[key] for key in ALONE}, {"a plain loop": rates["plain loop"]}
    rates = {kind: medians(taken)["rate"] for kind, taken in result["taken"].items()}
    limits = {
        name: rates[kind]
        for name, kind in zip(ALONE, (stage_speed.DECODE, stage_speed.MEMORY, stage_speed.COPY), strict=True)
    }
    others = {stage_speed.PLAIN: "a plain loop", stage_speed.LIGHTLY: "lightly", stage_speed.LIGHTLY_FORMAT: None}
    against = {label or kind: rates[kind] for kind, label in others.items() if kind in rates}
    return rates[stage_speed.STAGE], limits, against


def host_rate(result: Mapping[str, Any]) -> float:
    """Return the images/s of all that the cores do for labels, encoding included, if that could be split evenly."""
    costs = result["stage_ms_per_image"]
    return 1000 * float(result["threads"]) / sum(ms for stage, ms in costs.items() if not stage.startswith("infer"))


def table_of(results: ItemResults, names: Mapping[str, Item]) -> list[tuple[str, ...]]:
    """Return the table: a line for each item and what it is compared with, and lines of what may limit it."""
    table: list[tuple[str, ...]] = [HEAD]
    for name in names:
        if name not in results:
            table.append((name, "", "", "", "not measured", "", ""))
            continue
        rate, limits, against = rates_of(name, results[name])
        slowest = min(limits, key=limits.__getitem__)
        share = f"{rate / limits[slowest]:.2f}"
        goal = f"{GOAL} of the limit"
        table.append((name, f"{rate:.0f}", share, goal, slowest, "", ""))
        table += [(f"  {part}", f"{value:.0f}", "", "", "", "", "") for part, value in limits.items()]
        for other, value in against.items():
            wanted = f"{LIGHTLY_GOAL} times" if other == "lightly" else ""
            table.append(("", f"{value:.0f}", "", wanted, "", other, f"{rate / value:.2f}"))
    return table


def main(seconds: SecondsOption = SECONDS, tiny: TinyOption = False) -> None:
    """Measure what is not in the results yet, and print."""
    device, scale = find_device("cpu" if tiny else "cuda"), Scale(tiny)
    results = ItemResults("speed", device, tiny)
    with tempfile.TemporaryDirectory() as root:
        work: dict[str, tuple[Callable[[], Mapping[str, Any]], float]] = {
            "labelling": (functools.partial(measure_labels, scale, root), 170),
            "student": (functools.partial(measure_student_step, scale, root), 120),
            "simclr": (functools.partial(measure_stage, "simclr", scale, device), 230),
            "dino": (functools.partial(measure_stage, "dino", scale, device), 230),
        }
        if tiny:  # SimCLR's programs do for both
            del work["dino"]
        items = {name: Item(measure, 0 if tiny else longest) for name, (measure, longest) in work.items()}
        results.measure(items, seconds)
    print_table(table_of(results, items))
    results.close(items)


if __name__ == "__main__":
    typer.run(main)
