"""Read images and labels from the shards, and draw them as in the report."""

from __future__ import annotations

import collections
import functools
import io
import threading

import pyarrow as pa
from PIL import Image

from browser.label_files import decode_row, read_row_group
from browser.loading import Loading
from browser.tables import Store
from pipeline.data.bands import decode_picture
from pipeline.errors import DataError
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import Row, Value
from tasks.drawing import caption, thumbnail

QUALITY = 85
CACHED_BYTES = 32 << 20
"""Of label rows that are kept for the next picture."""
CACHED_SHARDS = 64
"""Image shards whose indexes are kept."""
FADE = 0.7
"""Share of grey in the image of a missing label."""


class Pictures:
    """Pictures of the images and labels of a root, for any thread."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._groups: collections.OrderedDict[str, dict[range, pa.Table]] = collections.OrderedDict()
        """By file, the row groups that were read last, by the numbers of their rows."""
        self._open = functools.lru_cache(CACHED_SHARDS)(ImageShard)
        self._checked: set[str] = set()
        self._lock = threading.Lock()

    def image(self, image: int, side: int) -> Image.Image:
        """Return the upright image, its longer side scaled to `side` pixels."""
        found, row = self.loading.locate(image)
        shard = self._open(found.shard.tar, found.shard.index)  # an open shard keeps its index in memory
        return thumbnail(decode_picture(shard.read(row), (side, side), found.channels), side)

    def row(self, store: Store, image: int) -> Row | None:
        """Return the row of an image in a store's label file; None if the store has no file of its shard."""
        file = self.loading.label_file(store.name, image)
        if file is None:
            return None
        if file.sha256 and str(file) not in self._checked:
            file.check()
            self._checked.add(str(file))
        _, row = self.loading.locate(image)
        return self._read(file, row)

    def _read(self, file: StoredFile, row: int) -> Row:
        name = str(file)
        with self._lock:
            found = next((group for group in self._groups.get(name, {}).items() if row in group[0]), None)
            if found:
                self._groups.move_to_end(name)
        if found is None:
            found = read_row_group(file, row)
            self._cache(name, *found)
        rows, table = found
        label: Row = table.slice(row - rows.start, 1).to_pylist()[0]
        return label

    def _cache(self, file: str, rows: range, table: pa.Table) -> None:
        with self._lock:
            self._groups.setdefault(file, {})[rows] = table
            self._groups.move_to_end(file)
            while len(self._groups) > 1 and self._cached_bytes() > CACHED_BYTES:
                self._groups.popitem(last=False)

    def _cached_bytes(self) -> int:
        return sum(table.nbytes for groups in self._groups.values() for table in groups.values())

    def value(self, store: Store, image: int, threshold: float) -> Value | None:
        """Return the label of an image in a store with the threshold applied, None if it has none."""
        row = self.row(store, image)
        return None if row is None or row["status"] != "ok" else decode_row(store, row, threshold)

    def draw(self, image: int, store: Store | None, threshold: float, side: int) -> tuple[Image.Image, bool]:
        """Return the image with its label in a store, and True if it stays so.

        The image is pale if it has no label, and marked if the label is damaged: a run may still add or mend it.
        """
        picture = self.image(image, side)
        if store is None:
            return picture, True
        pale = Image.blend(picture, Image.new("RGB", picture.size, "grey"), FADE)
        try:
            value = self.value(store, image, threshold)
        except DataError as error:
            self.loading.progress.damaged[str(self.loading.label_file(store.name, image))] = str(error)
            caption(pale, "damaged")
            return pale, False
        return (store.label.draw(picture, value), True) if value else (pale, False)


def as_jpeg(image: Image.Image) -> bytes:
    """Return an image as the bytes of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
