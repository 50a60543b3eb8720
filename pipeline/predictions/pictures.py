"""Pictures: each image with its label drawn on it, as `<head>/<image>.jpg`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from pipeline.data.bands import decode_picture
from pipeline.export import BaseWriter, ExportSample
from pipeline.stores.labels import Label

MOST_SIDE = 1600
"""Longer side of a picture in pixels; larger images are drawn smaller."""


class Writer(BaseWriter):
    """Draws labels of every task: boxes with classes and probabilities, masks in colors, depth from dark to light."""

    supported = {}  # noqa: RUF012 - a constant
    other_tasks = "all but what can be seen"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        for head in heads:
            self.locations[head] = f"{head}/"
            (folder / head).mkdir()

    def add(self, sample: ExportSample) -> None:
        scale = min(1.0, MOST_SIDE / max(sample.size))
        size = (max(1, round(sample.size[0] * scale)), max(1, round(sample.size[1] * scale)))
        image = decode_picture(sample.data, size, sample.channels)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        for head, value in sample.values.items():
            buffer = io.BytesIO()
            self.heads[head].draw(image, value).save(buffer, "JPEG", quality=90)
            self.write(f"{head}/{sample.stem}.jpg", buffer.getvalue())
