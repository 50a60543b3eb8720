"""Compare self-supervised stages from a base, of its norm layers alone, and from scratch: steps, accuracy and cost.

    python -m benchmarks.hpt --small          # about an hour on two cores: the shifted images alone
    python -m benchmarks.hpt                  # for a GPU: both domains, up to 20,000 steps

There are two domains: clothing, whose base is the student of the photos recipe; and shifted images, unlike photographs:
images of CIFAR-10 made gray and dark and laid over stripes, whose base is trained without labels on CIFAR-10's 50,000
training images. Of the test images, which the base has not seen, 2,000 are shifted to train on and 2,000 to test on.
Every length is a separate training, since the schedule depends on it. Results stay in the root: a second run goes on.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image

from benchmarks.comparison_rows import base_seconds, row_cells, row_record, row_values, run
from benchmarks.datasets import DATA, DataOption
from benchmarks.measure import RESULTS, describe_environment, save_result
from cli.options import OverrideOptions, RootOption
from evaluation.comparison.comparison import Comparison, ComparisonSetting, Row, read_comparisons
from pipeline.recipe.comparison import COMPARE
from pipeline.storage import DEFAULT_ROOT
from pipeline.training.device import find_device

RECIPE = Path(__file__).parent / "hpt.yaml"
COUNT = 2000
"""Number of shifted images to train on, and to test on."""
SMALL = [
    "stages.base.steps=6000",
    *("stages.base.backbone=test_resnet", "compare.shifted.backbones=[test_resnet]"),
    *("stages.base.image_size=32", "compare.shifted.image_size=32"),
    *(f"compare.{name}.steps=[50,200,800]" for name in ("clothing", "shifted")),
]


def shift_image(data: bytes, number: int) -> bytes:
    """Return the image as PNG: gray, half its contrast, dark, over stripes of a random direction and width."""
    rng = np.random.default_rng(number)
    gray = np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)
    rows, columns = np.mgrid[: gray.shape[0], : gray.shape[1]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 8)
    stripes = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period)
    shifted = 0.5 * gray + 12 * stripes + rng.normal(scale=4, size=gray.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(shifted, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shifted(source: Path, folder: Path) -> None:
    """Write the shifted images, the same in every run, to `folder`/<split>.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source / "test.parquet")
    order = np.random.default_rng(0).permutation(len(table))
    for split, start in (("train", 0), ("test", COUNT)):
        chosen = np.sort(order[start : start + COUNT])
        part = table.take(chosen)
        images = part.column("image").to_pylist()
        shifted = [
            {**image, "bytes": shift_image(image["bytes"], int(row))} for image, row in zip(images, chosen, strict=True)
        ]
        column = pa.array(shifted, type=part.schema.field("image").type)
        place = part.schema.get_field_index("image")
        pq.write_table(part.set_column(place, "image", column), folder / f"{split}.parquet")


def accuracy_lines(name: str, comparison: Comparison) -> list[list[str]]:
    """Return a line per row: domain, row, steps, mean ± deviation, seconds of one training."""
    return [[name, *row_cells(row, comparison.columns[:1])] for row in _stage_rows(comparison)]


def _stage_rows(comparison: Comparison) -> list[Row]:
    """Return the rows with the stages' backbone; a student with another backbone can't be compared with them."""
    backbones = {setting.backbone for setting in comparison.settings()}
    return [row for row in comparison.rows if row.setting.backbone in backbones]


def speed_lines(name: str, comparison: Comparison) -> list[list[str]]:
    """Return a line per row: the fewest steps that reach the best result from scratch without labels."""
    [backbone] = {setting.backbone for setting in comparison.settings()}
    column, setting = comparison.columns[0], ComparisonSetting(backbone, 1.0, None)
    goal = comparison.best_from_scratch(backbone, 1.0, column)
    assert goal is not None
    lines = []
    for row in dict.fromkeys(row.name for row in _stage_rows(comparison)):
        cost = comparison.cost_to_reach(row, setting, column, goal)
        lines.append([name, row, f"steps to {100 * goal:.1f}", "never" if cost is None else f"{cost.steps:,}", ""])
    return lines


def main(
    root: RootOption = DEFAULT_ROOT,
    data: DataOption = DATA,
    small: Annotated[bool, typer.Option("--small", help="For two cores, about an hour.")] = False,
    override: OverrideOptions = None,
) -> None:
    """Measure, print, and write `hpt-DEVICE` or `hpt_small-DEVICE` to the results."""
    device = find_device("auto")
    environment = describe_environment(device)
    images = Path(root) / "hpt" / "shifted"
    write_shifted(data / "cifar10", images)
    overrides = [f"data.shifted.path={images}", *(SMALL if small else []), *(override or [])]
    artifacts = run(RECIPE, root, overrides, f"{COMPARE}.shifted" if small else COMPARE)
    comparisons = read_comparisons(artifacts)
    table = [["domain", "row", "steps", "accuracy, %", "s"]]
    for name, comparison in comparisons.items():
        table += [*accuracy_lines(name, comparison), *speed_lines(name, comparison)]
    result = {
        "measured": environment,
        "overrides": overrides,
        "advice": {name: comparison.advice() for name, comparison in comparisons.items()},
        "test_images": {name: comparison.n for name, comparison in comparisons.items()},
        "seconds": base_seconds(artifacts),
        "rows": [
            {"domain": name, **row_record(row), "accuracy": row_values(row, comparison.columns[0])}
            for name, comparison in comparisons.items()
            for row in comparison.rows
        ],
    }
    title = "Stages from a base and from scratch, linear probe on frozen features, accuracy in %, mean ± deviation"
    save_result(RESULTS / f"hpt{'_small' if small else ''}-{device}.json", title, result, table)


if __name__ == "__main__":
    typer.run(main)
