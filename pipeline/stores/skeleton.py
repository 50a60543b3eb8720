"""Skeletons: the keypoints of an object by name, which of them are joined, and which change sides in a mirror."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

Pair = tuple[int, int]
UNKNOWN, HIDDEN, VISIBLE = 0, 1, 2
"""What is known of a keypoint, as in COCO's files: nothing, or where it is, behind something or in sight."""
BOX_SHARE = 0.53
"""Share of its box that an object covers where its area is not stated, as usual for persons."""
SIDES = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])")
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The K keypoints that each object of a label space has, by their indices from 0.

    >>> Skeleton(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),)).mirror_order().tolist()
    [0, 2, 1]
    """

    points: tuple[str, ...] = ()
    """Their names, no two alike."""
    edges: tuple[Pair, ...] = dataclasses.field(default=(), compare=False)
    """Pairs that are joined by a line where they are drawn, which changes no label's meaning."""
    flip_pairs: tuple[Pair, ...] = ()
    """Pairs that are each other's mirror image, left and right; all others are their own."""

    def __str__(self) -> str:
        return f"{', '.join(self.points)} (flip pairs {', '.join(f'{a}-{b}' for a, b in self.flip_pairs) or 'none'})"

    def mirror_order(self) -> NDArray[np.intp]:
        """Return for each point the index (K,) of the one that is in its place after mirroring."""
        order = np.arange(len(self.points))
        for one, other in self.flip_pairs:
            order[one], order[other] = other, one
        return order

    def to_json(self) -> dict[str, Any]:
        pairs = {"edges": list(map(list, self.edges)), "flip_pairs": list(map(list, self.flip_pairs))}
        return {"points": list(self.points), **pairs}

    @classmethod
    def from_json(cls, data: Any) -> Skeleton:
        """Return the skeleton that `to_json` stated. Raises DataError for anything else."""
        match data:
            case {"points": [*points], "edges": [*edges], "flip_pairs": [*flip_pairs]}:
                found = cls(tuple(points), tuple(map(_as_pair, edges)), tuple(map(_as_pair, flip_pairs)))
                found.check()
                return found
        raise DataError(f"{data!r:.80} is no skeleton, which has points, edges and flip_pairs.")

    def check(self) -> None:
        """Raise DataError unless names are distinct texts, pairs are of two of the points, and flips of no point
        twice.
        """
        if not all(isinstance(name, str) and name for name in self.points):
            raise DataError(f"keypoints {self.points!r:.80} are not all named by a text.")
        if twice := [name for name in self.points if self.points.count(name) > 1]:
            raise DataError(f"the keypoint {twice[0]!r} is named twice in {', '.join(self.points)}.")
        count = len(self.points)
        for one, other in (*self.edges, *self.flip_pairs):
            if not (0 <= one < count and 0 <= other < count and one != other):
                raise DataError(f"{one} and {other} are no pair of {count} keypoints, counted from 0.")
        flipped = [index for pair in self.flip_pairs for index in pair]
        if len(set(flipped)) < len(flipped):
            raise DataError(f"a keypoint has two mirror images in the flip pairs {self.flip_pairs}.")


def _as_pair(value: Any) -> Pair:
    match value:
        case [int(one), int(other)]:
            return one, other
    raise DataError(f"{value!r:.40} is no pair of keypoints.")


def flip_pairs_by_name(points: Sequence[str]) -> tuple[Pair, ...]:
    """Return the pairs of keypoints whose names differ in their side alone: left and right, or the letters L and R.

    >>> flip_pairs_by_name(["nose", "left_eye", "right_eye", "L_Ear", "R_Ear"])
    ((1, 2), (3, 4))
    """
    folded = [name.lower() for name in points]
    mirrored = [SIDES.sub(lambda side: OTHER_SIDE[side.group()], name) for name in folded]
    return tuple((index, folded.index(name)) for index, name in enumerate(mirrored) if name in folded[index + 1 :])


def box_areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the area (N,) of objects in boxes (N, 4) of which nothing else is known, pixels."""
    return (BOX_SHARE * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).astype(np.float32)
