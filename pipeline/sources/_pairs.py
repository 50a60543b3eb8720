"""Tell folders of images beside folders of their label images from folders that are classes."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence

from PIL import Image

from pipeline.data.decode import FORMATS
from pipeline.errors import DataError
from pipeline.sources._files import images_under, read_image
from pipeline.sources._splits import parse_split
from pipeline.storage.path import StoragePath

IMAGE_FOLDERS = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "rgb", "frame", "frames")
) | {"input", "inputs", "original", "originals", "leftimgbit"}
LABEL_FOLDERS = frozenset(
    ("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "groundtruth", "target")
) | {"targets", "seg", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "depth", "normals"}
"""What folders of images, and of their labels, are called: small letters, without digits and the names of splits."""
MOST_FOLDERS = 4
"""Of more folders, names alone are compared."""
SAMPLE = 8
"""Images of a folder that are looked at."""
ONE_CHANNEL = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def are_images_and_labels(folders: Sequence[StoragePath]) -> bool:
    """Return True if some of the folders hold images and others their labels, so that they are no classes.

    Their names tell (`images` and `masks`, `train_img` and `train_gt`), or else their files: colour images in one, and
    in the other images of the same stems that have one channel.
    """
    names = {plain_name(folder.name) for folder in folders}
    if names & IMAGE_FOLDERS and names & LABEL_FOLDERS:
        return True
    pairs = itertools.combinations(folders, 2) if len(folders) <= MOST_FOLDERS else ()
    return any(_are_paired(first, second) for first, second in pairs)


def plain_name(name: str) -> str:
    """Return what a folder is called in small letters, without other signs and the names of splits."""
    words = re.split(r"[^a-z]+", name.lower())
    return "".join(word for word in words if parse_split(word) is None)


def _are_paired(first: StoragePath, second: StoragePath) -> bool:
    samples = [list(itertools.islice(images_under(folder), SAMPLE)) for folder in (first, second)]
    stems = [[re.sub(r"\.[^.]*$", "", file.name) for file in sample] for sample in samples]
    if not stems[0] or stems[0] != stems[1]:
        return False
    channels = [{_has_one_channel(file) for file in sample} for sample in samples]
    return channels in ([{True}, {False}], [{False}, {True}])


def _has_one_channel(file: StoragePath) -> bool | None:
    """Return None for a file that is no image."""
    try:
        with Image.open(io.BytesIO(read_image(file)), formats=FORMATS) as image:
            return image.mode in ONE_CHANNEL
    except (DataError, OSError, ValueError, SyntaxError):
        return None
