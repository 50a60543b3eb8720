"""Which image and label shards there are in a root: one look at it, listings and manifests alone.

A label store is one version of one teacher, `labels/<teacher>-<12 digits of its digest>`, or the true labels of a set
for one task. Of a set that was read several times the newest artifact counts.
"""

from __future__ import annotations

import collections
import dataclasses
import posixpath
from collections.abc import Iterable, Iterator, Mapping

from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import EXTERNAL_FILES, MANIFEST, Artifact, parse_manifest
from pipeline.storage.path import StoragePath
from pipeline.storage.root import CACHE_GB, Root, StoredFile, in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.naming import DIGITS, NAME, is_student, maker_of, teacher_of, version_of

SOUGHT = "labels/<teacher>-<digest>/*.parquet and artifacts/data.<set>/<fingerprint>/manifest.json"
KINDS = ("data.", "teacher.", "label", "student")
"""The beginnings of the names of steps whose artifacts tell of images and labels."""
TRUE = "true"
"""What the names of stores with true labels begin with."""


@dataclasses.dataclass(frozen=True)
class ImagesFound:
    """An image shard of a set."""

    dataset: str
    split: str
    shard: ImageShard


@dataclasses.dataclass(frozen=True)
class StoreFound:
    """A label store: its files by the address of the image shard that each is about."""

    name: str
    maker: str
    """The teacher, a head of the student (`student_maker`), or the set that has the true labels."""
    is_true: bool
    made: float
    """When (Unix time) the teacher or student was trained, or the set was read; 0 if its artifact is gone."""
    files: Mapping[str, StoredFile]

    @property
    def is_learned(self) -> bool:
        """Whether they are a teacher's labels, which a student may learn from."""
        return not self.is_true and not is_student(self.maker)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What one look has found; stores of one maker are in order of their age, the newest first."""

    images: list[ImagesFound]
    stores: list[StoreFound]
    sets: dict[str, Artifact]


def root_above(place: StoragePath) -> tuple[Root, str]:
    """The root that a path leads into, and the path from there. ConfigError says what was looked for."""
    if not place.exists():
        raise ConfigError(f"There is no folder {place}.")
    below: list[str] = []
    folder = place
    while True:
        if _is_root(folder):
            return Root.of(str(folder), CACHE_GB), "/".join(reversed(below))
        if folder.parent.path in (folder.path, ""):
            raise ConfigError(f"There are no stores in {place}, nor is it in a root: looked for {SOUGHT}.")
        below.append(folder.name)
        folder = folder.parent


def _is_root(folder: StoragePath) -> bool:
    """An artifact of a set has a folder `labels` as well, with other folders in it."""
    below = {each.name: each for each in folder.folders()}
    stores = below["labels"].folders() if "labels" in below else []
    return "artifacts" in below or any(NAME.fullmatch(each.name) for each in stores)


def look(root: Root) -> Catalogue:
    """Everything there is to show now. ConfigError if there is nothing."""
    made = _sealed(root)
    sets = {name.removeprefix("data."): newest for name, newest in _newest(made, "data.").items()}
    images = [found for name in sorted(sets) for found in _images(name, IngestedSet(sets[name]))]
    stores = [*_pseudo(root, made), *_true(sets)]
    if not images and not stores:
        raise ConfigError(f"There are no stores in {root}: looked for {SOUGHT}.")
    return Catalogue(images, stores, sets)


def _sealed(root: Root) -> list[Artifact]:
    """The artifacts of sets, teachers, the student and labels."""
    steps = [step for step in (root / "artifacts").folders() if step.name.startswith(KINDS)]
    folders = [folder for found in in_parallel(StoragePath.folders, steps) for folder in found]
    texts = in_parallel(lambda folder: folder.child(MANIFEST).read_if_exists(), folders)
    return [
        Artifact(root, folder.relative_to(root.path), parse_manifest(text, str(folder.child(MANIFEST))))
        for folder, text in zip(folders, texts, strict=True)
        if text is not None
    ]


def _newest(made: Iterable[Artifact], kind: str) -> dict[str, Artifact]:
    newest: dict[str, Artifact] = {}
    for artifact in sorted(made, key=lambda artifact: float(artifact.manifest["began"])):
        if artifact.manifest["step"].startswith(kind):
            newest[artifact.manifest["step"]] = artifact
    return newest


def _images(name: str, read: IngestedSet) -> Iterator[ImagesFound]:
    return (ImagesFound(name, split, shard) for split in SPLITS for shard in read.images(split).shards)


def _pseudo(root: Root, made: Iterable[Artifact]) -> list[StoreFound]:
    """The teachers' labels, and the student's."""
    began = {artifact.digest[:DIGITS]: artifact.manifest["began"] for artifact in made}
    known = {path: facts for artifact in made for path, facts in artifact.manifest.get(EXTERNAL_FILES, {}).items()}
    folders: dict[str, dict[str, StoredFile]] = collections.defaultdict(dict)
    for name, size in (root / "labels").files().items():
        path, (folder, file) = f"labels/{name}", posixpath.split(name)
        if folder and not file.startswith("."):
            # the hash of one that a run has just written is not known before the run is over: it is read as it is
            facts = {"sha256": known.get(path, {}).get("sha256", ""), "size": size}
            folders[folder][posixpath.splitext(file)[0]] = root.file(path, facts)
    found = [
        StoreFound(name, maker_of(name), False, began.get(version_of(name), 0.0), files)
        for name, files in folders.items()
        if NAME.fullmatch(name)
    ]
    return sorted(found, key=_order)


def _order(store: StoreFound) -> tuple[str, bool, float, str]:
    """What the student says comes right behind what its teacher does."""
    return teacher_of(store.maker), is_student(store.maker), -store.made, store.name


def _true(sets: Mapping[str, Artifact]) -> Iterator[StoreFound]:
    """The sets' own labels."""
    for name, artifact in sorted(sets.items()):
        read = IngestedSet(artifact)
        files: dict[str, dict[str, StoredFile]] = {task: {} for task in read.spaces}
        for images in _images(name, read):
            for task in read.spaces:
                files[task][images.shard.address] = read.true_labels(task, images.split, images.shard.name)
        for task, found in files.items():
            yield StoreFound(f"{TRUE}-{name}-{task}", name, True, artifact.manifest["began"], found)
