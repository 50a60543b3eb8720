"""A pool that grows between runs: only new images are ingested and labelled; a killed ingest resumes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import must
from flows.plan.selection import Selection
from flows.run.run import Outcome
from tests.disk import folder_of
from tests.ingest.photos import picture
from tests.waiting import wait_until

RECIPE = """
name: growing
runtime: {{runner: inline, device: cpu, precision: "32", workers: 1}}
data:
  pool: {{kind: folder, path: "{path}"}}
shard_images: 4
teachers:
  gabor: {{kind: analytic, image_size: 32, wavelengths: [4.0]}}
pool: [pool]
student: {{weighting: equal}}
"""
UP_TO_POOL = Selection("pool")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Return a folder of twelve images, 10.png to 65.png."""
    (tmp_path / "pool").mkdir()
    for number in range(10, 70, 5):
        picture(number, 32, 32).save(tmp_path / "pool" / f"{number}.png")
    return tmp_path / "pool"


@pytest.fixture
def recipe(pool: Path, tmp_path: Path) -> Path:
    path = tmp_path / "growing.yaml"
    path.write_text(RECIPE.format(path=pool), encoding="utf-8")
    return path


@pytest.fixture
def label(recipe: Path, tmp_path: Path) -> Callable[[], Outcome]:
    return lambda: must.run(recipe, tmp_path / "root", steps=Selection("label"))


def labels(root: Path) -> dict[Path, int]:
    """Return the time of writing of each label shard."""
    return {path: path.stat().st_mtime_ns for path in root.glob("labels/*/*.parquet")}


def test_growing_pool_labels_only_new_shards(pool: Path, label: Callable[[], Outcome], tmp_path: Path) -> None:
    first = label()
    assert first.artifacts["label"].counts["labelled_now"] == 12
    written = labels(tmp_path / "root")
    for number in (0, 32, 33, 99, 98):
        picture(number, 32, 32).save(pool / f"{number:02d}.png")
    grown = label()
    assert grown.artifacts["data.pool"].counts["read_now"] == 5
    assert grown.artifacts["label"].counts["labelled_now"] == 5
    assert grown.artifacts["label"].counts["shards"] == 5
    after = labels(tmp_path / "root")
    assert len(after) == 5
    assert written.items() <= after.items(), "a shard was labelled again"
    (pool / "33.png").unlink()
    shrunk = label()
    assert shrunk.artifacts["label"].counts["labelled_now"] == 3, "the other images of its shard"
    assert shrunk.artifacts["pool"].counts["images"] == 16
    assert after.items() <= labels(tmp_path / "root").items()


def test_growing_pool_reads_new_time_stamps_and_labels_nothing(
    pool: Path, label: Callable[[], Outcome], tmp_path: Path
) -> None:
    label()
    picture(99, 32, 32).save(pool / "00.png")
    before = label()
    for path in pool.iterdir():
        os.utime(path)
    after = label()
    assert (before.ran, after.ran) == (3, 1)
    assert after.artifacts["pool"].path == before.artifacts["pool"].path


def test_forced_set_is_packed_afresh(pool: Path, recipe: Path, label: Callable[[], Outcome], tmp_path: Path) -> None:
    label()
    picture(0, 32, 32).save(pool / "00.png")
    grown = label().artifacts["data.pool"]
    afresh = must.run(recipe, tmp_path / "root", steps=Selection("pool", force=("data.pool",))).artifacts["data.pool"]
    assert (afresh.path, afresh.counts["read_now"]) == (grown.path, 13)
    fresh = must.run(recipe, tmp_path / "fresh", steps=UP_TO_POOL).artifacts["data.pool"]
    assert afresh.digest == fresh.digest != grown.digest


def test_ingest_that_is_killed_resumes_from_its_complete_shards(
    pool: Path, recipe: Path, start: Callable[..., BaseProcess], tmp_path: Path, rng: random.Random
) -> None:
    """First a pool that is read for the first time, then one that has grown and lost an image."""
    for begin in (100, 400):
        for number in range(begin, begin + 200):
            picture(number, 32, 32).save(pool / f"{number}.png")
        (pool / f"{begin // 10}.png").unlink()
        undisturbed = must.run(recipe, tmp_path / "undisturbed", steps=UP_TO_POOL).artifacts["data.pool"]
        kept = kill(start(tmp_path / "root"), tmp_path / "root", rng.randint(1, 30))
        made = must.run(recipe, tmp_path / "root", steps=UP_TO_POOL).artifacts["data.pool"]
        assert made.digest == undisturbed.digest
        assert kept <= {path.stat().st_ino for path in folder_of(made).glob("images/train/*.tar")}
        assert made.counts["read_now"] == undisturbed.counts["read_now"] - 4 * len(kept)


def kill(process: BaseProcess, root: Path, moment: int) -> set[int]:
    """Kill a run when it has ingested so many shards. Returns the inodes of the complete ones."""

    def complete_shards() -> list[Path]:
        return sorted(root.glob("artifacts/data.pool/*/work/images/train/shard-*.tar"))

    wait_until(lambda: len(complete_shards()) >= moment, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return {path.stat().st_ino for path in complete_shards()}
