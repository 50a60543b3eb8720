"""Sets of images with labels in files of the same stem: masks, depth maps, normal maps, or several of them.

    images/x.jpg  masks/x.png       images/train/x.jpg  masks/train/x.png       train/images/x.jpg  train/masks/x.png

With a suffix of stems, image and label may also lie in one folder: `x.jpg` and `x_mask.png`. The split of an image
comes from a list that names it, from the folders, or from a hash.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from pydantic import Field

from pipeline.errors import ConfigError, DataError, error_context
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._files import IMAGE_SUFFIXES, FileSource, image_suffixes, read_image, stamp_files
from pipeline.sources._lists import assign_splits, find_lists
from pipeline.sources._splits import SPLIT_ALIASES, Split, has_split_folders, parse_split, split_by_hash
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.stores.labels import LabelSpace

SPLIT = "{split}"
"""Stands for `train`, `val` and the like in the name of a folder."""
UNLISTED = "in no list"
"""The key under which images that no list names are counted."""


class RasterConfig(SourceConfig):
    """The keys that all sets of images and label files have."""

    path: str
    """Folder or URL."""
    image_suffix: str | None = None
    """End of the images' stems that is not part of their labels': `_rgb` of `x_rgb.jpg`. Others are no images then."""
    lists: dict[Split, str] = Field(default_factory=dict)
    """Text file by split, relative to `path`, with a stem or path of an image in each line; images that none lists are
    left out. By default `train.txt`, `val.txt` and `test.txt` in `path` or `ImageSets/Segmentation`, if there are
    any."""
    hold_out: Share | tuple[str, ...] = 0.2
    """Without lists and split folders: the share of images that becomes `test`, by the hash of the file's name; or the
    scenes, which are beginnings of names. Frames of one scene are alike: only held-out scenes measure how well a new
    room is predicted."""


class RasterReader(ABC):
    """Reads label files of one kind.

    Example:
        truth = reader.read(root / "masks/x.png", "x.jpg", (640, 480))
    """

    noun: ClassVar[str]
    """What messages call such a file: `mask`."""
    suffixes: ClassVar[tuple[str, ...]] = IMAGE_SUFFIXES
    """The suffixes of the files."""

    @abstractmethod
    def spaces(self) -> dict[str, LabelSpace]:
        """Return the label spaces by task."""

    @abstractmethod
    def read(self, file: StoragePath, name: str, size: tuple[int, int]) -> TrueLabels:
        """Return the labels in a file. Raises DataError if it can't be used.

        Args:
            name: path of the image in its folder, without that of a split.
            size: (width, height) of the upright image.
        """


class RasterFolder(NamedTuple):
    """A folder of label files, as a recipe names it."""

    option: str
    """The recipe's key."""
    path: str
    """Relative to the set's path, perhaps with `{split}`."""
    suffix: str | None
    """End of the labels' stems that is not part of the images'."""
    reader: RasterReader


class _Part(NamedTuple):
    """Folders that belong together, that of the images first; None for one that a split lacks."""

    split: Split | None
    folders: list[StoragePath | None]

    @property
    def images(self) -> StoragePath:
        assert self.folders[0]
        return self.folders[0]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """An image with the label file of each folder, None where it has none."""

    image: StoragePath
    part: _Part
    stem: str
    labels: list[StoragePath | None]


class RasterSource(FileSource):
    """Base class of sets of images and label files.

    A subclass calls `super().__init__(config, (option, folder of the images), labels, files)`.
    Raises ConfigError if a path does not exist.
    """

    def __init__(
        self,
        config: RasterConfig,
        images: tuple[str, str],
        labels: Sequence[RasterFolder],
        files: Sequence[StoragePath] = (),
    ) -> None:
        self.config, self.labels = config, labels
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        self.parts = _find_parts(root, [images, *((each.option, each.path) for each in labels)])
        self.lists = find_lists(root, config.lists)
        folders = [folder for part in self.parts for folder in part.folders if folder]
        super().__init__(root, folders, [*files, *self.lists.values()])
        self._suffixes = [config.image_suffix or "", *(each.suffix or "" for each in labels)]
        self._label_endings = [each.reader.suffixes for each in labels]
        for part in self.parts:
            self._check_apart(part)

    def spaces(self) -> dict[str, LabelSpace]:
        return {task: space for each in self.labels for task, space in each.reader.spaces().items()}

    def read_records(self) -> Iterator[SourceRecord]:
        frames = self._pair_files()
        self._check_hold_out(frames)
        listed = self._listed(frames)
        for number, frame in enumerate(frames):
            name = frame.image.relative_to(self.root)
            if listed is not None and number not in listed:
                self.skipped[UNLISTED] += 1
                continue
            split = listed[number] if listed is not None else self._frame_split(frame)
            if split is None:
                self.problems.append((name, "lies in no split folder"))
                continue
            read, truth = functools.partial(read_image, frame.image), functools.partial(self._truth, frame)
            yield SourceRecord(name, split, read, truth, frame.image.stamp)

    def count(self) -> int:
        return sum(1 for part in self.parts for _ in self._files_of(part, 0))

    def file_stamps(self) -> list[tuple[str, int, int]]:
        roles = range(len(self._suffixes))
        found = (file for part in self.parts for role in roles for file in self._files_of(part, role))
        return stamp_files(self.root, [*self.files, *found])

    def _truth(self, frame: _Frame, size: tuple[int, int]) -> TrueLabels:
        truth, name = TrueLabels(), self._scene_name(frame)
        for label, file in zip(self.labels, frame.labels, strict=True):
            if file is None:
                truth.notes.append(f"no {label.reader.noun}")
                continue
            with error_context(f"{label.reader.noun} {file.relative_to(self.root)}"):
                found = label.reader.read(file, name, size)
            truth.values |= found.values
            truth.notes += found.notes
        return truth

    def _check_apart(self, part: _Part) -> None:
        """Raise ConfigError if files of one folder are in another as well, and no suffix tells them apart."""
        for role, folder in enumerate(part.folders):
            for other_role, other in enumerate(part.folders[:role]):
                if folder and other and self._suffixes[role] == self._suffixes[other_role] and _overlap(folder, other):
                    raise ConfigError(
                        f"{other} and {folder} lie in one another; give images and labels a folder each, or state how "
                        "the labels' stems end (as `mask_suffix: _mask`)"
                    )

    def _files_of(self, part: _Part, role: int) -> Iterator[StoragePath]:
        """Yield the images (role 0) or the files of the label folder `role - 1`."""
        folder = part.folders[role]
        return (file for file in walk(folder) if self._role(part, file) == role) if folder else iter(())

    def _role(self, part: _Part, file: StoragePath) -> int | None:
        """Return which folder of the part a file is of, None for another file; the longest suffix that fits decides."""
        stem = os.path.splitext(file.path)[0]
        fitting = [
            (len(suffix), role)
            for role, (folder, suffix, endings) in enumerate(
                zip(part.folders, self._suffixes, [image_suffixes(self.channels), *self._label_endings], strict=True)
            )
            if folder and file.path.startswith(f"{folder.path.rstrip('/')}/")
            if file.suffix in endings and stem.endswith(suffix)
        ]
        return max(fitting)[1] if fitting else None

    def _stem(self, part: _Part, role: int, file: StoragePath) -> str:
        """Return what image and labels have in common: the path in the folder, without suffixes."""
        folder = part.folders[role]
        assert folder
        return os.path.splitext(file.relative_to(folder))[0].removesuffix(self._suffixes[role])

    def _pair_files(self) -> list[_Frame]:
        """Return all images with their label files; labels without an image are listed in `problems`.

        Raises DataError if no image has a label, one has two, or two have one.
        """
        frames, label_files = list[_Frame](), dict[StoragePath, str]()
        for part in self.parts:
            by_stem = [self._label_files(part, role) for role in range(1, len(part.folders))]
            for label, found in zip(self.labels, by_stem, strict=True):
                label_files |= dict.fromkeys(found.values(), label.reader.noun)
            frames += self._frames(part, by_stem)
        self._check_labelled(frames)
        if not self.lists:
            paired = {file for frame in frames for file in frame.labels}
            unpaired = ((file, noun) for file, noun in label_files.items() if file not in paired)
            self.problems.extend((file.relative_to(self.root), f"a {noun} without an image") for file, noun in unpaired)
        return frames

    def _frames(self, part: _Part, by_stem: Sequence[dict[str, StoragePath]]) -> Iterator[_Frame]:
        first: dict[str, StoragePath] = {}
        for image in walk(part.images):
            role = self._role(part, image)
            if role is None and image not in self.files:
                self.skipped[self._reason(image)] += 1
            if role != 0:
                continue
            stem = self._stem(part, 0, image)
            labels = [found.get(stem) for found in by_stem]
            other = first.setdefault(stem, image)
            file = next(filter(None, labels), None)
            if other != image and file:
                raise DataError(f"{other} and {image.name} are images of the same label, {file}: keep one")
            yield _Frame(image, part, stem, labels)

    def _reason(self, file: StoragePath) -> str:
        """Return as what a file in a folder of images is counted that is none."""
        suffix = self.config.image_suffix
        return f"{file.suffix} without {suffix}" if suffix and file.suffix in IMAGE_SUFFIXES else file.suffix

    def _label_files(self, part: _Part, role: int) -> dict[str, StoragePath]:
        """Return the files of a label folder by stem. Raises DataError if two have the same."""
        found: dict[str, StoragePath] = {}
        for file in self._files_of(part, role):
            other = found.setdefault(self._stem(part, role, file), file)
            if other != file:
                raise DataError(f"{other} and {file.name} are labels of the same image: keep one")
        return found

    def _check_labelled(self, frames: Sequence[_Frame]) -> None:
        for number, label in enumerate(self.labels):
            if any(frame.labels[number] for frame in frames):
                continue
            for frame in frames:
                if folder := frame.part.folders[number + 1]:
                    wanted = folder / f"{frame.stem}{label.suffix or ''}.png"
                    raise DataError(
                        f"no image under {frame.part.images} has a label under {folder}; the first would have {wanted}"
                    )

    def _listed(self, frames: Sequence[_Frame]) -> dict[int, Split] | None:
        """Return the splits of listed images by their number; None without lists."""
        if not self.lists:
            return None
        found = assign_splits(self.lists, map(self._listed_names, frames))
        self.problems.extend(found.problems)
        return found.splits

    def _listed_names(self, frame: _Frame) -> set[str]:
        places = (frame.image.relative_to(folder) for folder in (self.root, frame.part.images))
        return {frame.stem, *(os.path.splitext(place)[0] for place in places)}

    @functools.cached_property
    def _in_splits(self) -> bool:
        return self.parts[0].split is None and has_split_folders(self.parts[0].images)

    def _frame_split(self, frame: _Frame) -> Split | None:
        """Return the split by scenes, folders or hash; None for an image beside the folders of the splits."""
        hold_out, name = self.config.hold_out, frame.image.relative_to(frame.part.images)
        if isinstance(hold_out, tuple) and any(in_scene(self._scene_name(frame), scene) for scene in hold_out):
            return "test"
        if frame.part.split or self._in_splits:
            return frame.part.split or parse_split(name.partition("/")[0])
        return "train" if isinstance(hold_out, tuple) else split_by_hash(name, hold_out)

    def _scene_name(self, frame: _Frame) -> str:
        name = frame.image.relative_to(frame.part.images)
        return name.partition("/")[2] if self._in_splits and "/" in name else name

    def _check_hold_out(self, frames: Sequence[_Frame]) -> None:
        """Raise ConfigError for a scene to be held out that there is no image of."""
        for scene in self.config.hold_out if isinstance(self.config.hold_out, tuple) else ():
            names = [self._scene_name(frame) for frame in frames]
            if not any(in_scene(name, scene) for name in names):
                example = f"; the first image is {names[0]!r}" if names else ""
                raise ConfigError(f"hold_out: no image of scene {scene!r} under {self.parts[0].images}{example}")


def in_scene(name: str, scene: str) -> bool:
    """Return True if the file `name` begins with `scene`, and not with a longer word: `hall_1`, but not `hallway_1`."""
    rest = name.removeprefix(scene)
    return name.startswith(scene) and not (scene and scene[-1].isalnum() and rest[:1].isalnum())


def _overlap(one: StoragePath, other: StoragePath) -> bool:
    """Return True if one folder lies in the other, or both are one."""
    first, second = (f"{each.path.rstrip('/')}/" for each in (one, other))
    return first.startswith(second) or second.startswith(first)


def _find_parts(root: StoragePath, folders: Sequence[tuple[str, str]]) -> list[_Part]:
    """Return the folders that belong together, given (option, name): one part, or one for each split.

    `train/images` is found for `images`. Raises ConfigError if a folder is missing.
    """
    option, images = folders[0]
    by_split = [name for _, name in folders if SPLIT in name]
    if by_split and SPLIT not in images:
        raise ConfigError(f"{option}: {images!r} lacks the {SPLIT} that {by_split[0]!r} has")
    if by_split:
        parts = _parts_by_split(root, [name for _, name in folders])
        if not parts:
            raise ConfigError(f"{option}: there is no folder {root / images} with train, val or test for {SPLIT}")
    elif all((root / name).is_folder() for _, name in folders):
        parts = []
    else:
        parts = _parts_by_split(root, [f"{SPLIT}/{name}" for _, name in folders])
    for number, (key, name) in enumerate(folders):
        if parts and not any(part.folders[number] for part in parts):
            raise ConfigError(f"{key}: there is no folder {name} of any split in {root}")
    return parts or [_Part(None, [require_exists(root / name, key, "folder") for key, name in folders])]


def _parts_by_split(root: StoragePath, names: Sequence[str]) -> list[_Part]:
    parts = []
    for called, split in SPLIT_ALIASES.items():
        paths = [root / name.replace(SPLIT, called) for name in names]
        if paths[0].is_folder():
            parts.append(_Part(split, [path if path.is_folder() else None for path in paths]))
    return parts
