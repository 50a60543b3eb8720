"""Splits: by the names of folders, or by a hash of a file's name."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from pipeline.errors import DataError
from pipeline.storage.path import StoragePath, shown, subfolders

Split = Literal["train", "val", "test"]


SPLITS: tuple[Split, ...] = ("train", "val", "test")


SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def has_split_folders(root: StoragePath) -> bool:
    """Whether the folders right below `root` are splits (train, val, test), not classes.

    They are if all of them are named so. One such name among others is taken for a class (a train); several among
    others raise DataError.
    """
    names = [folder.name for folder in subfolders(root)]
    others = [shown(name) for name in names if split_named(name) is None]
    if others and len(names) - len(others) > 1:
        raise DataError(f"{root} holds split folders, but also {', '.join(others)}: move these or the splits out")
    return bool(names) and not others


def split_named(name: str) -> Split | None:
    """The split that a folder or a column calls `name`, if it is one."""
    return SPLIT_NAMES.get(name.lower())


def split_in_path(name: str) -> Split | None:
    """The split that a path names, its last part first: `train-00000-of-00005.parquet`, `validation/part.3.tar`."""
    for part in reversed(name.split("/")):
        for word in re.split(r"[^A-Za-z]+", part):
            if split := split_named(word):
                return split
    return None


def split_by_hash(name: str, hold_out: float) -> Split:
    """`test` for a share `hold_out` of all names, else `train`: by the name's hash, so new images move no old one."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "test" if draw < hold_out * 2**64 else "train"
