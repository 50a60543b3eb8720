"""Boxes in COCO's JSON format (https://cocodataset.org/#format-data), one file per split, and folders of images.

Classes are the categories, or their supercategories, in order of their (first) id; ids may have gaps, and categories
with the same name are one class. Crowd boxes are dropped. An image listed without boxes has no objects in it; an image
that is not listed is not part of the set. With `masks`, each image also has the boxes with the pixels of their objects
as a label; with `keypoints`, those with the points of their objects; with `multilabel`, the classes of its annotations.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import ConfigError, DataError, error_context
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._boxes import BoxShape, as_numbers, checked_boxes
from pipeline.sources._classes import check_distinct, index_classes, select_boxes
from pipeline.sources._coco import (
    Annotation,
    Image,
    KeypointAnnotation,
    SegmentedAnnotation,
    SplitAnnotations,
    read_annotations,
    read_objects,
)
from pipeline.sources._coco_search import HOLD_OUT, search_annotations
from pipeline.sources._files import FileSource, check_size
from pipeline.sources._keypoints import PairNames, PosedClasses, add_keypoints
from pipeline.sources._named_files import NamedFiles
from pipeline.sources._segmentation import read_mask
from pipeline.sources._splits import SPLITS, Split, names_of_split, split_by_hash
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rle import box_around, decode_mask, rle_array

ANNOTATIONS = (
    *("instances_{}.json", "annotations/instances_{}.json", "annotations/instances_{}2017.json"),
    "{}/_annotations.coco.json",  # Roboflow's exports
)
KEYPOINT_ANNOTATIONS = tuple(name.replace("instances", "person_keypoints") for name in ANNOTATIONS[:3])
"""Looked for before ANNOTATIONS where keypoints are asked for."""
IMAGES = ("images/{}", "{}", "images/{}2017", "{}2017", "images")


class Config(SourceConfig):
    """A folder with annotations and images in COCO's usual places, or where `annotations` and `images` say."""

    later_keys = SourceConfig.later_keys | {"masks", "keypoints", "flip_pairs"}
    kind: Literal["coco"] = "coco"
    path: str
    """Folder or URL."""
    classes: Literal["category", "supercategory"] = "category"
    """The classes: the file's categories, or the supercategories that group them."""
    masks: bool = False
    """True for a label `masks` beside `detection`: the boxes with the pixels of their objects, from `segmentation`.
    Annotations without it count as dropped; those without `bbox` have the box around their mask."""
    keypoints: bool = False
    """True for a label `keypoints` beside `detection`: the boxes of the categories that have `keypoints`, with the
    points of each. Annotations with damaged ones count as dropped."""
    flip_pairs: tuple[PairNames, ...] | None = None
    """Pairs of keypoints that change sides in a mirror. By default those whose names differ in left and right, or in
    the letters L and R, alone."""
    multilabel: bool = False
    """True for a label `multilabel` beside `detection`: the classes that an image has an annotation of, crowds
    included."""
    annotations: dict[Split, str] = Field(default_factory=dict)
    """JSON file by split, relative to `path`. By default `instances_<split>.json` in `path` or in `annotations`,
    `annotations/instances_<split>2017.json`, or `<split>/_annotations.coco.json`; with `keypoints` before them
    `person_keypoints_<split>.json` in the same places."""
    images: dict[Split, str] = Field(default_factory=dict)
    """Folder by split that file names are relative to, relative to `path`. By default `images/<split>` or `<split>`,
    either with 2017 behind the split as well, or `images`."""
    hold_out: Share = 0
    """Where there are `annotations` of train alone: the share of images that becomes `test`, by the hash of the file's
    name."""
    elsewhere: tuple[str, ...] = ()
    """Other folders that file names may lead to, relative to `path`. Of images that lie neither there nor in the
    folder of images none is read, nor through links that end outside of these and the set."""


class Source(FileSource):
    """Reads the set. Raises ConfigError if a path does not exist; later DataError on JSON that is not COCO's."""

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(require_exists(StoragePath.of(config.path), "path", "folder"))
        self._annotation_files = {split: file for split in SPLITS if (file := self._find_annotations(split))}
        if not self._annotation_files:
            raise ConfigError(
                f"path: no {ANNOTATIONS[0].format('train')} in {self.root}; state the files as `annotations`"
            )
        if extra := set(config.images) - set(self._annotation_files):
            raise ConfigError(f"images: {sorted(extra)} have no `annotations`")
        self._image_folders = {split: self._find_images(split) for split in self._annotation_files}
        others = [require_exists(self.root / name, "elsewhere", "folder") for name in config.elsewhere]
        self.folders = list(dict.fromkeys([*self._image_folders.values(), *others]))
        self._named = {split: NamedFiles(folder, others, self.root) for split, folder in self._image_folders.items()}
        self.files = list(self._annotation_files.values())

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return the keys for COCO's usual names, or else for files that are COCO's by their content."""
        root = StoragePath.of(path)
        keys: dict[str, Any] = {}
        if not (usual := _usual_splits(root, ANNOTATIONS)):
            usual, keys = _usual_splits(root, KEYPOINT_ANNOTATIONS), {"keypoints": True}
        if not usual:
            return search_annotations(root)
        try:
            cls(Config(path=path, **keys))
        except ConfigError:  # the images are in another place
            return {**(search_annotations(root) or {}), **keys}
        return keys if usual - {"train"} else {**keys, "hold_out": HOLD_OUT}

    def _find_annotations(self, split: Split) -> StoragePath | None:
        if self.config.annotations:
            name = self.config.annotations.get(split)
            return require_exists(self.root / name, f"annotations.{split}", "file") if name else None
        names = (*KEYPOINT_ANNOTATIONS, *ANNOTATIONS) if self.config.keypoints else ANNOTATIONS
        places = (self.root / name.format(called) for called in names_of_split(split) for name in names)
        return next((file for file in places if file.exists()), None)

    def _find_images(self, split: Split) -> StoragePath:
        if split in self.config.images:
            return require_exists(self.root / self.config.images[split], f"images.{split}", "folder")
        for name, called in itertools.product(IMAGES, names_of_split(split)):
            if (folder := self.root / name.format(called)).is_folder():
                return folder
        tried = ", ".join(name.format(split) for name in IMAGES)
        raise ConfigError(f"path: {self.root} has no images of split {split!r}: there is none of {tried}")

    @functools.cached_property
    def _splits(self) -> dict[Split, SplitAnnotations]:
        kind = KeypointAnnotation if self.config.keypoints else Annotation
        kind = SegmentedAnnotation if self.config.masks else kind
        return {
            split: read_annotations(file, self.config.classes, kind) for split, file in self._annotation_files.items()
        }

    @functools.cached_property
    def _classes(self) -> tuple[tuple[str, ...], dict[int | str, int]]:
        """Class names, and class index by category id."""
        names: dict[int | str, str] = {}
        for part in self._splits.values():
            for category_id, name in part.categories.items():
                first = names.setdefault(category_id, name)
                if first != name:
                    raise DataError(f"{self.root}: category {category_id} is {first!r} and {name!r} in two splits")
        if not names:
            raise DataError(
                f"{', '.join(map(str, self.files))}: no category is listed, so that no box can have a class"
            )
        classes, indices = index_classes(names)
        check_distinct(classes)
        return classes, indices

    @functools.cached_property
    def _posed(self) -> PosedClasses:
        """The classes with keypoints."""
        stated = [category for part in self._splits.values() for category in part.stated]
        with error_context(str(self.root)):
            return PosedClasses.of(stated, self._classes, self.config.flip_pairs)

    def spaces(self) -> dict[str, LabelSpace]:
        asked = {"detection": True, "masks": self.config.masks, "multilabel": self.config.multilabel}
        spaces = {task: LabelSpace(task, self._classes[0]) for task, wanted in asked.items() if wanted}
        if self.config.keypoints:
            spaces["keypoints"] = LabelSpace("keypoints", self._posed.names, skeleton=self._posed.skeleton)
        return spaces

    def read_records(self) -> Iterator[SourceRecord]:
        if not self.count():
            raise DataError(f"{', '.join(map(str, self.files))}: lists no image; `images` has to list those of the set")
        seen: set[str] = set()
        self.stray_annotations = 0
        remote = self.list_remote()
        for split, part in self._splits.items():
            named, listed = self._named[split], dict[str, tuple[StoragePath, Image, list[Annotation]]]()
            for count, reason in _stray_annotations(part):
                self.stray_annotations += count
                self.problems.append((self._annotation_files[split].relative_to(self.root), reason))
            for entry in part.images:
                file = self._find(split, entry)
                if file is None:
                    continue
                name, annotations = file.relative_to(self.root), part.annotations.get(entry.id, [])
                if name in seen:
                    self.stray_annotations += len(annotations)
                    self.problems.append((name, f"listed twice, the second time in split {split!r}"))
                else:  # a second entry of an image adds its annotations
                    listed.setdefault(name, (file, entry, []))[2].extend(annotations)
            seen |= listed.keys()
            for name, (file, entry, annotations) in listed.items():
                known, truth = remote.get(file, file), functools.partial(self._truth, entry, annotations)
                yield SourceRecord(
                    name, self._held_out(name, split), functools.partial(named.read, known), truth, known.stamp
                )

    def _held_out(self, name: str, split: Split) -> Split:
        return split_by_hash(name, self.config.hold_out) if list(self._splits) == ["train"] else split

    def _find(self, split: Split, entry: Image) -> StoragePath | None:
        """Return the file of an image. If it may not be read, list the problem and return None."""
        try:
            return self._named[split].find(_file_name(entry))
        except DataError as error:
            stated = self._annotation_files[split].relative_to(self.root)
            self.problems.append((f"{stated} image {entry.id!r}", str(error)))
            return None

    def _truth(self, entry: Image, annotations: list[Annotation], size: tuple[int, int]) -> TrueLabels:
        if stated := entry.size():
            check_size(stated, size, "the annotations say")
        indices = list(map(self._class_index, annotations))
        shapes = [_shape(annotation, index, size) for annotation, index in zip(annotations, indices, strict=True)]
        truth, kept = checked_boxes(shapes, self._classes[0], size)
        if self.config.masks:
            _add_masks(truth, [annotations[number] for number in kept], size)
        if self.config.keypoints:
            add_keypoints(truth, [annotations[number] for number in kept], self._posed, size)
        if self.config.multilabel:
            present = np.zeros(len(self._classes[0]), np.float32)
            present[[index for index in indices if index is not None]] = 1
            truth.values["multilabel"] = {"probs": present}
        return truth

    def _class_index(self, annotation: Annotation) -> int | None:
        """Return the class of an annotation, None if it states none. Raises DataError for one that is not listed."""
        if annotation.category_id is None:
            return None
        if annotation.category_id not in self._classes[1]:
            raise DataError(f"category id {annotation.category_id} is not among the categories")
        return self._classes[1][annotation.category_id]

    def count(self) -> int:
        return sum(len(part.images) for part in self._splits.values())


def _file_name(entry: Image) -> str:
    if not entry.name:
        raise DataError("has no file_name")
    return entry.name


def _stray_annotations(part: SplitAnnotations) -> Iterator[tuple[int, str]]:
    """Yield how many annotations belong to no listed image, and what is to be said of them."""
    if nameless := part.annotations.get(None):
        yield len(nameless), f"has {len(nameless)} annotations without an image_id"
    if unlisted := set(part.annotations) - {None} - {entry.id for entry in part.images}:
        first, count = min(unlisted, key=str), sum(len(part.annotations[image]) for image in unlisted)
        yield count, f"has annotations of {len(unlisted)} images that it does not list, first {first}"


def _shape(annotation: Annotation, index: int | None, size: tuple[int, int]) -> BoxShape:
    place, crowd = f"annotation {annotation.id}", annotation.crowd()
    if index is None:
        return BoxShape(place, index, None, "annotation without a category dropped")
    if crowd is None:
        return BoxShape(place, index, None, f"box with iscrowd {annotation.iscrowd!r:.20} dropped")
    if crowd:
        return BoxShape(place, index, None, "crowd box dropped", by_intent=True)
    if annotation.bbox is None and isinstance(annotation, SegmentedAnnotation):
        return _shape_of_mask(annotation, index, size)
    numbers = as_numbers(annotation.bbox, 4)
    if numbers is None:
        return BoxShape(place, index, None)
    x, y, width, height = numbers
    return BoxShape(place, index, (x, y, x + width, y + height))


def _shape_of_mask(annotation: SegmentedAnnotation, index: int, size: tuple[int, int]) -> BoxShape:
    """Return the box around the mask of an annotation that states no box."""
    place = f"annotation {annotation.id}"
    try:
        box = box_around(decode_mask(read_mask(annotation.segmentation, size), size))
    except DataError as error:
        return BoxShape(place, index, None, f"box without four numbers dropped, {str(error).partition(': ')[0]}")
    return BoxShape(place, index, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))


def _add_masks(truth: TrueLabels, annotations: list[Annotation], size: tuple[int, int]) -> None:
    """Add the label `masks`: the boxes of `detection`, of these annotations, that have a mask with a pixel in them."""
    boxes = iter(truth.values["detection"]["boxes"].tolist())

    def read(annotation: Annotation) -> bytes:
        assert isinstance(annotation, SegmentedAnnotation)
        return read_mask(annotation.segmentation, size, next(boxes))

    masks = read_objects(truth, annotations, read)
    kept = select_boxes(truth.values["detection"], [number for number, mask in enumerate(masks) if mask is not None])
    truth.values["masks"] = {**kept, "masks": rle_array(mask for mask in masks if mask is not None)}


def _usual_splits(root: StoragePath, names: Sequence[str]) -> set[Split]:
    """Return the splits that have annotations in one of these places."""
    return {
        split
        for split, name in itertools.product(SPLITS, names)
        if any((root / name.format(called)).exists() for called in names_of_split(split))
    }
