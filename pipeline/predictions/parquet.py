"""The label store's own columns: `<head>.parquet`, a row for each image.

Before the columns of the task are `key`, `status`, `reason` and `confidence`, as in a label store, and `source`, the
image's path, with `image_width` and `image_height` in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from pipeline.export import BELOW_THRESHOLD, BaseWriter, ExportSample
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import Label

IMAGE_COLUMNS = (
    pa.field("source", pa.string(), metadata={"about": "the image's path as it was given"}),
    pa.field("image_width", pa.int32(), metadata={"about": "of the upright image, pixels"}),
    pa.field("image_height", pa.int32(), metadata={"about": "of the upright image, pixels"}),
)


class Writer(BaseWriter):
    """Encodes labels of every task. An image that no class of a classification reaches the threshold for has the status
    `none`.
    """

    supported = {}  # noqa: RUF012 - a constant
    other_tasks = ""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._writers: dict[str, LabelWriter] = {}
        for head, label in heads.items():
            self.locations[head] = f"{head}.parquet"
            metadata = store_metadata(label, "", "")
            self._writers[head] = LabelWriter(folder / f"{head}.parquet", label, metadata, IMAGE_COLUMNS)
            self.files.callback(self._writers[head].discard)

    def add(self, sample: ExportSample) -> None:
        about = dict(zip(("source", "image_width", "image_height"), (sample.source, *sample.size), strict=True))
        for head, value in sample.values.items():
            label = self.heads[head]
            if label.space.task == "classification" and not value["probs"].any():
                self.leave_out(head, BELOW_THRESHOLD)
                self._writers[head].add(sample.key, about, "none", BELOW_THRESHOLD)
            else:
                self._writers[head].add(sample.key, {**label.encode(value), **about})

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.close()
