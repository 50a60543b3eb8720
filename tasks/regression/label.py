"""Regression labels on disk and drawn: arrays of one or more numbers in each cell, in a unit of their own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import FULL_IMAGE, Box, cell_at, mean_where_known, on_finer_raster
from tasks.drawing import caption, colormap, enlarge
from tasks.raster import SIZE_COLUMNS, RasterLabel

PERCENTILES = (1, 99)
"""The range of known numbers of a channel that drawing and text cover."""
SHOWN = 3
"""Channels that are drawn and described."""
FEWEST_FOR_COLORS = 3
"""Channels from which on a drawing has red, green and blue for the first three."""


class TaskLabel(RasterLabel):
    """`values` (h, w, K) float32, a raster over the image; NaN = unknown, in each channel by itself.

    The classes of the label space name the K channels, and `unit` is that of their numbers. Stored as float32, without
    loss. Numbers have no score, so a threshold drops nothing. A label space that is not `aligned` is of arrays that
    don't lie over the image, as the spectrogram of a sound: mirroring and cropping the image leave them whole.
    """

    task = "regression"
    unknown = {"values": np.nan}  # noqa: RUF012 - a constant
    legend = (
        "violet is low, yellow high, and the range stands below each picture; of three channels or more, red, green "
        "and blue grow with the first three; black is unknown"
    )

    def columns(self) -> pa.Schema:
        unit = self.space.unit or "no unit stated"
        lists = pa.list_(pa.float32())
        return pa.schema(
            [
                pa.field("values", pa.binary(), metadata={"about": f"float32 (h, w, K), {unit}, NaN = unknown, zstd"}),
                *SIZE_COLUMNS,
                pa.field("mean", lists, metadata={"about": f"by channel, over known cells, {unit}"}),
                pa.field("least", lists, metadata={"about": f"by channel, smallest known number, {unit}"}),
                pa.field("most", lists, metadata={"about": f"by channel, largest known number, {unit}"}),
                pa.field("unknown", pa.float32(), metadata={"about": "share of the numbers that is unknown"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        values = value["values"]
        known = ~np.isnan(values)
        channels = [values[..., channel][known[..., channel]] for channel in range(values.shape[-1])]
        return {
            "confidence": 1.0 if known.any() else 0.0,
            "values": codecs.pack(values.astype(np.float32, copy=False)),
            "h": values.shape[0],
            "w": values.shape[1],
            "mean": [float(each.mean(dtype=np.float64)) if each.size else None for each in channels],
            "least": [float(each.min()) if each.size else None for each in channels],
            "most": [float(each.max()) if each.size else None for each in channels],
            "unknown": float(1 - known.mean()),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        values = codecs.unpack(row["values"], np.float32, (row["h"], row["w"], len(self.space.classes)))
        if np.isinf(values).any():
            raise ValueError("infinite numbers")
        return {"values": values}

    def flip(self, value: Value) -> Value:
        return super().flip(value) if self.space.aligned else dict(value)

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        return super().crop(value, box if self.space.aligned else FULL_IMAGE, size)

    def draw(self, image: Image, value: Value) -> Image:
        drawn = self.draw_plain(image, value)
        if text := self.describe(value):
            caption(drawn, text, (0, drawn.height))
        return drawn

    def draw_plain(self, image: Image, value: Value, dashed: bool = False) -> Image:
        values = value["values"].astype(np.float64)
        if np.isnan(values).all():
            return image.copy()
        if values.shape[-1] >= FEWEST_FOR_COLORS:
            colors = np.stack([_stretched(values[..., channel]) for channel in range(3)], axis=-1)
            return enlarge(np.rint(colors * 255).astype(np.uint8), image.size)
        known = ~np.isnan(values[..., :1])
        return enlarge(colormap(_stretched(values[..., 0]).astype(np.float32)) * known.astype(np.uint8), image.size)

    def describe(self, value: Value) -> str:
        values = value["values"]
        ranges = []
        for name, channel in zip(self.space.classes[:SHOWN], np.moveaxis(values, -1, 0), strict=False):
            if not np.isnan(channel).all():
                low, high = np.nanpercentile(channel, PERCENTILES)
                ranges.append(f"{name} {low:.4g} to {high:.4g}{self._unit}")
        return ", ".join(ranges)

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        if not self.space.aligned:
            return ""
        numbers = cell_at(value["values"], point)
        named = zip(self.space.classes[:SHOWN], numbers, strict=False)
        return ", ".join(f"{name} {number:.4g}{self._unit}" for name, number in named if not np.isnan(number))

    def distance(self, one: Value, other: Value) -> float:
        """Return the mean absolute difference of the numbers known to both, in [0, 1].

        It is in standard deviations of the label space, of which one or more counts as 1; without these, a share of
        each channel's range in the two labels.
        """
        left, right = on_finer_raster(one["values"].astype(np.float64), other["values"].astype(np.float64), np.nan)
        difference = np.abs(left - right) / self._scale(np.stack([left, right]))
        return mean_where_known(np.minimum(difference, 1), ~np.isnan(left), ~np.isnan(right))

    def _scale(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return for each channel the difference in labels (N, h, w, K) that counts as 1."""
        if self.space.std:
            return np.array(self.space.std)
        low, high = (edge(labels, axis=(0, 1, 2), where=~np.isnan(labels), initial=start) for edge, start in EDGES)
        return np.maximum(high - low, np.finfo(np.float64).tiny)

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        known, _ = super().count(row, threshold)
        held = np.repeat(known, len(self.space.classes))
        return held, held

    @property
    def _unit(self) -> str:
        return f" {self.space.unit}" if self.space.unit else ""


EDGES = ((np.min, np.inf), (np.max, -np.inf))


def _stretched(channel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a channel (h, w) from 0 to 1 over the range of its known numbers; 0 where it is unknown."""
    if np.isnan(channel).all():
        return np.zeros(channel.shape)
    low, high = np.nanpercentile(channel, PERCENTILES)
    return np.nan_to_num(np.clip((channel - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1))
