"""Parts of a set in Parquet files, the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def draw(source: Path, folder: Path, counts: Mapping[str, int]) -> None:
    """As many images of each split as `counts` says, at `folder`/<split>.parquet. Files that are there are left alone:
    written again, they would be ingested again.
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
