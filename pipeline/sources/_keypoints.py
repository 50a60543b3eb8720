"""The `keypoints` of COCO's categories and annotations: the names of the points, and where they are in each object."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, require_one_of
from pipeline.sources import TrueLabels
from pipeline.sources._boxes import as_numbers
from pipeline.sources._classes import select_boxes
from pipeline.sources._coco import Annotation, Category, KeypointAnnotation, read_objects
from pipeline.sources._segmentation import as_list
from pipeline.stores.skeleton import HIDDEN, UNKNOWN, VISIBLE, Pair, Skeleton, box_areas, flip_pairs_by_name

PairNames = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PosedClasses:
    """The classes of a set whose objects have keypoints."""

    names: tuple[str, ...]
    indices: Mapping[int | str | None, int]
    """Index in `names` by the id of each category that has keypoints."""
    skeleton: Skeleton

    @classmethod
    def of(
        cls,
        categories: Iterable[Category],
        classes: tuple[Sequence[str], Mapping[int | str, int]],
        flip_pairs: Sequence[PairNames] | None,
    ) -> PosedClasses:
        """Return those of `categories`, given all classes, their names and the index of each category's id.

        `flip_pairs` are the names of points that change sides in a mirror; None for those whose names tell.

        Raises DataError if no category has keypoints, if they differ, or if one's keypoints or skeleton are damaged;
        ConfigError for a name in `flip_pairs` that is none.
        """
        posed = [category for category in categories if category.keypoints]
        skeleton = _common_skeleton(posed, flip_pairs)
        numbers = sorted({classes[1][category.id] for category in posed})
        indices: dict[int | str | None, int] = {
            category.id: numbers.index(classes[1][category.id]) for category in posed
        }
        return cls(tuple(classes[0][number] for number in numbers), indices, skeleton)


def add_keypoints(
    truth: TrueLabels, annotations: Sequence[Annotation], posed: PosedClasses, size: tuple[int, int]
) -> None:
    """Add the label `keypoints`: the boxes of `detection`, which are of these annotations, of classes with keypoints.

    An object with damaged keypoints is left out, with a note; a point outside the image becomes unknown, with a note.
    """
    count = len(posed.skeleton.points)
    numbers = [number for number, each in enumerate(annotations) if each.category_id in posed.indices]
    read = read_objects(truth, [annotations[number] for number in numbers], lambda each: _read_points(each, count))
    found = {number: points for number, points in zip(numbers, read, strict=True) if points is not None}
    points = np.array(list(found.values()), np.float32).reshape(len(found), count, 3)
    outside: NDArray[np.bool_] = np.any((points[..., :2] < 0) | (points[..., :2] > np.array(size)), axis=2)
    points[outside] = UNKNOWN
    for number, each in zip(found, outside.tolist(), strict=True):
        if any(each):
            truth.notes.append(f"keypoint outside the image left out: annotation {annotations[number].id}")
    boxes = select_boxes(truth.values["detection"], list(found))
    areas = [_area(annotations[number], size) for number in found]
    truth.values["keypoints"] = {
        **boxes,
        "classes": np.array([posed.indices[annotations[number].category_id] for number in found], np.int32),
        "keypoints": points[..., :2],
        "visibility": points[..., 2].astype(np.uint8),
        "keypoint_scores": (points[..., 2] > UNKNOWN).astype(np.float32),
        "areas": np.where(np.isnan(areas), box_areas(boxes["boxes"]), np.array(areas, np.float32)),
    }


def _common_skeleton(posed: Sequence[Category], flip_pairs: Sequence[PairNames] | None) -> Skeleton:
    """Return the skeleton of all these categories, with the edges that any of them has."""
    if not posed:
        raise DataError("no category has `keypoints`, the names of its points; leave out `keypoints: true`")
    skeletons = [_skeleton(category) for category in posed]
    points = skeletons[0].points
    for category, skeleton in zip(posed, skeletons, strict=True):
        if skeleton.points != points:
            raise DataError(
                f"the categories {posed[0].name!r} and {category.name!r} have different keypoints, "
                f"{', '.join(points)} and {', '.join(skeleton.points)}: make a set of each"
            )
    edges = dict.fromkeys(edge for skeleton in skeletons for edge in skeleton.edges)
    pairs = flip_pairs_by_name(points) if flip_pairs is None else tuple(_named(pair, points) for pair in flip_pairs)
    found = Skeleton(points, tuple(edges), pairs)
    found.check()
    return found


def _skeleton(category: Category) -> Skeleton:
    """Return a category's points and edges, which COCO counts from 1."""
    points, edges = category.keypoints, category.skeleton or []
    if not isinstance(points, list) or not all(isinstance(name, str) for name in points):
        raise DataError(f"the keypoints of category {category.name!r} are no list of names: {reprlib.repr(points)}")
    pairs = [as_numbers(pair, 2) for pair in edges] if isinstance(edges, list) else [None]
    if any(pair is None or not all(end in range(1, len(points) + 1) for end in pair) for pair in pairs):
        raise DataError(
            f"the skeleton of category {category.name!r} is no list of pairs of its points, numbered from 1 to "
            f"{len(points)}: {reprlib.repr(edges)}"
        )
    found = Skeleton(tuple(points), tuple((int(pair[0]) - 1, int(pair[1]) - 1) for pair in pairs if pair))
    found.check()
    return found


def _named(pair: PairNames, points: Sequence[str]) -> Pair:
    one, other = (points.index(require_one_of(name, points, "flip_pairs: keypoint")) for name in pair)
    return one, other


def _read_points(annotation: Annotation, count: int) -> NDArray[np.float32]:
    """Return `count` keypoints (K, 3), x, y and visibility, of an annotation, which are all unknown if it states none.

    Raises DataError, "reason: value", for what is dropped.
    """
    assert isinstance(annotation, KeypointAnnotation)
    listed = as_list(annotation.keypoints)
    if listed is None or listed == []:
        return np.zeros((count, 3), np.float32)
    if not isinstance(listed, list) or len(listed) != 3 * count:
        found = f"{len(listed)} numbers" if isinstance(listed, list) else reprlib.repr(listed)
        raise DataError(f"keypoints that are not three numbers for each of {count} points dropped: {found}")
    numbers = as_numbers(listed, 3 * count)
    if numbers is None:
        raise DataError(f"keypoints that are not all finite numbers dropped: {reprlib.repr(listed)}")
    if wrong := [seen for seen in numbers[2::3] if seen not in (UNKNOWN, HIDDEN, VISIBLE)]:
        raise DataError(f"keypoints with a visibility other than 0, 1 and 2 dropped: {wrong[0]:g}")
    points = np.array(numbers).reshape(count, 3)
    return np.where(points[:, 2:] > UNKNOWN, points, 0).astype(np.float32)


def _area(annotation: Annotation, size: tuple[int, int]) -> float:
    """Return the area that an annotation states, pixels; NaN unless it is above 0 and fits into the image."""
    assert isinstance(annotation, KeypointAnnotation)
    numbers = as_numbers([annotation.area], 1)
    return numbers[0] if numbers and 0 < numbers[0] <= size[0] * size[1] else math.nan
