"""Incremental ingest into a root in a bucket, and of images in a bucket."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError, Stopped
from pipeline.steps.artifact import Inputs, verify
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from tests.ingest.photos import Make, StopAfter, add_image, shards, step_for
from tests.s3 import listening


@pytest.fixture
def bucket_runtime(bucket: str) -> Runtime:
    """Return the runtime of a machine whose root is in a bucket."""
    return Runtime(Root.of(f"{bucket}/root"), "cpu", "32", 1)


@pytest.fixture
def make_in_bucket(bucket_runtime: Runtime) -> Make:
    """Ingest as `make` does, into the bucket."""
    return lambda root, *kind, **options: Workspace(bucket_runtime.root).make(
        step_for(root, *kind, **options), Inputs({}, bucket_runtime)
    )


def test_ingest_copies_kept_shards_in_the_bucket_without_reading(
    pool: Path, make: Make, make_in_bucket: Make, bucket_runtime: Runtime
) -> None:
    make(pool, "folder"), make_in_bucket(pool, "folder")
    shutil.rmtree(bucket_runtime.root.cache.folder)  # another machine
    add_image(pool, "15.png", 15)
    here = make(pool, "folder")
    with listening() as requests:
        made = make_in_bucket(pool, "folder")
    assert (made.digest, shards(made)) == (here.digest, shards(here))
    assert list(verify(made)) == []
    assert made.counts["read_now"] == 1
    fetched = [line for line in requests.lines if '"GET' in line and ".tar " in line]
    assert fetched == []


def test_ingested_set_in_bucket_is_read_by_another_machine(
    pool: Path, make_in_bucket: Make, bucket_runtime: Runtime
) -> None:
    make_in_bucket(pool, "folder")
    add_image(pool, "15.png", 15)
    made = make_in_bucket(pool, "folder")
    shutil.rmtree(bucket_runtime.root.cache.folder)
    images = [(shard, row) for shard in IngestedSet(made).images("train").shards for row in range(len(shard))]
    assert sorted(shard.read(row) for shard, row in images) == sorted(path.read_bytes() for path in pool.rglob("*.png"))


def test_ingest_to_bucket_resumes_from_local_shards(
    pool: Path, make: Make, make_in_bucket: Make, bucket_runtime: Runtime
) -> None:
    impatient = Runtime(bucket_runtime.root, "cpu", "32", 1, stop=StopAfter(7))
    with pytest.raises(Stopped):
        Workspace(bucket_runtime.root).make(step_for(pool, "folder"), Inputs({}, impatient))
    made = make_in_bucket(pool, "folder")
    assert made.counts["read_now"] == 9 - 6
    assert made.digest == make(pool, "folder").digest


def test_ingest_to_bucket_resumes_after_failed_upload(
    pool: Path, make: Make, make_in_bucket: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection fails when the log is uploaded and the images are not."""

    def broken(root: Root, path: str, files: dict[str, Any], **_: Any) -> None:
        root.publish(f"{path}/log/sources.parquet", files["log/sources.parquet"])
        raise ConfigError("the storage does not answer")

    with monkeypatch.context() as away:
        away.setattr(Root, "publish_all", broken)
        with pytest.raises(ConfigError, match="does not answer"):
            make_in_bucket(pool, "folder")
    made = make_in_bucket(pool, "folder")
    assert made.counts["read_now"] == 0
    assert made.digest == make(pool, "folder").digest


def test_ingest_does_not_quarantine_when_storage_is_busy(
    pool: Path, bucket: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StoragePath.of(f"{bucket}/pool")
    for path in pool.rglob("*.png"):
        (place / path.name).write(path.read_bytes())
    cat_file, answers = place.fs.cat_file, [OSError(errno.EBUSY, "Please reduce your request rate.")]

    def busy_once(path: str, **options: Any) -> Any:
        if path.endswith("50.png") and answers:
            raise answers.pop()
        return cat_file(path, **options)

    monkeypatch.setattr(place.fs, "cat_file", busy_once)
    with pytest.raises(ConfigError, match=r"50\.png: the storage can't do it just now \(.*reduce your request rate"):
        make(str(place), "folder", max_bad=0.5)
    made = make(str(place), "folder", max_bad=0.5)
    assert (made.counts["images"], made.counts.get("quarantined", 0)) == (9, 0)


def test_ingest_lists_bucket_instead_of_asking_per_image(pool: Path, bucket: str, make: Make) -> None:
    place = StoragePath.of(f"{bucket}/pool")
    for path in pool.rglob("*.png"):
        (place / path.name).write(path.read_bytes())
    before = make(str(place), "folder")
    add_image(pool, "00.png", 0)
    (place / "00.png").write(next(pool.rglob("00.png")).read_bytes())
    (place / "10.png").write((place / "10.png").read())  # written again, and the same
    with listening() as requests:
        step = step_for(str(place), "folder")
    assert sum(requests.count().values()) <= 6, "to know whether there is anything new"
    assert step.config["files"]["count"] == 10
    with listening() as requests:
        made = make(str(place), "folder")
    assert made.counts["read_now"] == 1
    assert len([line for line in requests.lines if ".png " in line and '"GET' in line]) == 1
    assert shards(made) == shards(before) | {"3": ["00"]}
