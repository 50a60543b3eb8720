"""Data for benchmarks: subsets of Parquet sets, JPEG files of noise, random boxes; the same ones in every run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from PIL import Image

from pipeline.stores.labels import Value

DATA = Path("../shared/data")
DataOption = Annotated[Path, typer.Option(help="Folder with the data sets.", envvar="MUST_DATA")]


def write_subset(source: Path, folder: Path, counts: Mapping[str, int]) -> None:
    """Write `counts[split]` images of each split to `folder`/<split>.parquet.

    Files that exist are left alone, since the pipeline would ingest a new file again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        file = folder / f"{split}.parquet"
        if file.exists() and pq.read_metadata(file).num_rows == count:
            continue
        table = pq.read_table(source / f"{split}.parquet")
        rows = np.sort(np.random.default_rng(0).permutation(len(table))[:count])
        part = file.with_suffix(".part")
        pq.write_table(table.take(rows), part)
        part.replace(file)


def noise_jpeg(number: int, side: int) -> bytes:
    """Return a JPEG file of noise, `side` pixels square, that differs for every number."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def random_boxes(rng: np.random.Generator, count: int, side: int, classes: int, scores: Callable[[int], Any]) -> Value:
    """Return a detection label of `count` random boxes, with `scores(count)`, on an image of `side` pixels square."""
    corners = np.sort(rng.uniform(0, side, (count, 2, 2)), axis=1).reshape(count, 4)
    return {
        "boxes": corners.astype(np.float32),
        "scores": scores(count).astype(np.float32),
        "classes": rng.integers(0, classes, count).astype(np.int32),
        "size": np.array([side, side], np.int32),
    }
