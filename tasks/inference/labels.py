"""Labels that a model gives an image: `ImageLabels`, with a `HeadLabel` for each head."""

from __future__ import annotations

import dataclasses

from PIL import Image

from pipeline.errors import require_one_of
from pipeline.stores.labels import Label, Value
from tasks.inference.images import ImageInput, PreparedImage


@dataclasses.dataclass(frozen=True)
class HeadLabel:
    """The label that one head gives an image.

    Example:
        boxes = model.predict("street.jpg")["things"]
        boxes.value["boxes"], boxes.describe()  # (N, 4) float32, "3 boxes"
        boxes.draw().save("drawn.png")
    """

    head: str
    label: Label
    """The task, its classes, and what can be done with a value."""
    value: Value
    """The arrays that `tasks/<task>/label.py` states, in pixels of the upright image. What is less probable than the
    threshold is unknown, or not there."""
    source: ImageInput
    """The image."""

    def draw(self, image: Image.Image | None = None) -> Image.Image:
        """Return the image with the label drawn on it: the image itself, read again, or the RGB image given.

        Raises DataError if the image can't be read any more.
        """
        return self.label.draw(self.source.image() if image is None else image, self.value)

    def describe(self) -> str:
        """Return the label in a few words: "3 boxes"; how to read its drawing, where only that can tell."""
        return self.label.describe(self.value) or self.label.legend


@dataclasses.dataclass(frozen=True)
class ImageLabels:
    """The labels of one image.

    Example:
        for labels in model.stream(paths):
            print(labels.name, labels["things"].value["boxes"])
    """

    image: PreparedImage
    heads: dict[str, HeadLabel]
    """The labels by head."""

    def __getitem__(self, head: str) -> HeadLabel:
        return self.heads[require_one_of(head, self.heads, "head")]

    @property
    def name(self) -> str:
        """The path of the image, or its position, `image 3`, for one that has none."""
        return self.image.source.name

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image in pixels."""
        return self.image.size

    @property
    def values(self) -> dict[str, Value]:
        """The labels' arrays by head."""
        return {head: found.value for head, found in self.heads.items()}

    def describe(self) -> str:
        """Return all labels in a few words."""
        return "; ".join(f"{head}: {found.describe()}" for head, found in self.heads.items())
