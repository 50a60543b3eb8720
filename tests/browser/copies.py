"""The browser over a copy of the tiny world, in which labels may be rejected and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import tasks
from browser.answers import Answers
from browser.loading import Loading
from pipeline.storage.root import Root, local_file
from pipeline.stores.calibration import Calibration, Isotonic, Reliability, ReliabilityCurve
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import LabelShard
from pipeline.stores.naming import store_name
from tests.conftest import World

RAW = ReliabilityCurve.of(np.array([0.3, 0.9]), np.array([0.1, 0.4]), np.array([500.0, 90.0]))
GOOD = ReliabilityCurve.of(np.array([0.12, 0.38]), np.array([0.1, 0.4]), np.array([500.0, 90.0]))
CALIBRATION = Calibration(Isotonic((0.0, 0.2, 1.0), (0.0, 0.5, 0.9)), Reliability("truth", "val", 30, 590, RAW, GOOD))


def add_calibrated(root: Path, maker: str) -> str:
    """Write a maker's labels again as those of another version of it, which is calibrated; return the store's name."""
    [store] = root.glob(f"labels/{maker}-*")
    name = store_name(maker, "c" * 64)
    for file in store.glob("*.parquet"):
        raw = tasks.label_of_file(pq.read_schema(file), file)
        shard, label = LabelShard(local_file(file), raw), tasks.label(raw.space, CALIBRATION)
        metadata = store_metadata(label, "c" * 64, shard.metadata["image_shard"])
        writer = LabelWriter(root / "labels" / name / file.name, label, metadata)
        for number, key in enumerate(shard.keys):
            value = shard.value(number)
            writer.add(key, None if value is None else label.encode(value), "none" if value is None else "ok")
        writer.close()
    return name


def copied(world: World, root: Path) -> Answers:
    """Return the answers over a copy of the world's root at `root`, fully loaded."""
    shutil.copytree(Path(world.workspace.root.path), root, copy_function=shutil.copy)
    loading = Loading(Root.of(root))
    loading.refresh()
    return Answers(loading)
