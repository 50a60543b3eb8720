"""Images and labels as the page shows them: drawn by the tasks, as in the report, and read off the shards."""

from __future__ import annotations

import collections
import io
import threading
from typing import Any

import pyarrow as pa
from PIL import Image

from browser.loading import Loading
from browser.tables import Store
from pipeline.decode import decode
from pipeline.errors import DataError
from pipeline.labels import Row, Value, open_labels
from pipeline.roots import StoredFile, hash_place
from tasks.colours import caption
from tasks.pictures import thumbnail

QUALITY = 85
HELD = 64 << 20
"""Bytes of label rows that are kept for the next picture."""
PALE = 0.7
"""How far the image of a missing label fades into grey."""


class Pictures:
    """Pictures of the images and labels of a root. Any thread may ask."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._groups: collections.OrderedDict[tuple[str, int], pa.Table] = collections.OrderedDict()
        self._sound: set[str] = set()
        self._lock = threading.Lock()

    def image(self, number: int, side: int) -> Image.Image:
        """The upright image, `side` pixels on its longer side, or as large as it is."""
        images, row = self.loading.place(number)
        return thumbnail(decode(images.shard.read(row), at_least=(side, side)), side)

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
        def find(parquet: Any) -> tuple[int, int]:
            """The row group that a row is in, and the row's place there."""
            place = row
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                if place < count:
                    return group, place
                place -= count
            raise KeyError(row)

        def read(parquet: Any) -> Row:
            group, place = find(parquet)
            table = self._held(str(file), group)
            if table is None:
                table = parquet.read_row_group(group)
                self._hold(str(file), group, table)
            found: Row = table.slice(place, 1).to_pylist()[0]
            return found

        return open_labels(file, read)

    def _held(self, file: str, group: int) -> pa.Table | None:
        with self._lock:
            table = self._groups.get((file, group))
            if table is not None:
                self._groups.move_to_end((file, group))
            return table

    def _hold(self, file: str, group: int, table: pa.Table) -> None:
        with self._lock:
            self._groups[file, group] = table
            while len(self._groups) > 1 and sum(each.nbytes for each in self._groups.values()) > HELD:
                self._groups.popitem(last=False)

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
    if file.sha256 and file.place.local and hash_place(file.place) != file.sha256:
        raise DataError(f"{file}: its bytes changed since it was made. `must artifacts verify --repair` takes it out.")


def as_jpeg(image: Image.Image) -> bytes:
    """The bytes of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
