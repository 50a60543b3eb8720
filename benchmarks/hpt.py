"""Self-supervised stages from a base, its normalisation layers alone, and from scratch: steps, accuracy and cost.

    python -m benchmarks.hpt --small          # about an hour on two cores: the shifted images alone
    python -m benchmarks.hpt                  # for a GPU: both domains, up to 20,000 steps

Two domains. Clothing, with the photos student as its base; and images that look like no photograph, CIFAR-10's turned
grey and dark and laid over stripes, with a base that was trained without labels on CIFAR-10's 50,000. Of the test
images, which the base has not seen, 2,000 are shifted to learn from and 2,000 to report on. Every length is a training
of its own, as the schedule depends on it. What is made is kept in the root: a second run goes on from there.
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

from benchmarks.compared import line_of, record, run, seconds_of, values_of
from benchmarks.measure import circumstances, save_result
from evaluation.comparison.comparison import Comparison, ComparisonSetting, Row, read_comparisons
from pipeline.recipe.comparison import COMPARE
from pipeline.training.device import find_device

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent / "hpt.yaml"
COUNT = 2000
"""Shifted images to learn from, and to report on."""
SMALL = [
    "stages.base.steps=6000",
    *("stages.base.backbone=test_resnet", "compare.shifted.backbones=[test_resnet]"),
    *("stages.base.image_size=32", "compare.shifted.image_size=32"),
    *(f"compare.{name}.steps=[50,200,800]" for name in ("clothing", "shifted")),
]


def shifted(data: bytes, number: int) -> bytes:
    """The image grey, at half its contrast and dark, over stripes of a direction and a width of its own, as PNG."""
    rng = np.random.default_rng(number)
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)
    rows, columns = np.mgrid[: grey.shape[0], : grey.shape[1]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 8)
    stripes = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period)
    seen = 0.5 * grey + 12 * stripes + rng.normal(scale=4, size=grey.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shifted(source: Path, folder: Path) -> None:
    """The shifted images, the same every time, at `folder`/<split>.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source / "test.parquet")
    order = np.random.default_rng(0).permutation(len(table))
    for split, start in (("train", 0), ("test", COUNT)):
        chosen = np.sort(order[start : start + COUNT])
        part = table.take(chosen)
        images = part.column("image").to_pylist()
        made = [
            {**image, "bytes": shifted(image["bytes"], int(row))} for image, row in zip(images, chosen, strict=True)
        ]
        column = pa.array(made, type=part.schema.field("image").type)
        pq.write_table(
            part.set_column(part.schema.get_field_index("image"), "image", column), folder / f"{split}.parquet"
        )


def rows_of(name: str, found: Comparison) -> list[list[str]]:
    """A line per row: domain, row, steps, mean and deviation, seconds of one training."""
    return [[name, *line_of(row, found.columns[:1])] for row in _comparable(found)]


def _comparable(found: Comparison) -> list[Row]:
    """The rows on the backbone of the stages: where that is not the student's, what the student is is no matter."""
    backbones = {setting.backbone for setting in found.settings()}
    return [row for row in found.rows if row.setting.backbone in backbones]


def reaching(name: str, found: Comparison) -> list[list[str]]:
    """A line per row: the fewest steps in which it comes to the best from scratch without labels."""
    [backbone] = {setting.backbone for setting in found.settings()}
    column, setting = found.columns[0], ComparisonSetting(backbone, 1.0, None)
    wanted = found.best_from_scratch(backbone, 1.0, column)
    assert wanted is not None
    lines = []
    for row in dict.fromkeys(row.name for row in _comparable(found)):
        took = found.cost_to_reach(row, setting, column, wanted)
        lines.append([name, row, f"steps to {100 * wanted:.1f}", "never" if took is None else f"{took.steps:,}", ""])
    return lines


def main(
    root: Annotated[str, typer.Option(help="Where artifacts are kept.")] = "must-root",
    data: Annotated[Path, typer.Option(help="The folder with the sets.", envvar="MUST_DATA")] = Path("../shared/data"),
    small: Annotated[bool, typer.Option("--small", help="What two cores do in about an hour.")] = False,
    override: Annotated[list[str] | None, typer.Option("-o", help="As for must.")] = None,
) -> None:
    """Measure, print, and leave `hpt` among the results, or `hpt_small`."""
    device = find_device("auto")
    measured = circumstances(device)
    images = Path(root) / "hpt" / "shifted"
    write_shifted(data / "cifar10", images)
    told = [f"data.shifted.path={images}", *(SMALL if small else []), *(override or [])]
    last = f"{COMPARE}.shifted" if small else COMPARE
    artifacts = run(RECIPE, root, told, last)
    found = read_comparisons(artifacts)
    table = [["domain", "row", "steps", "accuracy, %", "s"]]
    for name, comparison in found.items():
        table += [*rows_of(name, comparison), *reaching(name, comparison)]
    result = {
        "measured": measured,
        "overrides": told,
        "advice": {name: comparison.advice() for name, comparison in found.items()},
        "test_images": {name: comparison.n for name, comparison in found.items()},
        "seconds": seconds_of(artifacts),
        "rows": [
            {"domain": name, **record(row), "accuracy": values_of(row, comparison.columns[0])}
            for name, comparison in found.items()
            for row in comparison.rows
        ],
    }
    title = "Stages from a base and from scratch, linear probe on frozen features, accuracy in %, mean ± deviation"
    save_result(RESULTS / f"hpt{'_small' if small else ''}-{device}.json", title, result, table)


if __name__ == "__main__":
    typer.run(main)
