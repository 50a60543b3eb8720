"""Sets that grow in a root in a bucket, and from images in one."""

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
from tests.ingest.photos import Ends, Make, add_image, shards, step_for
from tests.s3 import listening


@pytest.fixture
def there(bucket: str) -> Runtime:
    """A machine that works on a root in a bucket."""
    return Runtime(Root.of(f"{bucket}/root"), "cpu", "32", 1)


@pytest.fixture
def make_there(there: Runtime) -> Make:
    """The same as `make`, there."""
    return lambda root, *kind, **options: Workspace(there.root).make(
        step_for(root, *kind, **options), Inputs({}, there)
    )


def test_shards_that_stay_are_copied_there_and_never_read(
    pool: Path, make: Make, make_there: Make, there: Runtime
) -> None:
    make(pool, "folder"), make_there(pool, "folder")
    shutil.rmtree(there.root.cache.folder)  # another machine
    add_image(pool, "15.png", 15)
    here = make(pool, "folder")
    with listening() as requests:
        made = make_there(pool, "folder")
    assert (made.digest, shards(made)) == (here.digest, shards(here))
    assert list(verify(made)) == []
    assert made.counts["read_now"] == 1
    fetched = [line for line in requests.lines if '"GET' in line and ".tar " in line]
    assert fetched == []


def test_another_machine_reads_what_was_grown(pool: Path, make_there: Make, there: Runtime) -> None:
    make_there(pool, "folder")
    add_image(pool, "15.png", 15)
    made = make_there(pool, "folder")
    shutil.rmtree(there.root.cache.folder)
    images = [(shard, row) for shard in IngestedSet(made).images("train").shards for row in range(len(shard))]
    assert sorted(shard.read(row) for shard, row in images) == sorted(path.read_bytes() for path in pool.rglob("*.png"))


def test_an_interrupted_reading_goes_on_from_what_this_machine_has(
    pool: Path, make: Make, make_there: Make, there: Runtime
) -> None:
    impatient = Runtime(there.root, "cpu", "32", 1, stop=Ends(7))
    with pytest.raises(Stopped):
        Workspace(there.root).make(step_for(pool, "folder"), Inputs({}, impatient))
    made = make_there(pool, "folder")
    assert made.counts["read_now"] == 9 - 6
    assert made.digest == make(pool, "folder").digest


def test_a_reading_that_could_not_be_sealed_is_not_done_again(
    pool: Path, make: Make, make_there: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is lost when the log is uploaded and the images are not."""

    def broken(root: Root, path: str, files: dict[str, Any], **_: Any) -> None:
        root.publish(f"{path}/log/sources.parquet", files["log/sources.parquet"])
        raise ConfigError("the storage does not answer")

    with monkeypatch.context() as away:
        away.setattr(Root, "publish_all", broken)
        with pytest.raises(ConfigError, match="does not answer"):
            make_there(pool, "folder")
    made = make_there(pool, "folder")
    assert made.counts["read_now"] == 0
    assert made.digest == make(pool, "folder").digest


def test_an_answer_that_the_storage_is_busy_puts_no_image_in_quarantine(
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


def test_a_set_of_images_in_a_bucket_is_listed_and_not_asked_for_one_by_one(
    pool: Path, bucket: str, make: Make
) -> None:
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
