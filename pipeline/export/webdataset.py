"""WebDataset tars: `<key>.jpg` with `<key>.<head>.json` (classification, detection) or `<key>.<head>.npz` (the rest).

The arrays of a label are under their own names, as a task's `label.py` states them; `export.json` has the classes.
`webdataset.WebDataset(...).decode("rgb")` reads them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.export import BaseWriter, ExportSample
from pipeline.stores.labels import Label, Value

IN_JSON = ("classification", "detection")
"""Tasks whose labels are short lists."""
MOST_SAMPLES, MOST_BYTES = 1000, 500_000_000
"""A tar that reaches one of them is the last one's end."""


class Writer(BaseWriter):
    """Holds every label as it is."""

    lost = {}  # noqa: RUF012 - a constant
    others = ""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._tars = self._samples = self._bytes = 0
        for head, label in heads.items():
            self.places[head] = f"<key>.{head}.{'json' if label.space.task in IN_JSON else 'npz'}"
        self._open()

    def _open(self) -> None:
        self.files.close()
        path = self.folder / f"shard-{self._tars:06d}.tar"
        self._tar = self.files.enter_context(tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT))
        self._tars, self._samples, self._bytes = self._tars + 1, 0, 0

    def add(self, sample: ExportSample) -> None:
        if self._samples >= MOST_SAMPLES or self._bytes >= MOST_BYTES:
            self._open()
        self._samples += 1
        self._member(sample.file_name, sample.data)
        for head, value in sample.values.items():
            in_json = self.heads[head].space.task in IN_JSON
            data = _as_json(value) if in_json else _as_arrays(value)
            self._member(f"{sample.key}.{head}.{'json' if in_json else 'npz'}", data)

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self._bytes += len(data)


def _as_json(value: Value) -> bytes:
    return json.dumps({name: array.tolist() for name, array in value.items()}, allow_nan=False).encode()


def _as_arrays(value: Value) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **value)
    return file.getvalue()
