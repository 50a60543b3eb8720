"""Images to predict: paths, open images and arrays in one form, decoded as the pool's are."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.bands import RGB, Pixels, decode_picture, inspect_bands, inspect_pixels
from pipeline.data.decode import Inspection, rgb_image
from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord
from pipeline.sources._files import read_image
from pipeline.storage.path import StoragePath
from tasks.prediction import Preprocessing

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | SourceRecord
"""A path or URL, an image of Pillow, an array (H, W, 3) uint8 of RGB, or a record of a source."""
Opened = tuple[Image.Image, tuple[int, int]]
"""An upright RGB image, which may be reduced, and the (width, height) of the whole one in pixels."""


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """An image that is decoded when it is needed, and not kept."""

    name: str
    read: Callable[[], bytes | Image.Image]
    """Return the file's bytes, or the pixels, upright. Raises DataError if that can't be."""
    channels: int = RGB
    """Those that the model takes."""

    def image(self) -> Image.Image:
        """Return the whole image, upright and in RGB. Raises DataError with the reason."""
        content = self.read()
        return decode_picture(content, channels=self.channels) if isinstance(content, bytes) else content


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """An image as a model's input, or the reason why there is none."""

    source: ImageInput
    size: tuple[int, int] = (1, 1)
    """(width, height) of the upright image in pixels."""
    pixels: NDArray[Any] | None = None
    """The input (S, S, C)."""
    data: bytes = b""
    """The file's bytes; none of an image that is no file."""
    suffix: str = ""
    """The suffix that fits the file's content."""
    reason: str = ""
    """Why there is no input; empty if there is one."""


def is_image(value: object) -> bool:
    """Return True for one image, False for several."""
    return isinstance(value, str | os.PathLike | Image.Image | np.ndarray | SourceRecord)


def image_inputs(images: Iterable[ImageLike]) -> Iterator[ImageInput]:
    """Yield the images, named by their paths or, if they have none, by their position: `image 3`.

    Raises ConfigError for what is no image.
    """
    for position, image in enumerate(images):
        if isinstance(image, SourceRecord):
            yield ImageInput(image.name, image.read)
        elif isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            yield ImageInput(path, functools.partial(read_image, StoragePath.of(path)))
        elif isinstance(image, Image.Image):
            yield ImageInput(f"image {position}", functools.partial(rgb_image, image))
        else:
            yield ImageInput(f"image {position}", functools.partial(_from_array, checked_array(image, position)))


def checked_array(image: Any, position: int) -> NDArray[np.uint8]:
    """Return the array. Raises ConfigError unless it is uint8 (H, W, 3)."""
    if not isinstance(image, np.ndarray):
        given = f"{type(image).__name__} {image!r:.40}"
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"array {image.dtype} {image.shape}"
    else:
        return image
    raise ConfigError(
        f"image {position}: is {given}; a path, an image of Pillow, or an array uint8 (H, W, 3) of RGB would work."
    )


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    return rgb_image(Image.fromarray(array))


def prepare(source: ImageInput, preprocessing: Preprocessing) -> PreparedImage:
    """Return the image as the input of a model with this preprocessing; what can't be read says why."""
    channels = preprocessing.channels
    source = dataclasses.replace(source, channels=channels)
    try:
        content = source.read()
        if isinstance(content, Image.Image):
            if channels != RGB:
                raise DataError(f"is a picture in RGB; the model takes files of {channels} channels, .npy or .tif")
            return PreparedImage(source, content.size, preprocessing(content, content.size))
        found, pixels = _decode(content, preprocessing)
        size = (found.width, found.height)
        return PreparedImage(source, size, preprocessing(pixels, size), content, found.suffix)
    except DataError as error:
        return PreparedImage(source, reason=str(error))


def _decode(data: bytes, preprocessing: Preprocessing) -> tuple[Inspection, Pixels]:
    if preprocessing.channels != RGB:
        return inspect_bands(data, preprocessing.channels)
    found = inspect_pixels(data, RGB)
    return found, preprocessing.decode(data, (found.width, found.height))
