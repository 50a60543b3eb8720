"""Find the images of a set by names that other programs gave them, whatever folders those name in front."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from pipeline.errors import DataError
from pipeline.storage.path import StoragePath


class ImageIndex:
    """Images below a folder, found by the ends of names. A name never leads anywhere else.

    Example:
        index = ImageIndex(images_under(root), root)
        index.find("/data/upload/3/street/a.jpg")  # root/street/a.jpg, or root/a.jpg
    """

    def __init__(self, images: Iterable[StoragePath], root: StoragePath) -> None:
        self.root = root
        self._by_name: dict[str, list[tuple[list[str], StoragePath]]] = collections.defaultdict(list)
        self.images = list(images)
        for image in self.images:
            path = image.relative_to(root).split("/")
            self._by_name[path[-1]].append((path, image))

    def find(self, *names: str, loose: bool = True) -> StoragePath:
        """Return the image of the first of the names that one has. Raises DataError if none has, or several do.

        Either path is to be the end of the other, or if `loose` they may have the file's name alone in common.
        """
        for name in names:
            for written in dict.fromkeys((name, unquote(name))):
                if found := self._find(re.split(r"[/\\]+", written), loose):
                    return found
        raise DataError(f"the name {names[0]!r} is of no image in {self.root}")

    def _find(self, path: Sequence[str], loose: bool) -> StoragePath | None:
        found = [
            (shared, image)
            for each, image in self._by_name.get(path[-1], ())
            if (shared := _shared_end(path, each)) in (len(path), len(each)) or loose
        ]
        most = max((shared for shared, _ in found), default=0)
        best = [image for shared, image in found if shared == most]
        if len(best) > 1:
            raise DataError(f"the name {'/'.join(path)!r} may be {best[0]} or {best[1]}")
        return best[0] if best else None


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of names at the end that two paths have in common."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
