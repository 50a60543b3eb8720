"""Bringing what is in a root into the tables: what is there first, then what is new, look after look, on a thread."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import threading
from collections.abc import Iterator

import duckdb

from browser import catalogue
from browser.catalogue import ImagesFound, StoreFound
from browser.tables import Store, Tables, read_scalars
from pipeline.errors import MustError
from pipeline.storage.root import Root, StoredFile
from pipeline.stores.rejections import NOTHING, read_rejections
from pipeline.stores.rejections import PATH as REJECTED

LOOK_S = 2.0
"""Between looks at a root of this machine."""
LOOK_ELSEWHERE_S = 20.0
"""Between looks at one elsewhere: each is a request per thousand files."""


@dataclasses.dataclass
class LoadProgress:
    """How much of what was found is in the tables, and what could not be read."""

    loaded: int = 0
    found: int = 0
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    """By file, what is wrong with it."""


class Loading:
    """The tables of a root, kept up to date. Raises ConfigError if there is nothing in it."""

    def __init__(self, root: Root) -> None:
        self.root, self.tables, self.progress = root, Tables(), LoadProgress()
        self.stores: dict[str, Store] = {}
        self.found = catalogue.look(root)
        self._images: dict[tuple[str, str, str], range] = {}
        self._shards: list[ImagesFound] = []
        self._starts: list[int] = []
        """The number of the first image of each of these shards, in order."""
        self._by_address: dict[str, list[range]] = collections.defaultdict(list)
        self._files: dict[str, dict[str, StoredFile]] = collections.defaultdict(dict)
        self._rejects, self._stamp = NOTHING, (-1, 0)
        self._over = threading.Event()

    def look(self) -> None:
        """One look: what is new comes in, what is gone goes."""
        self.found = catalogue.look(self.root)
        new_images = [images for images in self.found.images if self._key(images) not in self._images]
        self.progress.found = len(self.found.images) + sum(len(store.files) for store in self.found.stores)
        for images in itertools.takewhile(self._goes_on, new_images):
            self._take(images)
        self.tables.settle()  # they are seen before their labels are read
        for found in self.found.stores:
            self._drop_gone(found)
        for found, address, file in itertools.takewhile(self._goes_on, self._new()):
            self._read(found, address, file)
        self.look_at_rejected()
        self.tables.settle()
        for maker, store in self.newest().items():
            self.tables.call(store, maker)

    def _key(self, images: ImagesFound) -> tuple[str, str, str]:
        return images.dataset, images.split, images.shard.sha256

    def _take(self, images: ImagesFound) -> None:
        try:
            ids = self.tables.add_images(images)
        except MustError as error:
            self.progress.damaged[str(images.shard.index)] = str(error)
            ids = range(0)
        self._images[self._key(images)] = ids
        if ids:
            self._shards.append(images)
            self._starts.append(ids.start)  # last: who finds it here finds the shard
            self._by_address[images.shard.address].append(ids)
            self.progress.loaded += 1

    def _new(self) -> Iterator[tuple[StoreFound, str, StoredFile]]:
        """Label files that are not in the tables, shard by shard: what belongs together comes together."""
        for address in [images.shard.address for images in self.found.images]:
            for store in self.found.stores:
                file = store.files.get(address)
                if file is not None and address not in self._files[store.name] and address in self._by_address:
                    yield store, address, file

    def _read(self, found: StoreFound, address: str, file: StoredFile) -> None:
        self._files[found.name][address] = file
        try:
            space, labels = read_scalars(file)
            store = self.stores.get(found.name) or self.tables.add_store(found.name, space)
            self.stores[found.name] = store
            ranges = [ids for ids in self._by_address[address] if len(ids) == len(labels)]
            self.tables.add_labels(store, ranges, labels)
        except MustError as error:
            self.progress.damaged[str(file)] = str(error)
            return
        self.progress.loaded += 1

    def _drop_gone(self, found: StoreFound) -> None:
        """Labels whose file is gone or another one go out."""
        there = self._files[found.name]
        for address in [address for address, file in there.items() if found.files.get(address) != file]:
            self.progress.damaged.pop(str(there.pop(address)), None)
            if found.name in self.stores:
                for ids in self._by_address[address]:
                    self.tables.forget(self.stores[found.name], ids)

    def keep_up(self) -> None:
        """Look again and again, until `close`."""
        pause = LOOK_S if self.root.local else LOOK_ELSEWHERE_S
        while True:
            try:
                self.look()
                self.progress.damaged.pop(str(self.root), None)
            except (MustError, OSError) as error:
                self.progress.damaged[str(self.root)] = str(error)
            except duckdb.Error as error:  # what was being put in is lost to them, and would be for good
                self.progress.damaged["the page's own tables"] = f"{error} Nothing new comes in: start it again."
                return
            if self._over.wait(pause):
                return

    def _goes_on(self, _: object) -> bool:
        return not self._over.is_set()

    def close(self) -> None:
        """No look any more; the one at work ends soon."""
        self._over.set()

    def look_at_rejected(self) -> None:
        """Take over the list of what is rejected, if it is another one by now."""
        stamp = self._stamp_of_rejects()
        if stamp != self._stamp:
            self._rejects = read_rejections(self.root)
            self.tables.set_rejected(self._rejects)
            self._stamp = stamp

    def _stamp_of_rejects(self) -> tuple[int, int]:
        try:
            return (self.root / REJECTED).stamp()
        except FileNotFoundError:
            return (-1, 0)

    def rejected(self, store: str | None) -> set[str]:
        """The keys of images that are rejected altogether, or whose labels in a store are."""
        stores = self._rejects.column("store").to_pylist()
        keys = self._rejects.column("key").to_pylist()
        return {key for key, other in zip(keys, stores, strict=True) if other == store}

    def files(self, store: str) -> list[StoredFile]:
        """The label files of a store."""
        return list(self._files[store].values())

    def damaged(self, store: str) -> dict[str, str]:
        """What is wrong with label files of a store, by the address of the image shard that they are about."""
        files = dict(self._files[store])
        return {address: wrong for address, file in files.items() if (wrong := self.progress.damaged.get(str(file)))}

    def shared(self, one: str, other: str) -> list[tuple[range, StoredFile, StoredFile]]:
        """The image shards that two stores have labels of, with the files of both."""
        left, right = self._files[one], self._files[other]
        return [
            (ids, left[address], right[address])
            for address in left.keys() & right.keys()
            for ids in self._by_address[address]
        ]

    def newest(self) -> dict[str, Store]:
        """By teacher, the newest of its label stores."""
        stores = dict(self.stores)
        found = [one for one in self.found.stores if one.name in stores and not one.is_true]
        return {one.maker: stores[one.name] for one in reversed(found)}

    def place(self, number: int) -> tuple[ImagesFound, int]:
        """(image shard, row in it) of an image. KeyError if there is none of this number."""
        place = bisect.bisect_right(self._starts, number) - 1
        if place < 0 or number not in self._images[self._key(self._shards[place])]:
            raise KeyError(number)
        return self._shards[place], number - self._starts[place]

    def file(self, store: str, number: int) -> StoredFile | None:
        """The label file of a store that has the label of an image, if there is one."""
        images, _ = self.place(number)
        return self._files[store].get(images.shard.address)
