"""Load what is in a root into the tables, and keep them up to date on a thread while a run adds more."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Set

import duckdb

from browser.catalogue import CataloguedShard, CataloguedStore, read_catalogue
from browser.label_files import read_scalars
from browser.newest_run import read_newest_run
from browser.tables import Store, Tables
from pipeline.errors import DataError, MustError
from pipeline.storage.root import Root, StoredFile
from pipeline.stores.labels import APPLICABILITY, REMEDY, Label
from pipeline.stores.naming import is_student
from pipeline.stores.rejections import NO_REJECTIONS, read_rejections
from pipeline.stores.rejections import PATH as REJECTIONS_PATH

INTERVAL_S = 2.0
"""Between refreshes of a root on this machine."""
REMOTE_INTERVAL_S = 20.0
"""Between refreshes of a root elsewhere: each is a request per thousand files."""


@dataclasses.dataclass
class LoadProgress:
    """Counts of the files found and of those in the tables, and the files that could not be read."""

    loaded: int = 0
    found: int = 0
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    """By file, what is wrong with it."""


class Loading:
    """The tables of a root, kept up to date. Raises ConfigError if the root has nothing to show.

    Example:
        loading = Loading(Root.of("must-root"))
        loading.refresh()
    """

    def __init__(self, root: Root) -> None:
        self.root, self.tables, self.progress = root, Tables(), LoadProgress()
        self.stores: dict[str, Store] = {}
        self.catalogue = read_catalogue(root)
        self.newest_run = read_newest_run(root)
        self._images: dict[tuple[str, str, str], range] = {}
        self._shards: list[CataloguedShard] = []
        self._starts: list[int] = []
        """The id of the first image of each of these shards, ascending."""
        self._by_address: dict[str, list[range]] = collections.defaultdict(list)
        self._files: dict[str, dict[str, StoredFile]] = collections.defaultdict(dict)
        self._rejections, self._stamp = NO_REJECTIONS, (-1, 0)
        self._closed = threading.Event()

    def refresh(self) -> None:
        """Load what is new in the root, and drop what is gone."""
        self.catalogue = read_catalogue(self.root, self.catalogue)
        self.newest_run = read_newest_run(self.root, self.newest_run)
        new_shards = [shard for shard in self.catalogue.images if self._key(shard) not in self._images]
        self.progress.found = len(self.catalogue.images) + sum(len(store.files) for store in self.catalogue.stores)
        for shard in itertools.takewhile(self._is_open, new_shards):
            self._add_images(shard)
        self._drop_images(self._images.keys() - {self._key(shard) for shard in self.catalogue.images})
        self.tables.flush()  # images are shown before their labels are read
        for store in self.catalogue.stores:
            self._drop_stale(store)
        for store, address, file in itertools.takewhile(self._is_open, self._new_label_files()):
            self._add_labels(store, address, file)
        self.refresh_rejections()
        self.tables.flush()
        for maker, newest in self.newest_stores().items():
            self.tables.add_alias(newest, maker)
        self._count_teachers()
        self.progress.loaded = self.progress.found

    def _count_teachers(self) -> None:
        """Count for each shard the teachers whose newest labels of it are loaded."""
        teachers = list(self.newest_teachers().values())
        counts = dict.fromkeys(self._by_address, 0)
        for store in teachers:
            damaged = self.damaged_files(store.name)
            for address in self._files[store.name]:
                if address in counts and address not in damaged:
                    counts[address] += 1
        self.tables.set_teachers(teachers, counts)

    def _key(self, shard: CataloguedShard) -> tuple[str, str, str]:
        return shard.dataset, shard.split, shard.shard.sha256

    def _add_images(self, shard: CataloguedShard) -> None:
        try:
            ids = self.tables.add_images(shard)
        except MustError as error:  # tried again at the next refresh: a run may mend it
            self.progress.damaged[str(shard.shard.index)] = str(error)
            return
        self.progress.damaged.pop(str(shard.shard.index), None)
        self._images[self._key(shard)] = ids
        if ids:
            self._shards.append(shard)
            self._starts.append(ids.start)  # after the shard: other threads look up the start first
            for name in self._stores_of(shard.shard.address):
                self._forget_labels(name, shard.shard.address)
            self._by_address[shard.shard.address].append(ids)
            self.progress.loaded += 1

    def _drop_images(self, gone: Set[tuple[str, str, str]]) -> None:
        """Drop the images of shards that are no longer in the newest artifacts of their sets, with their labels."""
        if not gone:
            return
        self.tables.flush()
        addresses = {ids: address for address, shards in self._by_address.items() for ids in shards}
        for key in gone:
            ids = self._images.pop(key)
            if ids:
                for name in self._stores_of(addresses[ids]):
                    self._forget_labels(name, addresses[ids])
                self._by_address[addresses[ids]].remove(ids)
                self.tables.delete_images(ids)

    def _stores_of(self, address: str) -> list[str]:
        """Return the stores whose labels of the images at an address are loaded."""
        return [name for name, files in self._files.items() if address in files]

    def _forget_labels(self, store: str, address: str) -> None:
        """Drop the labels in a store of the images at an address; if they stay, their labels are loaded again."""
        self.progress.damaged.pop(str(self._files[store].pop(address)), None)
        for ids in self._by_address[address] if store in self.stores else ():
            self.tables.delete_labels(self.stores[store], ids)

    def _new_label_files(self) -> Iterator[tuple[CataloguedStore, str, StoredFile]]:
        """Yield (store, address, file) of label files that are not loaded, shard by shard, with all stores of each."""
        for address in [shard.shard.address for shard in self.catalogue.images]:
            for store in self.catalogue.stores:
                file = store.files.get(address)
                if file is not None and address not in self._files[store.name] and address in self._by_address:
                    yield store, address, file

    def _add_labels(self, found: CataloguedStore, address: str, file: StoredFile) -> None:
        self._files[found.name][address] = file
        try:
            label, labels = read_scalars(file)
            if found.name not in self.stores:
                has_applicability = APPLICABILITY.name in labels.column_names
                self.stores[found.name] = self.tables.add_store(Store(found.name, label, has_applicability))
            store = self.stores[found.name]
            shards = self._by_address[address]
            _check_fits(file, label, len(labels), store, len(shards[0]))
            self.tables.add_labels(store, shards, labels)
        except MustError as error:
            self.progress.damaged[str(file)] = str(error)
            return
        self.progress.loaded += 1

    def _drop_stale(self, found: CataloguedStore) -> None:
        """Drop labels whose file is gone or was replaced."""
        loaded = self._files[found.name]
        for address, file in list(loaded.items()):
            now = found.files.get(address)
            if now is not None and is_same_file(file, now):
                loaded[address] = now  # with its hash, once the run that made it is over
                continue
            self._forget_labels(found.name, address)

    def refresh_until_closed(self) -> None:
        """Refresh again and again, until `close`."""
        interval = INTERVAL_S if self.root.local else REMOTE_INTERVAL_S
        while True:
            try:
                self.refresh()
                self.progress.damaged.pop(str(self.root), None)
            except (MustError, OSError) as error:
                self.progress.damaged[str(self.root)] = str(error)
            except duckdb.Error as error:  # rows that were being inserted are lost, and no later refresh adds them
                self.progress.damaged["the page's own tables"] = f"{error} Nothing new comes in: start it again."
                return
            if self._closed.wait(interval):
                return

    def _is_open(self, _: object) -> bool:
        return not self._closed.is_set()

    def close(self) -> None:
        """End refreshing; a refresh that is running ends soon."""
        self._closed.set()

    def refresh_rejections(self) -> None:
        """Load the list of rejections if it changed."""
        stamp = (self.root / REJECTIONS_PATH).stamp()
        if stamp != self._stamp:
            self._rejections = read_rejections(self.root)
            self.tables.replace_rejections(self._rejections)
            self._stamp = stamp

    def rejected_keys(self, store: str | None) -> set[str]:
        """Return the keys of images whose labels in a store are rejected; of rejected images for None."""
        stores = self._rejections.column("store").to_pylist()
        keys = self._rejections.column("key").to_pylist()
        return {key for key, other in zip(keys, stores, strict=True) if other == store}

    def label_files(self, store: str) -> list[StoredFile]:
        """Return the label files of a store."""
        return list(self._files[store].values())

    def damaged_files(self, store: str) -> dict[str, str]:
        """Return what is wrong with label files of a store, by the address of their image shard."""
        files = dict(self._files[store])
        return {address: wrong for address, file in files.items() if (wrong := self.progress.damaged.get(str(file)))}

    def common_shards(self, one: str, other: str) -> dict[range, tuple[StoredFile, StoredFile]]:
        """Return the label files of the image shards (the ids of their images) that two stores both have labels of."""
        left, right = dict(self._files[one]), dict(self._files[other])  # another thread may add to them
        return {
            ids: (left[address], right[address])
            for address in left.keys() & right.keys()
            for ids in self._by_address[address]
        }

    def newest_stores(self) -> dict[str, Store]:
        """Return the newest label store of each teacher and student's head."""
        stores = dict(self.stores)
        found = [store for store in self.catalogue.stores if store.name in stores and not store.is_true]
        return {store.maker: stores[store.name] for store in reversed(found)}

    def newest_teachers(self) -> dict[str, Store]:
        """Return the newest label store of each teacher."""
        return {maker: store for maker, store in self.newest_stores().items() if not is_student(maker)}

    def true_stores(self) -> set[str]:
        """Return the names of the stores of true labels."""
        return {store.name for store in self.catalogue.stores if store.is_true}

    def first_threshold(self, store: Store) -> tuple[float, bool]:
        """Return the threshold to begin with: that of the newest run's recipe, and True, or the task's own."""
        run, task = self.newest_run, store.label.space.task
        makers = [found.maker for found in self.catalogue.stores if found.name == store.name and not found.is_true]
        threshold = run.threshold(makers[0], task) if run and makers else None
        return (store.label.default_threshold, False) if threshold is None else (threshold, True)

    def locate(self, image: int) -> tuple[CataloguedShard, int]:
        """Return (image shard, row in it) of an image. Raises KeyError if there is no image of this id."""
        place = bisect.bisect_right(self._starts, image) - 1
        if place < 0 or image not in self._images.get(self._key(self._shards[place]), ()):
            raise KeyError(image)
        return self._shards[place], image - self._starts[place]

    def label_file(self, store: str, image: int) -> StoredFile | None:
        """Return the label file of a store that covers an image, None if it has none."""
        shard, _ = self.locate(image)
        return self._files[store].get(shard.shard.address)


def _check_fits(file: StoredFile, label: Label, rows: int, store: Store, images: int) -> None:
    """Raise DataError unless a label file has a row per image of its shard, and the label space of its store."""
    if rows != images:
        raise DataError(f"{file}: has {rows} rows for the {images} images of its shard. {REMEDY}")
    if label.space != store.label.space:
        raise DataError(f"{file}: its classes are not those of other files of {store.name}. {REMEDY}")


def is_same_file(one: StoredFile, other: StoredFile) -> bool:
    """Return True if two files of a root are one. A hash that is not known yet says nothing against it."""
    same_hash = one.sha256 == other.sha256 or "" in (one.sha256, other.sha256)
    return same_hash and (str(one), one.size) == (str(other), other.size)
