"""WebDataset tars: `<name>.jpg` with `<name>.<head>.json` (labels of short lists) or `<name>.<head>.npz` (rasters).

`<name>.json` says which set and file the image is from, and under `labels` who made the label of each head. Dots in
names become `_`, because a name ends at the first one. Tars are `train-000000.tar`, of held-out images
`val-000000.tar`.

A label's arrays have the names that the task's `label.py` states, with null for NaN and text for masks in JSON;
the classes are in `export.json`.
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

from pipeline.export import TRAIN, VAL, BaseWriter, ExportSample
from pipeline.stores.labels import Label, Value

IN_JSON = ("classification", "multilabel", "detection", "masks", "keypoints")
"""Tasks whose labels are short lists."""
MAX_SAMPLES, MAX_BYTES = 1000, 500_000_000
"""Limits of a tar: the next one begins when either is reached."""


class Writer(BaseWriter):
    """Writes labels of every task without loss."""

    supported = {}  # noqa: RUF012 - a constant
    other_tasks = ""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self._tars = dict.fromkeys((TRAIN, VAL), 0)
        self._samples = self._bytes = 0
        for head, label in heads.items():
            self.locations[head] = f"<name>.{head}.{'json' if label.space.task in IN_JSON else 'npz'}"
        self._open_tar(TRAIN)

    def _open_tar(self, split: str) -> None:
        self.files.close()
        path = self.folder / f"{split}-{self._tars[split]:06d}.tar"
        self._tar = self.files.enter_context(tarfile.TarFile(path, "w", format=tarfile.PAX_FORMAT))
        self._split, self._samples, self._bytes = split, 0, 0
        self._tars[split] += 1

    def add(self, sample: ExportSample) -> None:
        if self._samples >= MAX_SAMPLES or self._bytes >= MAX_BYTES or sample.split != self._split:
            self._open_tar(sample.split)
        self._samples += 1
        folders, _, base = sample.stem.rpartition("/")
        stem = f"{folders}/{base.replace('.', '_')}".lstrip("/")
        self._add_member(f"{stem}.{sample.suffix}", sample.data)
        labels = {head: sample.origin(head) for head in sample.values}
        self._add_member(f"{stem}.json", json.dumps({**sample.about(), "labels": labels}).encode())
        for head, value in sample.values.items():
            in_json = self.heads[head].space.task in IN_JSON
            data = _to_json(value) if in_json else _to_npz(value)
            self._add_member(f"{stem}.{head}.{'json' if in_json else 'npz'}", data)

    def _add_member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self._bytes += len(data)


def _to_json(value: Value) -> bytes:
    return json.dumps({name: _to_list(array) for name, array in value.items()}, allow_nan=False).encode()


def _to_list(array: NDArray[Any]) -> list[Any]:
    if array.dtype == object:
        return [text.decode("ascii") for text in array.tolist()]
    entries = array.astype(object)
    entries[np.isnan(array)] = None
    return list(entries.tolist())


def _to_npz(value: Value) -> bytes:
    file = io.BytesIO()
    plain = {name: array.astype(np.bytes_) if array.dtype == object else array for name, array in value.items()}
    np.savez_compressed(file, allow_pickle=False, **plain)
    return file.getvalue()
