"""Image files that a data file names. Such names are not trusted: they lead only into folders that the recipe names."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from pipeline.errors import DataError
from pipeline.sources._files import read_image
from pipeline.storage.path import URL, StoragePath, printable

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Control signs."""


class NamedFiles:
    """Files below `folder`, which names are relative to, or below one of the folders `others`.

    Links among them may lead to `root` as well, the folder of the whole set.

    Example:
        files = NamedFiles(root / "images", [], root)
        data = files.read(files.find("train/a.jpg"))  # "../../a.jpg", "/a.jpg", "http://..." raise DataError
    """

    def __init__(self, folder: StoragePath, others: Sequence[StoragePath], root: StoragePath) -> None:
        self.folder, self.folders = folder, list(dict.fromkeys([folder, *others]))
        self._link_ends = dict.fromkeys([*self.folders, root])

    def find(self, name: str) -> StoragePath:
        """Return the path of a name, in which backslashes divide folders as well. Nothing is opened.

        Absolute names and URLs have to begin with one of the folders. Raises DataError for a name that leads elsewhere.
        """
        file = self._path(name.replace("\\", "/")) if _is_possible(name) else None
        if file is None or file == self.folder or not self._is_inside(file):
            raise DataError(f"the name {name!r} leads to no file in {_places(self.folders)}")
        return file

    def read(self, file: StoragePath) -> bytes:
        """Return the bytes of a file that `find` returned. Raises DataError if it is a link to somewhere else."""
        if file.local:
            end = os.path.realpath(file.path)
            if not any(_is_below(end, folder) for folder in self._real_folders):
                raise DataError(f"{file} is a link to {printable(end)}, which is not in {_places(self._link_ends)}")
        return read_image(file)

    def _path(self, name: str) -> StoragePath | None:
        """Return the path of a relative name, or of one that begins with one of the folders; None for others."""
        if not (URL.match(name) or os.path.isabs(name)):
            return _join(self.folder, name)
        starts = {each: each.path if each.local else each.fs.unstrip_protocol(each.path) for each in self.folders}
        found = (_join(each, name.removeprefix(start)) for each, start in starts.items() if _is_below(name, start))
        return next(found, None)

    def _is_inside(self, file: StoragePath) -> bool:
        if _site(file) and (CONTROL.search(file.path) or ".." in re.split(r"[/\\]", unquote(file.path))):
            return False  # a web server reads %2e%2e as .., and a client leaves control signs out
        return any(file.fs == each.fs and _is_below(file.path, each.path) for each in self.folders)

    @functools.cached_property
    def _real_folders(self) -> list[str]:
        return [os.path.realpath(each.path) for each in self._link_ends if each.local]


def _places(folders: Iterable[StoragePath]) -> str:
    return f"{' or '.join(map(str, folders))}; the key `elsewhere` of the set names other folders"


def _join(folder: StoragePath, name: str) -> StoragePath:
    site = _site(folder)
    return StoragePath(folder.fs, site + posixpath.normpath(f"{folder.path.removeprefix(site)}/{name}"))


def _site(path: StoragePath) -> str:
    """Return what of a path on a web server is no path: `https://`; nothing for others."""
    return "".join(path.path.rpartition("://")[:2])


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")


def _is_possible(name: str) -> bool:
    """Return True if a file can have this name."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return "\0" not in name
