"""Edit a set at random and ingest it again: it holds what a fresh ingest holds, and keeps its shards."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Stopped
from pipeline.steps.artifact import Artifact, Inputs, fingerprint, verify
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.disk import folder_of
from tests.ingest.photos import HEIGHT, WIDTH, IngestResult, StopAfter, add_image, add_mask, mask, step_for

SPLITS = ("train", "val")
NAMES = [f"{split}/{letter}.png" for split in SPLITS for letter in "abcd"]
names = st.sampled_from(NAMES)
edits = st.one_of(
    st.tuples(st.just("write"), names, st.integers(0, 12)),
    st.tuples(st.just("spoil"), names, st.integers(0, 1)),
    st.tuples(st.just("mask"), names, st.integers(0, 2)),
    st.tuples(st.just("unmask"), names, st.just(0)),
    st.tuples(st.just("spoil_mask"), names, st.just(0)),
    st.tuples(st.just("delete"), names, st.just(0)),
    st.tuples(st.just("touch"), names, st.just(0)),
    st.tuples(st.just("swap"), names, names),
)
"""Swapping with a name that is not there renames; between splits, it moves."""


class Album:
    """A folder of pictures and masks, all different at first. Every edit sets a new time stamp."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._clock = itertools.count(1_000_000_000)
        for split in SPLITS:
            (root / "images" / split).mkdir(parents=True)
            (root / "masks" / split).mkdir(parents=True)
        for number, name in enumerate([*NAMES, "train/z.png"]):  # the last is never edited: no set is empty
            self.write(name, number)
            self.mask(name, number)

    def edit(self, kind: str, name: str, value: Any) -> None:
        getattr(self, kind)(name, value)

    def _stamp(self, path: Path) -> None:
        os.utime(path, ns=(next(self._clock),) * 2)

    def image(self, name: str) -> Path:
        return self.root / "images" / name

    def write(self, name: str, number: int) -> None:
        add_image(self.root, name, number)
        self._stamp(self.image(name))

    def spoil(self, name: str, number: int) -> None:
        self.image(name).write_text(f"no picture {number}")
        self._stamp(self.image(name))

    def mask(self, name: str, number: int) -> None:
        add_mask(self.root, name, mask(number))
        self._stamp(self.root / "masks" / name)

    def unmask(self, name: str, _: int) -> None:
        (self.root / "masks" / name).unlink(missing_ok=True)

    def spoil_mask(self, name: str, _: int) -> None:
        add_mask(self.root, name, np.zeros((HEIGHT, WIDTH + 1), np.uint8))
        self._stamp(self.root / "masks" / name)

    def delete(self, name: str, _: int) -> None:
        self.image(name).unlink(missing_ok=True)

    def touch(self, name: str, _: int) -> None:
        if self.image(name).exists():
            self._stamp(self.image(name))

    def swap(self, name: str, other: str) -> None:
        one, two, aside = self.image(name), self.image(other), self.root / "aside"
        for source, target in ((one, aside), (two, one), (aside, two)):
            if source.exists():
                source.rename(target)


def make(album: Album, root: Path, stop: threading.Event | None = None) -> Artifact:
    workspace, step = Workspace(Root.of(root)), step_for(album.root, shard_images=3, max_bad=1)
    runtime = Runtime(Root.of(root), "cpu", "32", 2, stop=stop or threading.Event())
    return workspace.find(step, fingerprint(step, {})) or workspace.make(step, Inputs({}, runtime))


def contents(made: Artifact) -> dict[str, Any]:
    """Return what a set holds, without its order: images with their true labels, lists and counts."""
    found, images = IngestResult(folder_of(made), made.counts), {}
    for split in SPLITS:
        for shard in found.shards(split):
            labels = found.labels(shard, split)
            for row in range(len(shard)):
                image = dataclasses.replace(shard.row(row), offset=0)
                assert (split, image.key) not in images, "an image is there twice"
                images[split, image.key] = (image, labels.row(row))
    lists = {name: found.read_list(name) for name in ("quarantine", "duplicates", "notes")}
    counts = {name: count for name, count in made.counts.items() if name != "read_now"}
    return {"images": images, "counts": counts, **lists}


def check_sound(made: Artifact) -> None:
    """Assert that indexes agree with tars, label shards with image shards, and the manifest with all."""
    assert not list(verify(made))
    found = IngestResult(folder_of(made), made.counts)
    for split in SPLITS:
        for shard in found.shards(split):
            assert 0 < len(shard) <= 3
            for row in range(len(shard)):
                assert hashlib.sha256(shard.read(row)).hexdigest() == shard.row(row).sha256
            labels = found.labels(shard, split)
            assert labels.keys == shard.keys
            assert (
                labels.metadata["image_shard"] == shard.sha256 == made.file(f"images/{split}/{shard.name}.tar").sha256
            )


def check_kept(before: Artifact, made: Artifact, fresh: Artifact) -> None:
    """Assert that a shard whose images are all still there is the same file; so is its index if no name changed."""
    present = {where: image.source for where, (image, _) in contents(fresh)["images"].items()}
    for split in SPLITS:
        for shard in IngestResult(folder_of(before), before.counts).shards(split):
            rows = [shard.row(row) for row in range(len(shard))]
            tar, index = (f"images/{split}/{shard.name}{suffix}" for suffix in (".tar", ".parquet"))
            if all((split, row.key) in present for row in rows):
                assert (folder_of(before) / tar).samefile(folder_of(made) / tar)
                if all(present[split, row.key] == row.source for row in rows):
                    assert (folder_of(before) / index).samefile(folder_of(made) / index)


rounds_of_edits = st.lists(st.lists(edits, min_size=2, max_size=8), min_size=1, max_size=3)


@settings(max_examples=8)
@given(rounds_of_edits, st.integers(0, 30))
def test_ingest_after_edits_equals_a_fresh_ingest(rounds: list[list[Any]], patience: int) -> None:
    """An interruption at any time changes no byte of it."""
    grow(rounds, patience)


@pytest.mark.slow
@settings(max_examples=300)
@given(rounds_of_edits, st.integers(0, 30))
def test_ingest_after_many_edits_equals_a_fresh_ingest(rounds: list[list[Any]], patience: int) -> None:
    grow(rounds, patience)


def grow(rounds: list[list[Any]], patience: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, disturbed, album = Path(name) / "root", Path(name) / "disturbed", Album(Path(name) / "album")
        made = [make(album, root)]
        for number, some in enumerate(rounds):
            shutil.copytree(root, disturbed, dirs_exist_ok=True)
            for edit in some:
                album.edit(*edit)
            made.append(make(album, root))
            fresh = make(album, Path(name) / f"fresh-{number}")
            assert contents(made[-1]) == contents(fresh)
            check_sound(made[-1])
            if made[-1].path not in (earlier.path for earlier in made[:-1]):  # swapped twice, it is the one it was
                check_kept(made[-2], made[-1], fresh)
        with contextlib.suppress(Stopped):
            make(album, disturbed, StopAfter(patience))
        assert make(album, disturbed).digest == made[-1].digest
