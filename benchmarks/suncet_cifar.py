"""What 4,000 labels bring to self-supervised pretraining: SimCLR against SimCLR with SuNCEt on CIFAR-10.

    python -m benchmarks.suncet_cifar --small    # about 40 minutes on one core
    python -m benchmarks.suncet_cifar            # for a GPU

All 50,000 training images without labels, 400 labels of each class, and trainings that see as many views as SimCLR
does in 25, 50 and 100 epochs: every step has 512 views, and with SuNCEt 160 of them are of labelled images. A linear
probe and nearest neighbours then learn from the same 4,000 labels, on frozen features, and are tested on the 10,000
test images. Every length is a training of its own, as the schedule depends on it, with three seeds, each with labels
of its own.

`--small` draws 5,000 of the images, takes 40 labels of each class, and trains timm's `test_resnet`, of 0.4 million
weights, on images of 32 pixels in 625, 1,250 and 2,500 steps of 128 views, that is 8, 16 and 32 epochs of SimCLR; with
SuNCEt 40 of the views are of labelled images. The test images are all 10,000 and the seeds three.

What is made is kept in the root: a second run goes on from there.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.compared import line_of, record, run, seconds_of, told, values_of
from benchmarks.drawn import draw
from benchmarks.measure import circumstances, save_result
from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Comparison, Row, read_comparisons
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.stage import STUDENT
from pipeline.training.device import find_device

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent / "suncet_cifar.yaml"
NAME = "cifar"
DRAWN = {"train": 5000, "test": 10000}
SMALL = [
    "runtime.runner=inline",
    *(
        f"{COMPARE}.{NAME}.{said}"
        for said in (
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


def small_data(source: Path, folder: Path) -> list[str]:
    """Draw a part of the images; what the recipe is to be told of it."""
    draw(source, folder, DRAWN)
    return [f"data.{name}.path={folder}" for name in ("cifar", "measured")]


def check_views(found: Comparison) -> None:
    """Where trainings of as many steps had not as many views, nothing could be compared."""
    for setting in found.settings():
        views = {row.name: row.views for row in found.rows if row.setting == setting}
        assert len(set(views.values())) == 1, views


def gains(found: Comparison, columns: Sequence[MetricColumn]) -> list[list[str]]:
    """A line per length: by how much SuNCEt is better than SimCLR alone, seed by seed."""
    rows = {(row.method, row.setting.steps): row for row in found.rows}
    lines = []
    for setting in found.settings():
        simclr, suncet = (rows[name, setting.steps] for name in ("simclr", "suncet"))
        shown = [_told_gain(simclr, suncet, column) for column in columns]
        lines.append(["suncet less simclr", f"{setting.steps:,}", *shown, "", "", ""])
    return lines


def _told_gain(simclr: Row, suncet: Row, column: MetricColumn) -> str:
    pairs = zip(values_of(simclr, column), values_of(suncet, column), strict=True)
    return told([after - before for before, after in pairs])


def table_of(found: Comparison, columns: Sequence[MetricColumn]) -> list[list[str]]:
    """The rows, but for the student, which is there because a recipe has one; and what SuNCEt brings."""
    head = ["row", "steps", *(f"{_probe(column)}, %" for column in columns), "s", "images", "views"]
    lines = [
        [*line_of(row, columns), f"{row.cost.images:,}", f"{row.views:,}"] for row in found.rows if row.start != STUDENT
    ]
    return [head, *lines, *gains(found, columns)]


def records(found: Comparison, columns: Sequence[MetricColumn]) -> list[dict[str, Any]]:
    """The rows of the table as JSON, with the values of all seeds."""
    return [
        {
            **record(row),
            "views": row.views,
            "accuracy": {column.protocol: values_of(row, column) for column in columns},
        }
        for row in found.rows
        if row.start != STUDENT
    ]


def _probe(column: MetricColumn) -> str:
    return column.protocol.partition(" ")[0]


def main(
    root: Annotated[str, typer.Option(help="Where artifacts are kept.")] = "must-root",
    data: Annotated[Path, typer.Option(help="The folder with the sets.", envvar="MUST_DATA")] = Path("../shared/data"),
    small: Annotated[bool, typer.Option("--small", help="What one core does in about 40 minutes.")] = False,
    override: Annotated[list[str] | None, typer.Option("-o", help="As for must.")] = None,
) -> None:
    """Measure, print, and leave `suncet_cifar` among the results, or `suncet_cifar_small`."""
    device = find_device("auto")
    measured = circumstances(device)
    drawn = [*small_data(data / "cifar10", Path(root) / "suncet_cifar"), *SMALL] if small else []
    overrides = [*drawn, *(override or [])]
    artifacts = run(RECIPE, root, overrides, f"{COMPARE}.{NAME}")
    found = read_comparisons(artifacts)[NAME]
    check_views(found)
    columns = sorted(found.columns, key=lambda column: column.protocol, reverse=True)
    result = {
        "measured": measured,
        "overrides": overrides,
        "labels": columns[0].labels,
        "advice": found.advice(),
        "test_images": found.n,
        "seconds": seconds_of(artifacts),
        "rows": records(found, columns),
    }
    title = f"SuNCEt on CIFAR-10, frozen features with {columns[0].labels:,} labels, accuracy in %, mean ± deviation"
    table = table_of(found, columns)
    save_result(RESULTS / f"suncet_cifar{'_small' if small else ''}-{device}.json", title, result, table)


if __name__ == "__main__":
    typer.run(main)
