"""Find images beside masks, depth maps and normal maps in a folder, whatever their folders are called.

images/ masks/        train/images/ train/masks/        train_img/ train_gt/        x.jpg x_mask.png
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.data.arrays import ARRAY_SUFFIXES
from pipeline.data.bands import BAND_SUFFIXES
from pipeline.sources._files import IMAGE_SUFFIXES, images_under
from pipeline.sources._mask_survey import survey_masks
from pipeline.sources._pairs import IMAGE_FOLDERS, LABEL_FOLDERS, plain_name
from pipeline.sources._rasters import SPLIT
from pipeline.sources._splits import parse_split
from pipeline.storage.path import StoragePath, subfolders, walk

DEPTH_NAMES = frozenset(("depth", "depths", "depthmap", "depthmaps", "disparity", "disparities"))
NORMAL_NAMES = frozenset(("normal", "normals", "normalmap", "normalmaps", "surfacenormal", "surfacenormals"))
MASKS, DEPTH, NORMALS = "masks", "depth", "normals"
SUFFIX_KEYS = {MASKS: "mask_suffix", DEPTH: "depth_suffix", NORMALS: "normals_suffix"}
PAIRED_SHARE = 0.5
"""Share of a folder's label files that have an image, from which on it is taken for the labels of these images."""
SUFFIX = re.compile(r"(?=[_\-. ][A-Za-z])")
"""The beginnings of what may be a suffix of a stem."""
CAMERAS = "cameras.json"


@dataclasses.dataclass(frozen=True)
class RasterLayout:
    """The folders of a set: of images, and of the labels beside them."""

    root: StoragePath
    images: str
    """Folder of the images, relative to the root, perhaps with `{split}`."""
    folders: Mapping[str, str]
    """Folder of the labels, by `masks`, `depth` and `normals`."""
    suffixes: Mapping[str, str]
    """End of the labels' stems, where they have one."""
    files: Mapping[str, list[StoragePath]]
    """The label files."""

    def settings(self, defaults: Mapping[str, str]) -> dict[str, Any]:
        """Return the recipe's keys that differ from a kind's `defaults` (folder by key, the images' first)."""
        images_key = next(iter(defaults))
        stated: dict[str, Any] = {images_key: self.images, **self.folders}
        settings = {key: value for key, value in stated.items() if defaults.get(key) != value}
        settings |= {SUFFIX_KEYS[key]: suffix for key, suffix in self.suffixes.items()}
        if MASKS in self.folders:
            settings |= self.mask_settings()
        if DEPTH in self.folders and NORMALS not in self.folders and (self.root / CAMERAS).exists():
            settings[NORMALS] = "from_depth"  # normals can be computed from depth and the cameras' intrinsics
        return settings

    def mask_settings(self) -> Mapping[str, Any]:
        """Return the keys that say what the masks' pixels mean; none if a file does, or nothing is clear."""
        return {} if (self.root / "classes.json").exists() else survey_masks(self.files[MASKS]) or {}


def find_rasters(path: str) -> RasterLayout | None:
    """Return where images and labels of a folder lie, None if they are not found. Only names are compared."""
    root = StoragePath.of(path)
    if not root.is_folder():
        return None
    return _in_folders(root) or _in_one_folder(root)


def _in_folders(root: StoragePath) -> RasterLayout | None:
    """Return the layout of images in one folder, and of labels of their stems in others."""
    candidates = _candidates(root)
    for images, folders in candidates.items():
        if _label_of(images):
            continue
        found: dict[str, tuple[str, str, list[StoragePath]]] = {}
        stems = set(_stems(folders, (*IMAGE_SUFFIXES, *BAND_SUFFIXES)))
        for name in sorted(candidates, key=_preference):
            label = _label_of(name)
            if label is None or label in found or not stems:
                continue
            files = _stems(candidates[name], IMAGE_SUFFIXES if label == MASKS else (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES))
            suffix = _common_suffix(stems, files)
            if suffix is not None and (label != MASKS or _are_masks(root, name, files)):
                found[label] = (name, suffix, list(files.values()))
        if found:
            return _layout(root, images, found)
    return None


def _layout(root: StoragePath, images: str, found: Mapping[str, tuple[str, str, list[StoragePath]]]) -> RasterLayout:
    order = [key for key in (MASKS, DEPTH, NORMALS) if key in found]
    return RasterLayout(
        root,
        images,
        {key: found[key][0] for key in order},
        {key: found[key][1] for key in order if found[key][1]},
        {key: found[key][2] for key in order},
    )


def _are_masks(root: StoragePath, name: str, files: Mapping[str, StoragePath]) -> bool:
    """Return True for folders that can only hold masks by their name, and others whose files are some."""
    return "mask" in name.lower() or (root / "classes.json").exists() or survey_masks(list(files.values())) is not None


def _candidates(root: StoragePath) -> dict[str, list[StoragePath]]:
    """Return the folders of images and labels by what a recipe calls them: `images`, `{split}_images`."""
    found: dict[str, list[StoragePath]] = {}
    for folder in subfolders(root):
        inner = subfolders(folder) if parse_split(folder.name) else []
        for each in inner:
            found.setdefault(each.name, []).append(each)
        if not inner:
            found.setdefault(_template(folder.name), []).append(folder)
    return {name: found[name] for name in found if _holds_images(name) or _label_of(name)}


def _template(name: str) -> str:
    """Return a folder's name with `{split}` for a word that is one: `train_img` is `{split}_img`."""
    words = re.split(r"([A-Za-z]+)", name)
    places = [place for place, word in enumerate(words) if word.islower() and parse_split(word)]
    if len(places) == 1:
        words[places[0]] = SPLIT
    return "".join(words)


def _holds_images(name: str) -> bool:
    """Return True for folders of images by their name: `train` beside `train_masks` is one as well."""
    return name == SPLIT or plain_name(name.replace(SPLIT, "")) in IMAGE_FOLDERS


def _label_of(name: str) -> str | None:
    """Return what labels a folder, or the suffix of a stem, is named for."""
    plain = plain_name(name.replace(SPLIT, ""))
    if plain in DEPTH_NAMES:
        return DEPTH
    if plain in NORMAL_NAMES:
        return NORMALS
    return MASKS if plain in LABEL_FOLDERS else None


def _preference(name: str) -> tuple[bool, bool, str]:
    """Return the key by which folders of labels are tried: those called masks first, of objects last."""
    return "mask" not in name.lower(), "object" in name.lower(), name


def _stems(folders: Iterable[StoragePath], suffixes: tuple[str, ...]) -> dict[str, StoragePath]:
    """Return the files of these suffixes by their path without suffix, in the folder that they lie in."""
    return {
        os.path.splitext(file.relative_to(folder))[0]: file
        for folder in folders
        for file in walk(folder)
        if file.suffix in suffixes
    }


def _common_suffix(images: Iterable[str], labels: Iterable[str]) -> str | None:
    """Return what most labels' stems have behind those of images, "" for nothing; None if most have no image."""
    known, stems = set(images), list(labels)
    counts: collections.Counter[str] = collections.Counter(filter(None, (_suffix(stem, known) for stem in stems)))
    direct = sum(stem in known for stem in stems)
    if direct and direct >= PAIRED_SHARE * len(stems):
        return ""
    suffix, count = counts.most_common(1)[0] if counts else ("", 0)
    return suffix if count and count >= PAIRED_SHARE * len(stems) else None


def _suffix(stem: str, images: set[str]) -> str | None:
    """Return what a label's stem has behind the longest image's stem that it begins with, None for nothing."""
    places = [match.start() for match in SUFFIX.finditer(stem)]
    return next((stem[place:] for place in reversed(places) if stem[:place] in images), None)


def _in_one_folder(root: StoragePath) -> RasterLayout | None:
    """Return the layout of labels beside their images, which the end of their stems tells: `x.jpg`, `x_mask.png`."""
    images = {os.path.splitext(file.relative_to(root))[0] for file in images_under(root)}
    found: dict[str, tuple[str, str, list[StoragePath]]] = {}
    for label, suffix, files in _suffixed(root, images):
        if label not in found and (label != MASKS or survey_masks(files) is not None):
            found[label] = (".", suffix, files)
    labels = sum(len(files) for _, _, files in found.values())
    # images of a set whose few files happen to end in such a word are no labels
    whole = len(images) - labels
    if not found or max(len(files) for _, _, files in found.values()) < PAIRED_SHARE * whole:
        return None
    return _layout(root, ".", found)


def _suffixed(root: StoragePath, images: set[str]) -> Iterator[tuple[str, str, list[StoragePath]]]:
    """Yield label, suffix and files of stems that end in a word for labels, behind that of an image."""
    by_suffix: dict[str, list[StoragePath]] = {}
    for file in walk(root):
        if file.suffix in (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES):
            suffix = _suffix(os.path.splitext(file.relative_to(root))[0], images)
            if suffix and _label_of(suffix):
                by_suffix.setdefault(suffix, []).append(file)
    for suffix, files in sorted(by_suffix.items(), key=lambda item: (-len(item[1]), item[0])):
        label = _label_of(suffix)
        assert label
        yield label, suffix, [file for file in files if label != MASKS or file.suffix in IMAGE_SUFFIXES]
