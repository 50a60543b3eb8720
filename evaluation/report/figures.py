"""Pictures of labelled images that a page shows side by side, each image a part of the page itself. No torch."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable

from PIL import Image

from pipeline.stores.labels import Label, LabelSpace, Value
from tasks.drawing import palette

JPEG_QUALITY = 82


@dataclasses.dataclass(frozen=True)
class Picture:
    """An RGB image with a title and a note below it."""

    image: Image.Image
    title: str
    note: str = ""

    @property
    def url(self) -> str:
        """The image as a JPEG inside a URL."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def labelled(image: Image.Image, label: Label, value: Value, title: str, note: str = "") -> Picture:
    """Return the image with a label drawn on it; how much the label holds is added to the note."""
    amount = label.describe(value)
    return Picture(label.draw(image, value), title, " · ".join(part for part in (note, amount) if part))


def class_colors(space: LabelSpace, classes: Iterable[int]) -> list[tuple[str, str]]:
    """Return (name, CSS color) of classes, by id, in the drawings of this label space."""
    colors = palette(len(space.classes))
    return [(space.classes[number], "rgb({},{},{})".format(*colors[number].tolist())) for number in classes]
