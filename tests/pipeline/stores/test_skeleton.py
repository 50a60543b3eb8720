"""Skeletons: what changes sides in a mirror, and what is no skeleton."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.stores.labels import LabelSpace
from pipeline.stores.skeleton import Skeleton, flip_pairs_by_name

FACE = Skeleton(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),))


@pytest.mark.parametrize(
    ("points", "pairs"),
    [
        (("nose", "left_eye", "right_eye"), ((1, 2),)),
        (("RightHand", "LeftHand", "Left"), ((0, 1),)),
        (("L_Eye", "R_Eye", "L_F_Paw", "R_F_Paw"), ((0, 1), (2, 3))),
        (("tail", "collar", "hip.l", "hip.r"), ((2, 3),)),
        (("left", "top"), ()),
    ],
)
def test_flip_pairs_by_name_joins_left_and_right(points: tuple[str, ...], pairs: tuple[Any, ...]) -> None:
    assert flip_pairs_by_name(points) == pairs


def test_skeleton_mirror_order_twice_is_identity() -> None:
    order = FACE.mirror_order()
    assert order.tolist() == [0, 2, 1]
    assert order[order].tolist() == [0, 1, 2]


def test_label_space_keeps_its_skeleton_in_json() -> None:
    space = LabelSpace("keypoints", ("cat",), skeleton=FACE)
    back = LabelSpace.from_json(space.to_json())
    assert back == space
    assert back.skeleton.edges == FACE.edges
    assert "skeleton" not in LabelSpace("detection", ("cat",)).to_json()
    assert space != LabelSpace("keypoints", ("cat",), skeleton=Skeleton(("nose", "right_eye", "left_eye")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": ["nose", 3, "right_eye"]}, "not all named by a text"),
        ({"points": ["nose", "nose", "eye"]}, "the keypoint 'nose' is named twice"),
        ({"edges": [[0, 3]]}, "0 and 3 are no pair of 3 keypoints"),
        ({"edges": [[1, 1]]}, "1 and 1 are no pair"),
        ({"edges": [[0]]}, "is no pair of keypoints"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, "has two mirror images"),
        ({"flip_pairs": 7}, "is no skeleton"),
    ],
    ids=str,
)
def test_skeleton_from_json_refuses_what_is_none(change: dict[str, Any], message: str) -> None:
    about = LabelSpace("keypoints", ("cat",), skeleton=FACE).to_json()
    with pytest.raises(DataError, match=message):
        LabelSpace.from_json({**about, "skeleton": {**about["skeleton"], **change}})
