"""What an ingest starts from: which previous artifact, which index, and an interrupted attempt."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError, Stopped
from pipeline.steps.artifact import MANIFEST, Artifact, Inputs, read_json, verify, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.images import NewImage, ShardWriter
from tests.disk import folder_of
from tests.ingest.photos import IngestResult, Make, StopAfter, add, add_image, is_same_file, read_list, shards, step_for


@pytest.fixture
def fresh(tmp_path: Path) -> Make:
    """Return a function that ingests as `make` does, into an empty root."""
    runtime = Runtime(Root.of(tmp_path / "fresh"), "cpu", "32", 1)
    return lambda root, *kind, **options: Workspace(runtime.root).make(
        step_for(root, *kind, **options), Inputs({}, runtime)
    )


@pytest.fixture
def grown(pool: Path, make: Make) -> Artifact:
    """Ingest the pool, and again with one more image in the middle."""
    make(pool, "folder")
    add_image(pool, "15.png", 15)
    return make(pool, "folder")


def test_ingest_with_other_settings_packs_from_scratch(pool: Path, grown: Artifact, make: Make, fresh: Make) -> None:
    assert make(pool, "folder", shard_images=4).digest == fresh(pool, "folder", shard_images=4).digest
    add_image(pool, "95.png", 95)
    made = make(pool, "folder")
    assert shards(made) == shards(grown) | {"4": ["95"]}, "it grows from the newest of its own settings"
    assert made.counts["read_now"] == 1


def test_ingest_with_other_max_bad_keeps_shards(pool: Path, grown: Artifact, make: Make) -> None:
    made = make(pool, "folder", max_bad=0.5)
    assert (made.digest, made.counts["read_now"]) == (grown.digest, 0)


def test_ingest_of_another_version_packs_from_scratch(
    pool: Path, grown: Artifact, runtime: Runtime, fresh: Make
) -> None:
    step = step_for(pool, "folder")
    step = dataclasses.replace(step, kind=dataclasses.replace(step.kind, version=step.kind.version + 1))
    assert Workspace(runtime.root).make(step, Inputs({}, runtime)).digest == fresh(pool, "folder").digest


def test_ingest_skips_incomplete_previous_artifact(pool: Path, grown: Artifact, make: Make) -> None:
    (folder_of(grown) / "images" / "train" / "shard-000001.parquet").unlink()
    add_image(pool, "95.png", 95)
    made = make(pool, "folder")
    assert shards(made)["3"] == ["15", "95"]
    assert made.counts["read_now"] == 2


def test_ingest_remakes_damaged_artifact_from_the_one_before(
    pool: Path, grown: Artifact, make: Make, runtime: Runtime
) -> None:
    step, tar = step_for(pool, "folder"), folder_of(grown) / "images" / "train" / "shard-000003.tar"
    tar.unlink()
    assert Workspace(runtime.root).find(step, grown.manifest["fingerprint"]) is None
    again = make(pool, "folder")
    assert again.path == grown.path
    assert (again.digest, again.counts["read_now"]) == (grown.digest, 1)


def test_source_index_may_be_missing_from_previous_artifact(pool: Path, grown: Artifact, make: Make) -> None:
    (folder_of(grown) / "log" / "sources.parquet").unlink()
    manifest = read_json(folder_of(grown) / MANIFEST)
    del manifest["files"]["log/sources.parquet"]
    write_json(folder_of(grown) / MANIFEST, manifest)
    add_image(pool, "95.png", 95)
    made = make(pool, "folder")
    assert shards(made) == shards(grown) | {"4": ["95"]}
    assert made.counts["read_now"] == 11


def test_source_index_may_be_unreadable(pool: Path, grown: Artifact, make: Make) -> None:
    path = folder_of(grown) / "log" / "sources.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    add_image(pool, "95.png", 95)
    made = make(pool, "folder")
    assert shards(made) == shards(grown) | {"4": ["95"]}
    assert made.counts["read_now"] == 11


def test_shard_packer_refuses_to_repack_damaged_image(pool: Path, grown: Artifact, make: Make) -> None:
    tar = folder_of(grown) / "images" / "train" / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1  # in the first image: its bytes begin at 512
    tar.write_bytes(data)
    (pool / "images" / "50.png").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: image \w+ is damaged in it\. .*--force data\.photos"):
        make(pool, "folder")


def test_ingest_copies_kept_shards_where_links_are_refused(
    pool: Path, make: Make, grown: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    for path in (pool / "images").iterdir():
        os.utime(path)
    made = make(pool, "folder")
    assert made.digest == grown.digest
    tar = "images/train/shard-000000.tar"
    assert not is_same_file(grown, made, tar)
    assert (folder_of(made) / tar).read_bytes() == (folder_of(grown) / tar).read_bytes()


def test_ingest_reads_only_new_containers(pool: Path, make: Make, tmp_path: Path) -> None:
    """An unchanged Parquet file or tar is not read."""
    files = [path.read_bytes() for path in sorted((pool / "images").iterdir())]
    for place, part in enumerate((files[:4], files[4:7], files[7:])):
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": part}), tmp_path / "rows" / f"{2 - place}.parquet")
        writer = ShardWriter(tmp_path / "tars", f"{2 - place}")
        for data in part:
            writer.add(NewImage(data, "png", 1, 1, ""))
        writer.close()
        made = [make(tmp_path / "rows", "parquet", hold_out=0), make(tmp_path / "tars", "webdataset", hold_out=0)]
        assert [one.counts["read_now"] for one in made] == [len(part)] * 2
        assert [one.counts["images"] for one in made] == [(4, 7, 9)[place]] * 2


def test_ingest_of_remote_source_reads_only_new_images(pool: Path, make: Make) -> None:
    memory, place = fsspec.filesystem("memory"), "memory://growing"
    for path in (pool / "images").iterdir():
        memory.pipe_file(f"/growing/{path.name}", path.read_bytes())
    before = make(place, "folder")
    memory.pipe_file("/growing/00.png", add_image(pool, "00.png", 0))
    made = make(place, "folder")
    assert shards(made) == shards(before) | {"3": ["00"]}
    assert made.counts["read_now"] == 1


def test_ingest_reports_progress(pool: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.ingest.PROGRESS_EVERY", 3)
    reports: list[tuple[float, str]] = []
    watched = dataclasses.replace(runtime, progress=lambda step, share, line: reports.append((round(share, 2), line)))
    Workspace(runtime.root).make(step_for(pool, "folder"), Inputs({}, watched))
    assert reports == [(0.33, "3/9 images, 3 read"), (0.67, "6/9 images, 6 read"), (1.0, "9/9 images, 9 read")]


@pytest.mark.parametrize("looks", range(1, 9))
def test_ingest_resumes_from_finished_shards(looks: int, pool: Path, make: Make, fresh: Make, runtime: Runtime) -> None:
    impatient = dataclasses.replace(runtime, stop=StopAfter(looks))
    with pytest.raises(Stopped, match=r"data\.photos"):
        Workspace(runtime.root).make(step_for(pool, "folder"), Inputs({}, impatient))
    kept = {
        path: path.stat().st_ino
        for path in runtime.root.local_path().glob("artifacts/*/*/work/images/train/shard-*.tar")
    }
    assert len(kept) == looks // 3
    made = make(pool, "folder")
    assert made.counts["read_now"] == 9 - 3 * len(kept)
    assert [(folder_of(made) / "images" / "train" / path.name).stat().st_ino for path in kept] == list(kept.values())
    assert made.digest == fresh(pool, "folder").digest
    assert not (folder_of(made) / "work").exists()


def test_ingest_repacks_finished_shard_of_interrupted_attempt(
    tmp_path: Path, make: Make, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt can't read a mask that the first one read."""
    photos, read = tmp_path / "photos", StoragePath.read
    add(photos, "train", range(8))
    impatient = dataclasses.replace(runtime, stop=StopAfter(7))
    with pytest.raises(Stopped):
        Workspace(runtime.root).make(step_for(photos, max_bad=0.5), Inputs({}, impatient))

    def cut_off(place: StoragePath, *args: Any) -> bytes:
        if place.path.endswith("masks/train/01.png"):
            raise OSError
        return read(place, *args)

    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "read", cut_off)
        made = make(photos, max_bad=0.5)
    assert shards(made) == {"1": ["03", "04", "05"], "2": ["06", "07", "00"], "3": ["02"]}
    assert read_list(made, "quarantine") == [("images/train/01.png", "train", "OSError")]
    found = IngestResult(folder_of(made), made.counts)
    assert all(found.labels(shard).keys == shard.keys for shard in found.shards())
    assert not list(verify(made))
