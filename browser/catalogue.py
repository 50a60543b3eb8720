"""List the image and label shards in a root, from folder listings and manifests alone.

A label store is one version of one teacher, `labels/<teacher>-<12 digits of its digest>`, or the true labels of a set
for one task. Of a set that was ingested several times the newest artifact counts.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ingest.dataset import IngestedSet
from pipeline.data.bands import RGB
from pipeline.errors import ConfigError
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import EXTERNAL_FILES, MANIFEST, Artifact, parse_manifest
from pipeline.storage.path import StoragePath
from pipeline.storage.root import CACHE_GB, Root, StoredFile, in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.naming import DIGITS, NAME, is_student, maker_of, teacher_of, version_of

EXPECTED_PATHS = "labels/<teacher>-<digest>/*.parquet and artifacts/data.<set>/<fingerprint>/manifest.json"
STEP_PREFIXES = ("data.", "teacher.", "label", "student")
"""Beginnings of the names of folders with artifacts that tell of images and labels: others' manifests are not read."""


@dataclasses.dataclass(frozen=True)
class CataloguedShard:
    """An image shard of a set."""

    dataset: str
    split: str
    shard: ImageShard
    channels: int = RGB


@dataclasses.dataclass(frozen=True)
class CataloguedStore:
    """A label store: its files by the address of the image shard that each has labels of."""

    name: str
    maker: str
    """The teacher, a head of the student (`student_maker`), or the set with the true labels."""
    is_true: bool
    made: float
    """When (Unix time) the teacher or student was trained, or the set was read; 0 if its artifact is gone."""
    files: Mapping[str, StoredFile]

    @property
    def is_learned(self) -> bool:
        """True for a teacher's labels, which a student may learn from."""
        return not self.is_true and not is_student(self.maker)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The shards and sets in a root; stores of one maker are ordered by age, the newest first."""

    images: list[CataloguedShard]
    stores: list[CataloguedStore]
    sets: dict[str, Artifact]
    manifests: Mapping[str, ReadManifest]
    """By the path in the root of each artifact."""


class ReadManifest(NamedTuple):
    """The hash of a manifest's text, and the artifact that it describes."""

    digest: bytes
    artifact: Artifact


def root_above(path: StoragePath) -> tuple[Root, str]:
    """Return the root that contains a path, and the path within it. Raises ConfigError if there is none."""
    if not path.exists():
        raise ConfigError(f"There is no folder {path}.")
    below: list[str] = []
    folder = path
    while True:
        if _is_root(folder):
            return Root.of(str(folder), CACHE_GB), "/".join(reversed(below))
        if folder.parent.path in (folder.path, ""):
            raise ConfigError(f"There are no stores in {path}, nor is it in a root: looked for {EXPECTED_PATHS}.")
        below.append(folder.name)
        folder = folder.parent


def _is_root(folder: StoragePath) -> bool:
    """Return True for a root. An artifact of a set has a folder `labels` as well, but no stores in it."""
    below = {child.name: child for child in folder.folders()}
    stores = below["labels"].folders() if "labels" in below else []
    return "artifacts" in below or any(NAME.fullmatch(store.name) for store in stores)


def read_catalogue(root: Root, earlier: Catalogue | None = None) -> Catalogue:
    """List what a root holds now. Raises ConfigError if it has nothing to show.

    Manifests that are as they were in an `earlier` catalogue are not parsed again: those of labels can be large.
    """
    manifests = _read_manifests(root, earlier.manifests if earlier else {})
    artifacts = [read.artifact for read in manifests.values()]
    oldest_first = sorted(artifacts, key=lambda artifact: artifact.manifest["began"])
    sets = {artifact.manifest["section"][-1]: artifact for artifact in oldest_first if artifact.kind == "data"}
    ingested = {name: IngestedSet(sets[name]) for name in sorted(sets)}
    shards = {name: list(_image_shards(name, ingested[name])) for name in ingested}
    true_labels = (store for name in ingested for store in _true_label_stores(name, ingested[name], shards[name]))
    images, stores = list(itertools.chain(*shards.values())), [*_pseudo_label_stores(root, artifacts), *true_labels]
    if not images and not stores:
        raise ConfigError(f"There are no stores in {root}: looked for {EXPECTED_PATHS}.")
    return Catalogue(images, stores, sets, manifests)


def _read_manifests(root: Root, known: Mapping[str, ReadManifest]) -> dict[str, ReadManifest]:
    """Return the artifacts of sets, teachers, the student and labels, by their paths in the root."""
    steps = [step for step in (root / "artifacts").folders() if step.name.startswith(STEP_PREFIXES)]
    folders = [folder for below in in_parallel(StoragePath.folders, steps) for folder in below]
    texts = in_parallel(lambda folder: folder.child(MANIFEST).read_if_exists(), folders)
    found = {}
    for folder, text in zip(folders, texts, strict=True):
        if text is not None:
            path, digest = folder.relative_to(root.path), hashlib.sha256(text).digest()
            if path in known and known[path].digest == digest:
                found[path] = known[path]
            else:
                artifact = Artifact(root, path, parse_manifest(text, str(folder.child(MANIFEST))))
                found[path] = ReadManifest(digest, artifact)
    return found


def _image_shards(name: str, ingested: IngestedSet) -> Iterator[CataloguedShard]:
    shards = ((split, shard) for split in SPLITS for shard in ingested.images(split).shards)
    return (CataloguedShard(name, split, shard, ingested.channels) for split, shard in shards)


def _pseudo_label_stores(root: Root, artifacts: Iterable[Artifact]) -> list[CataloguedStore]:
    """Return the stores of the teachers' labels, and of the student's."""
    began = {artifact.digest[:DIGITS]: artifact.manifest["began"] for artifact in artifacts}
    known = {path: facts for artifact in artifacts for path, facts in artifact.manifest.get(EXTERNAL_FILES, {}).items()}
    folders: dict[str, dict[str, StoredFile]] = collections.defaultdict(dict)
    for name, size in (root / "labels").files().items():
        path, (folder, file) = f"labels/{name}", posixpath.split(name)
        if folder and not file.startswith("."):
            # the hash of a file is known once the run that writes it is over; until then it is read unchecked
            facts = {"sha256": known.get(path, {}).get("sha256", ""), "size": size}
            folders[folder][posixpath.splitext(file)[0]] = root.file(path, facts)
    stores = [
        CataloguedStore(name, maker_of(name), False, began.get(version_of(name), 0.0), files)
        for name, files in folders.items()
        if NAME.fullmatch(name)
    ]
    return sorted(stores, key=_order)


def _order(store: CataloguedStore) -> tuple[str, bool, float, str]:
    """Return the sort key of a store: the student's labels come right behind its teacher's."""
    return teacher_of(store.maker), is_student(store.maker), -store.made, store.name


def _true_label_stores(
    name: str, ingested: IngestedSet, shards: Iterable[CataloguedShard]
) -> Iterator[CataloguedStore]:
    """Yield the true labels of a set, whose image shards are `shards`."""
    files: dict[str, dict[str, StoredFile]] = {task: {} for task in ingested.spaces}
    for images in shards:
        for task in ingested.spaces:
            files[task][images.shard.address] = ingested.true_labels(task, images.split, images.shard.name)
    for task, by_shard in files.items():
        yield CataloguedStore(f"true-{name}-{task}", name, True, ingested.artifact.manifest["began"], by_shard)
