"""Names of exported images: those of their files, made safe for every file system and told apart."""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata

from pipeline.storage.path import is_hidden

REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\ud800-\udfff]')
"""Characters that some file system, tool or encoding refuses."""
DEVICE = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9]|lpt[0-9])(?=\.|$)")
"""Names that Windows keeps for devices, with any suffix."""
FILE_LIKE = re.compile(r"\.(?=[^.]*[A-Za-z])(?=[^.]*$)")
"""The dot of a folder's name that could be a file's: `a.jpg`, and not `v1.2`."""
PART_BYTES, PATH_BYTES = 180, 600
"""Lengths of a name and of a path: file systems take 255 bytes of a name, and a key and a suffix may follow."""
SAME_SUFFIXES = {"jpg": ("jpg", "jpeg"), "tif": ("tif", "tiff")}
"""Suffixes of one format that readers know, where there are several."""
IMAGES = "images"


class ExportNames:
    """Gives every image of an export a name: a relative path with `/`, which no other one has.

    Names differ before the suffix, in more than their case: labels lie in files of the same name, on any system. They
    differ in more than `.` and `_` as well, because a name in a WebDataset ends at its first dot.

    Example:
        ExportNames().name("street", "images/train/a.JPG", "3f0a9c0b1d2e4f56", "jpg")  # street/train/a.JPG
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def name(self, dataset: str, source: str, key: str, suffix: str) -> str:
        """Return the name of an image, given its set, file, key, and the suffix that fits its content.

        The set is the first folder. An image whose name is taken has its key at the end of it.
        """
        stem, ending = _split_suffix(source, suffix)
        stem = safe_path(dataset, stem)
        while not self._take(stem):
            stem = f"{stem}_{key}"
        return f"{stem}.{ending}"

    def _take(self, stem: str) -> bool:
        """Return False if the name is taken. Eight bytes of a hash stand for it, as pools are large."""
        alike = unicodedata.normalize("NFKC", stem).casefold().replace(".", "_")
        mark = int.from_bytes(hashlib.sha256(alike.encode()).digest()[:8], "big")
        is_free = mark not in self._taken
        self._taken.add(mark)
        return is_free


def _split_suffix(source: str, suffix: str) -> tuple[str, str]:
    """Return the name without its suffix, and the suffix to write: its own if it fits the content."""
    stem, dot, own = source.rpartition(".")
    if dot and own.lower() in SAME_SUFFIXES.get(suffix, (suffix,)):
        return stem, own
    return source, suffix


def safe_path(dataset: str, stem: str) -> str:
    """Return the path of a file in the folder of its set, without what leads elsewhere or what readers trip over.

    Folders called `images` are left out: in YOLO's layout the last one in a path is replaced by `labels`.
    """
    parts = [part for part in re.split(r"[/\\]+", stem) if part.strip(". ")] or ["_"]
    folders = [part for part in parts[:-1] if part.lower() != IMAGES]
    first = f"{dataset}_" if dataset.lower() == IMAGES else dataset
    path = [*(FILE_LIKE.sub("_", _safe_part(folder)) for folder in (first, *folders) if folder), _safe_part(parts[-1])]
    while len(path) > 2 and len("/".join(path).encode()) > PATH_BYTES:
        del path[1]
    return posixpath.join(*path)


def _safe_part(name: str) -> str:
    """Return the name of a file or folder with `_` for what is refused, shortened, neither hidden nor a device's."""
    name = REFUSED.sub("_", unicodedata.normalize("NFC", name)).strip(" ").rstrip(". ")
    name = name.encode()[:PART_BYTES].decode(errors="ignore").rstrip(". ") or "_"
    if DEVICE.match(name) or is_hidden(name):
        name = f"_{name}"
    return name
