"""Helpers that decide the split of an image: from a folder's or file's name, or by a hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.errors import DataError
from pipeline.storage.path import StoragePath, printable, subfolders

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_ALIASES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def names_of_split(split: Split) -> list[str]:
    """Return what folders of a split are called, its own name first."""
    return [name for name, meant in SPLIT_ALIASES.items() if meant == split]


def has_split_folders(root: StoragePath) -> bool:
    """Return True if all folders right below `root` have names of splits; otherwise they are classes.

    A single such name among others is a class (a train). Raises DataError if several are among others.
    """
    names = [folder.name for folder in subfolders(root)]
    others = [printable(name) for name in names if parse_split(name) is None]
    if others and len(names) - len(others) > 1:
        raise DataError(f"{root} holds split folders, but also {', '.join(others)}: move these or the splits out")
    return bool(names) and not others


def parse_split(name: str) -> Split | None:
    """Return the split that a folder or a column calls `name`, None if it is none."""
    return SPLIT_ALIASES.get(name.lower())


def split_from_path(path: str) -> Split | None:
    """Return the split that a path names: `validation/part.3.tar`, `train-00000-of-00005.parquet`, `my-test-set/0.tar`.

    A folder that is called like a split decides, the innermost first; else the first such word of the file's name, then
    of the folders'.
    """
    *folders, file = path.split("/")
    words = (word for part in (file, *reversed(folders)) for word in re.split(r"[^A-Za-z]+", part))
    return next(filter(None, map(parse_split, (*reversed(folders), *words))), None)


def split_by_hash(name: str, hold_out: float) -> Split:
    """Return `test` for a share `hold_out` of all names, else `train`; adding images changes no other image's split."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "test" if draw < hold_out * 2**64 else "train"


def split_of_folder(name: str) -> Split | None:
    """Return the split that a folder in a path is called like, the innermost first; None if there is none."""
    return next(filter(None, map(parse_split, reversed(name.split("/")[:-1]))), None)


def splits_of_folders(names: Sequence[str], hold_out: float) -> dict[str, Split | None]:
    """Return the splits of images by their paths, from folders called like splits.

    Where no folder is, a share is held out. Where some are, those outside of them have none.
    """
    return hold_out_share({name: split_of_folder(name) for name in names}, hold_out)


def hold_out_share(stated: Mapping[str, Split | None], hold_out: float) -> dict[str, Split | None]:
    """Return splits by name as they are stated, but where none but `train` is, with a share of it in `test`."""
    splits = set(stated.values())
    if splits & {"val", "test"}:
        return dict(stated)
    drawn = None if splits == {None} else "train"
    return {name: split_by_hash(name, hold_out) if split == drawn else split for name, split in stated.items()}
