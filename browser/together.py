"""Draw the labels of several stores in one picture.

One label tints the image: the first of the masks. Boxes are outlined on top, and classes written in the upper left
corner. What can't lie over the image with others, further masks and maps of other kinds, stands below it in small.
True labels are dashed, and true masks only have their contours drawn.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

from PIL import Image

from browser.pictures import QUALITY, Pictures
from browser.tables import Store
from pipeline.errors import DataError
from pipeline.stores.labels import Value
from tasks.drawing import caption, frame

GAP = 3
"""Pixels between the image and the small pictures below it."""
PER_ROW = 4
FEWEST_PER_ROW = 2
MAX_STORES = 24
MAX_CHARS = 32
"""Of a line of words."""
LINES = 15
"""Lines of words that a picture has room for: they are large, as it is looked at in small."""
FRAME = (255, 255, 255)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLabel:
    """The label of an image in a store."""

    store: Store
    value: Value
    is_true: bool

    @property
    def layer(self) -> str:
        return self.store.label.layer

    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of the image with the label drawn on it."""
        return self.store.label.draw_plain(image, self.value, self.is_true)


def draw_together(
    pictures: Pictures, image: int, stores: Sequence[tuple[Store, float]], side: int
) -> tuple[Image.Image, bool]:
    """Return the image with its labels in these stores, each with its threshold, and True if it stays so.

    The picture is RGBA: below the image, where there are no more labels, it is transparent.
    """
    labels, is_whole = [], True
    true_stores = pictures.loading.true_stores()
    for store, threshold in stores:
        try:
            value = pictures.value(store, image, threshold)
        except DataError as error:
            pictures.loading.progress.damaged[str(pictures.loading.label_file(store.name, image))] = str(error)
            value = None
        is_whole = is_whole and value is not None
        if value is not None:
            labels.append(StoredLabel(store, value, store.name in true_stores))
    return _compose(pictures.image(image, side), labels), is_whole


def _compose(picture: Image.Image, labels: Sequence[StoredLabel]) -> Image.Image:
    tint = next((label for label in labels if label.layer == "tint" and not label.is_true), None)
    contours = [label for label in labels if label.layer == "tint" and label.is_true]
    beside = [label for label in labels if label.layer in ("tint", "map") and label not in (tint, *contours)]
    outlines = sorted((label for label in labels if label.layer == "outlines"), key=lambda label: label.is_true)
    drawn = picture
    for label in [*([tint] if tint else []), *contours, *outlines]:
        drawn = label.draw(drawn)
    drawn = drawn.copy()
    _write(drawn, [label for label in labels if label.layer == "words"])
    return _with_strip(drawn, [_small(label, picture, len(beside)) for label in beside])


def _write(picture: Image.Image, labels: Sequence[StoredLabel]) -> None:
    """Write a line for each label into the upper left corner."""
    y, size = 0.0, max(9, max(picture.size) // LINES)
    for label in labels:
        words = label.store.label.describe(label.value)
        text = f"{'true: ' if label.is_true else ''}{words}"
        y += 1 + caption(picture, text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…", (0, y), size=size)


def _small(label: StoredLabel, picture: Image.Image, count: int) -> Image.Image:
    columns = min(PER_ROW, max(FEWEST_PER_ROW, count))
    width = (picture.width - GAP * (columns - 1)) // columns
    height = max(1, round(width * picture.height / picture.width))
    small = label.draw(picture.resize((max(1, width), height)))
    if label.is_true:
        frame(small, FRAME, dashed=True)
    return small


def _with_strip(picture: Image.Image, small: Sequence[Image.Image]) -> Image.Image:
    """Return the picture with small ones, which have one size, in rows below it."""
    rows = -(-len(small) // PER_ROW)
    height = picture.height + sum(GAP + small[0].height for _ in range(rows))
    drawn = Image.new("RGBA", (picture.width, height))
    drawn.paste(picture, (0, 0))
    for number, each in enumerate(small):
        row, column = divmod(number, PER_ROW)
        drawn.paste(each, (column * (each.width + GAP), picture.height + GAP + row * (each.height + GAP)))
    return drawn


def as_webp(image: Image.Image) -> bytes:
    """Return an image as the bytes of a WebP, which may be transparent."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=0)
    return buffer.getvalue()
