"""Compare self-supervised stages from MuST's student and from scratch: steps, quality, cost.

    python -m benchmarks.hpt                  # some hours on two cores
    python -m benchmarks.hpt --domain street  # beside another domain on another core
    python -m benchmarks.hpt --size large     # for a GPU

The student is `must_table`'s, trained on generated scenes and photographs without any label of the three domains:
garments and street scenes, measured by their classes and by segmentation, and shifted images, unlike photographs: those
of CIFAR-10 made gray and dark and laid over stripes, 2,000 to train on and 2,000 to test on. All rows are MoCo-v2 by
AdamW with a short queue, for few images and steps, not by HPT's schedule for many. Every length is a separate training,
since the schedule depends on it. A domain that is in the results is not measured again.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image

from benchmarks import must_table
from benchmarks.comparison_rows import row_cells, row_record, row_values, run
from benchmarks.datasets import DATA, DataOption
from benchmarks.measure import RESULTS, describe_environment, read_partial_result, save_result
from cli.options import RootOption
from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Comparison, ComparisonSetting, read_comparisons
from pipeline.errors import require_one_of
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.stage import SCRATCH, STUDENT
from pipeline.storage import DEFAULT_ROOT
from pipeline.training.device import find_device

DOMAINS: dict[str, list[str]] = {"clothing": ["linear"], "shifted": ["linear"], "street": ["linear_dense"]}
"""The sets that stages are trained and measured on, with the probe for each."""
METHODS = {"hpt": {"method": "mocov2", "queue": 512, "key_momentum": 0.99}}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"steps": [1, 2], "batch": 8, "seeds": 1},
    "small": {"steps": [40, 160, 480], "batch": 32},
    "large": {"steps": [200, 1000, 5000], "batch": 64},
}
"""Settings of the comparisons, by the size of `must_table`."""
TITLE = (
    "Stages from MuST's student and from scratch, linear layers on frozen features: accuracy, or mIoU of street, in %, "
    "mean ± deviation over seeds"
)
HEAD = ["domain", "row", "steps", "quality, %", "s"]
COUNT = 2000
"""Number of shifted images to train on, and to test on."""


def comparison_overrides(size: str) -> list[str]:
    """Return what gives the recipe of `must_table`, in this size, a comparison for each domain."""
    shared = {"settings": "shared", "methods": METHODS, "starts": [STUDENT, SCRATCH], **SIZES[size]}
    compare = {name: {"data": [name], "probes": probes, **shared} for name, probes in DOMAINS.items()}
    return [*must_table.SIZES[size], f"compare={json.dumps(compare)}"]


def shifted_override(images: Path) -> str:
    """Return what gives the recipe the set of shifted images in this folder."""
    return f"data.shifted={json.dumps({'kind': 'parquet', 'path': str(images)})}"


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


def measure_domain(domain: str, root: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a domain's comparison, and return its lines of the table and all its values, JSON-ready."""
    artifacts = run(must_table.RECIPE, root, overrides, f"{COMPARE}.{domain}")
    [comparison] = read_comparisons(artifacts).values()
    column = comparison.columns[0]
    return {
        "table": [*quality_lines(comparison, column), *speed_lines(comparison, column)],
        "metric": column.metric,
        "test_images": comparison.counts[column],
        "rows": [{**row_record(row), "quality": row_values(row, column)} for row in comparison.rows],
        "student": must_table.backbone_costs(STUDENT, artifacts),
        "advice": comparison.advice(),
    }


def quality_lines(comparison: Comparison, column: MetricColumn) -> list[list[str]]:
    """Return a line per row: domain, row, steps, mean ± deviation, seconds of one training."""
    return [[comparison.name, *row_cells(row, [column])] for row in comparison.rows]


def speed_lines(comparison: Comparison, column: MetricColumn) -> list[list[str]]:
    """Return a line per row: the fewest steps that reach the best result from scratch without labels."""
    [backbone] = {setting.backbone for setting in comparison.settings()}
    setting, goal = ComparisonSetting(backbone, 1.0, None), comparison.best_from_scratch(backbone, 1.0, column)
    assert goal is not None
    lines = []
    for row in dict.fromkeys(row.name for row in comparison.rows):
        cost = comparison.cost_to_reach(row, setting, column, goal)
        reached = "never" if cost is None else f"{cost.steps:,}"
        lines.append([comparison.name, row, f"steps to {100 * goal:.1f}", reached, ""])
    return lines


def main(
    root: RootOption = DEFAULT_ROOT,
    data: DataOption = DATA,
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "small",
    domains: Annotated[list[str] | None, typer.Option("--domain", help="A domain to measure; may be repeated.")] = None,
) -> None:
    """Measure what is not in the results yet, print, and write `hpt-SIZE-DEVICE` to the results."""
    device, images = find_device("auto"), Path(root) / "hpt" / "shifted"
    file = RESULTS / f"hpt-{require_one_of(size, SIZES, '--size')}-{device}.json"
    overrides = comparison_overrides(size)
    write_shifted(data / "cifar10", images)
    for domain in [require_one_of(name, DOMAINS, "--domain") for name in domains or DOMAINS]:
        if domain in read_partial_result(file, must_table.RECIPE, overrides, "domains")["domains"]:
            typer.echo(f"{domain} is in {file.name}")
            continue
        environment = describe_environment(device)
        measured = measure_domain(domain, root, [*overrides, shifted_override(images)])
        result = read_partial_result(file, must_table.RECIPE, overrides, "domains")  # again, as of other processes
        result["domains"][domain] = {**measured, "measured": environment}
        lines = [line for name in DOMAINS for line in result["domains"].get(name, {}).get("table", [])]
        save_result(file, TITLE, {**result, "measured": environment}, [HEAD, *lines])


if __name__ == "__main__":
    typer.run(main)
