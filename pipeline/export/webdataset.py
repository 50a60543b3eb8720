"""WebDataset tars: `<key>.jpg` with `<key>.<head>.json` (labels that are short lists) or `<key>.<head>.npz` (rasters).

A label's arrays have the names that the task's `label.py` states, with null for NaN in JSON; the classes are in
`export.json`.
`webdataset.WebDataset(...).decode("rgb")` reads the tars.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export import BaseWriter, ExportSample
from pipeline.stores.labels import Label, Value

IN_JSON = ("classification", "multilabel", "detection")
"""Tasks whose labels are short lists."""
MAX_SAMPLES, MAX_BYTES = 1000, 500_000_000
"""Limits of a tar: the next one begins when either is reached."""


class Writer(BaseWriter):
    """Writes labels of every task without loss."""

    supported = {}  # noqa: RUF012 - a constant
    other_tasks = ""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._tars = self._samples = self._bytes = 0
        for head, label in heads.items():
            self.locations[head] = f"<key>.{head}.{'json' if label.space.task in IN_JSON else 'npz'}"
        self._open_tar()

    def _open_tar(self) -> None:
        self.files.close()
        path = self.folder / f"shard-{self._tars:06d}.tar"
        self._tar = self.files.enter_context(tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT))
        self._tars, self._samples, self._bytes = self._tars + 1, 0, 0

    def add(self, sample: ExportSample) -> None:
        if self._samples >= MAX_SAMPLES or self._bytes >= MAX_BYTES:
            self._open_tar()
        self._samples += 1
        self._add_member(sample.file_name, sample.data)
        for head, value in sample.values.items():
            in_json = self.heads[head].space.task in IN_JSON
            data = _to_json(value) if in_json else _to_npz(value)
            self._add_member(f"{sample.key}.{head}.{'json' if in_json else 'npz'}", data)

    def _add_member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self._bytes += len(data)


def _to_json(value: Value) -> bytes:
    return json.dumps({name: _to_list(array) for name, array in value.items()}, allow_nan=False).encode()


def _to_list(array: NDArray[Any]) -> list[Any]:
    entries = array.astype(object)
    entries[np.isnan(array)] = None
    return list(entries.tolist())


def _to_npz(value: Value) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **value)
    return file.getvalue()
