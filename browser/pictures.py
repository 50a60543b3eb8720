"""Images and labels as the page shows them: drawn by the tasks, as in the report, and read off the shards."""

from __future__ import annotations

import collections
import functools
import io
import threading
from typing import Any

import pyarrow as pa
from PIL import Image

from browser.loading import Loading
from browser.tables import Store
from pipeline.data.decode import decode_image
from pipeline.errors import DataError
from pipeline.storage.root import StoredFile, hash_if_exists
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import Row, Value, open_labels
from tasks.drawing import caption, thumbnail

QUALITY = 85
HELD = 32 << 20
"""Bytes of label rows that are kept for the next picture."""
OPENED = 64
"""Image shards whose indexes are kept."""
PALE = 0.7
"""How far the image of a missing label fades into grey."""
Group = tuple[int, pa.Table]
"""The number of the first row of a row group in its file, and its rows."""


class Pictures:
    """Pictures of the images and labels of a root. Any thread may ask."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._groups: collections.OrderedDict[str, dict[int, pa.Table]] = collections.OrderedDict()
        """By file, the row groups that were read last, by their first rows."""
        self._opened = functools.lru_cache(OPENED)(ImageShard)
        self._sound: set[str] = set()
        self._lock = threading.Lock()

    def image(self, number: int, side: int) -> Image.Image:
        """The upright image, `side` pixels on its longer side, or as large as it is."""
        images, row = self.loading.place(number)
        shard = self._opened(images.shard.tar, images.shard.index)  # which remembers its index: only some of them do
        return thumbnail(decode_image(shard.read(row), at_least=(side, side)), side)

    def row(self, store: Store, number: int) -> Row | None:
        """The row of a label file that an image has in a store; None if the store has no file of its shard."""
        file = self.loading.file(store.name, number)
        if file is None:
            return None
        self._check(file)
        _, place = self.loading.place(number)
        return self._read(file, place)

    def _check(self, file: StoredFile) -> None:
        """Raise DataError if a file is not what it was when it was made. Each is looked at once."""
        if str(file) not in self._sound:
            check_hash(file)
            self._sound.add(str(file))

    def _read(self, file: StoredFile, row: int) -> Row:
        held = self._held(str(file), row)
        if held is None:
            held = open_labels(file, lambda parquet: read_group(parquet, row))
            self._hold(str(file), held)
        start, table = held
        found: Row = table.slice(row - start, 1).to_pylist()[0]
        return found

    def _held(self, file: str, row: int) -> Group | None:
        with self._lock:
            for start, table in self._groups.get(file, {}).items():
                if start <= row < start + len(table):
                    self._groups.move_to_end(file)
                    return start, table
        return None

    def _hold(self, file: str, group: Group) -> None:
        start, table = group
        with self._lock:
            self._groups.setdefault(file, {})[start] = table
            self._groups.move_to_end(file)
            while len(self._groups) > 1 and self._size() > HELD:
                self._groups.popitem(last=False)

    def _size(self) -> int:
        return sum(table.nbytes for groups in self._groups.values() for table in groups.values())

    def value(self, store: Store, number: int, threshold: float) -> Value | None:
        """The label of an image in a store with the threshold applied, None if it has none."""
        row = self.row(store, number)
        return None if row is None or row["status"] != "ok" else decoded(store, row, threshold)

    def drawn(self, number: int, store: Store | None, threshold: float, side: int) -> Image.Image:
        """The image with the label of a store on it; pale where there is none, and where that is damaged it says so."""
        image = self.image(number, side)
        if store is None:
            return image
        pale = Image.blend(image, Image.new("RGB", image.size, "grey"), PALE)
        try:
            value = self.value(store, number, threshold)
        except DataError as error:
            self.loading.progress.damaged[str(self.loading.file(store.name, number))] = str(error)
            caption(pale, "damaged")
            return pale
        return store.label.draw(image, value) if value else pale


def read_group(parquet: Any, row: int) -> Group:
    """The row group of a file that a row is in, and its first row."""
    start = 0
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        if row < start + count:
            return start, parquet.read_row_group(group)
        start += count
    raise KeyError(row)


def decoded(store: Store, row: Row, threshold: float) -> Value:
    """The label in a row. DataError names key and store of one that is damaged."""
    try:
        return store.label.decode(row, threshold)
    except ValueError as error:
        raise DataError(f"{store.name}: the label of {row['key']} is damaged ({error}).") from error


def check_hash(file: StoredFile) -> None:
    """DataError if the file's bytes are not those that were made, as far as their hash is known. Files that are
    elsewhere are checked when they come here.
    """
    if file.sha256 and file.path.local and hash_if_exists(file.path) != file.sha256:
        raise DataError(f"{file}: its bytes changed since it was made. `must artifacts verify --repair` takes it out.")


def as_jpeg(image: Image.Image) -> bytes:
    """The bytes of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
