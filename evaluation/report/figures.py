"""Pictures beside each other: images with labels drawn on them, as HTML, the same wherever a page shows them.

No torch in here, and no file but the page itself: an image is part of the markup.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable

from PIL import Image

from evaluation.report.html import Html, element
from pipeline.stores.labels import Label, LabelSpace, Value
from tasks.drawing import palette

QUALITY = 82
STYLE = """
.strip { display: grid; gap: .75rem .5rem; align-items: start; max-width: calc(var(--pictures) * 12rem);
  grid-template-columns: repeat(auto-fill, minmax(max(var(--least, 7.5rem), 100% / var(--pictures) - .5rem), 1fr)); }
@media print { .strip { --least: 5rem; } }
.strip figure { margin: 0; min-width: 0; }
.strip img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--faint); }
.strip figcaption { font-size: .75rem; line-height: 1.3; margin-top: .25rem; overflow-wrap: anywhere; }
.strip figcaption span { color: var(--soft); }
.swatches { display: flex; flex-wrap: wrap; gap: .1rem .9rem; list-style: none; margin: .25rem 0; padding: 0;
  font-size: .75rem; }
.swatches i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em; }
"""
"""The style of what is made here; a page defines the colours --faint and --soft."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An RGB image with a title and a note below it."""

    image: Image.Image
    title: str
    note: str = ""


def labelled(image: Image.Image, label: Label, value: Value, title: str, note: str = "") -> Picture:
    """The image with a label drawn on it; the note is completed by how much the label holds."""
    amount = label.describe(value)
    return Picture(label.draw(image, value), title, " · ".join(part for part in (note, amount) if part))


def data_url(image: Image.Image) -> str:
    """The image as a JPEG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def figure(picture: Picture) -> Html:
    """One picture with its caption."""
    words = f"{picture.title}: {picture.note}" if picture.note else picture.title
    size = {"width": picture.image.width, "height": picture.image.height}
    image = element("img", src=data_url(picture.image), alt=words, title=words, **size)
    note = [element("br"), element("span", picture.note)] if picture.note else []
    return element("figure", image, element("figcaption", picture.title, *note))


def strip(pictures: Iterable[Picture]) -> Html:
    """Pictures side by side, in one line if the page is wide enough."""
    figures = [figure(picture) for picture in pictures]
    return element("div", *figures, class_="strip", style=f"--pictures:{len(figures)}")


def swatches(space: LabelSpace, classes: Iterable[int]) -> Html:
    """The colours of classes, by id, in the drawings of this label space."""
    colours = palette(len(space.classes))
    items = []
    for number in classes:
        red, green, blue = (int(part) for part in colours[number])
        square = element("i", style=f"background:rgb({red},{green},{blue})")
        items.append(element("li", square, space.classes[number]))
    return element("ul", *items, class_="swatches")
