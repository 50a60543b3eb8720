"""Measure what 4,000 labels add to self-supervised pretraining: SimCLR with and without SuNCEt on CIFAR-10.

    python -m benchmarks.suncet_cifar --small    # about 40 minutes on one core
    python -m benchmarks.suncet_cifar            # for a GPU

Training uses all 50,000 images without labels, and 400 labels of each class. Both methods see as many views as SimCLR
in 25, 50 and 100 epochs: each step has 512 views, of which 160 are of labelled images with SuNCEt. A linear probe and
nearest neighbours then learn from the same 4,000 labels on frozen features, and are tested on the 10,000 test images.
Every length is a separate training, since the schedule depends on it, with three seeds that draw different labels.

`--small` draws 5,000 of the images and 40 labels of each class, and trains timm's `test_resnet` (0.4 million weights)
on images of 32 pixels for 625, 1,250 and 2,500 steps of 128 views, which is 8, 16 and 32 epochs of SimCLR; with SuNCEt
40 of the views are of labelled images. It tests on all 10,000 test images, with three seeds.

Results stay in the root: a second run goes on.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.comparison_rows import base_seconds, row_cells, row_record, row_values, run
from benchmarks.datasets import DATA, DataOption, write_subset
from benchmarks.measure import RESULTS, describe_environment, format_mean, save_result
from cli.options import OverrideOptions, RootOption
from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Comparison, Row, read_comparisons
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.stage import STUDENT
from pipeline.steps.artifact import Artifact
from pipeline.storage import DEFAULT_ROOT
from pipeline.training.device import find_device

RECIPE = Path(__file__).parent / "suncet_cifar.yaml"
NAME = "cifar"
SUBSET = {"train": 5000, "test": 10000}
SMALL = [
    "runtime.runner=inline",
    *(
        f"{COMPARE}.{NAME}.{override}"
        for override in (
            "backbones=[test_resnet]",
            "image_size=32",
            "batch=64",
            "steps=[625,1250,2500]",
            "labels=[400]",
            "methods.suncet.labels.per_class=40",
            "methods.suncet.labels.images=4",
        )
    ),
]


def check_views(comparison: Comparison) -> None:
    """Assert that trainings with the same number of steps saw the same number of views."""
    for setting in comparison.settings():
        views = {row.name: row.views for row in comparison.rows if row.setting == setting}
        assert len(set(views.values())) == 1, views


def gain_lines(comparison: Comparison, columns: Sequence[MetricColumn]) -> list[list[str]]:
    """Return a line per length: by how much SuNCEt is better than SimCLR alone, seed by seed."""
    rows = {(row.method, row.setting.steps): row for row in comparison.rows}
    lines = []
    for setting in comparison.settings():
        simclr, suncet = (rows[name, setting.steps] for name in ("simclr", "suncet"))
        pairs = [zip(row_values(suncet, column), row_values(simclr, column), strict=True) for column in columns]
        gains = [[with_labels - without for with_labels, without in each] for each in pairs]
        lines.append(["suncet less simclr", f"{setting.steps:,}", *map(format_mean, gains), "", "", ""])
    return lines


def columns_of(comparison: Comparison) -> list[MetricColumn]:
    """Return the columns, the linear probe's first."""
    return sorted(comparison.columns, key=lambda column: column.protocol, reverse=True)


def rows_of(comparison: Comparison) -> list[Row]:
    """Return the rows without that of the student, which is only there because a recipe needs one."""
    return [row for row in comparison.rows if row.start != STUDENT]


def comparison_records(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return what the comparison found, JSON-ready."""
    comparison = read_comparisons(artifacts)[NAME]
    check_views(comparison)
    columns = columns_of(comparison)
    records = [
        {**row_record(row), "views": row.views, "accuracy": {each.protocol: row_values(row, each) for each in columns}}
        for row in rows_of(comparison)
    ]
    return {
        "labels": columns[0].labels,
        "advice": comparison.advice(),
        "test_images": comparison.n,
        "seconds": base_seconds(artifacts),
        "rows": records,
    }


def main(
    root: RootOption = DEFAULT_ROOT,
    data: DataOption = DATA,
    small: Annotated[bool, typer.Option("--small", help="For one core, about 40 minutes.")] = False,
    override: OverrideOptions = None,
) -> None:
    """Measure, print, and write `suncet_cifar-DEVICE` or `suncet_cifar_small-DEVICE` to the results."""
    device = find_device("auto")
    environment = describe_environment(device)
    overrides = [*(override or [])]
    if small:
        folder = Path(root) / "suncet_cifar"
        write_subset(data / "cifar10", folder, SUBSET)
        overrides = [*(f"data.{name}.path={folder}" for name in ("cifar", "measured")), *SMALL, *overrides]
    artifacts = run(RECIPE, root, overrides, f"{COMPARE}.{NAME}")
    comparison = read_comparisons(artifacts)[NAME]
    columns, rows = columns_of(comparison), rows_of(comparison)
    result = {"measured": environment, "overrides": overrides, **comparison_records(artifacts)}
    probes = (column.protocol.partition(" ")[0] for column in columns)
    table = [["row", "steps", *(f"{probe}, %" for probe in probes), "s", "images", "views"]]
    table += [[*row_cells(row, columns), f"{row.cost.images:,}", f"{row.views:,}"] for row in rows]
    table += gain_lines(comparison, columns)
    title = f"SuNCEt on CIFAR-10, frozen features with {columns[0].labels:,} labels, accuracy in %, mean ± deviation"
    save_result(RESULTS / f"suncet_cifar{'_small' if small else ''}-{device}.json", title, result, table)


if __name__ == "__main__":
    typer.run(main)
