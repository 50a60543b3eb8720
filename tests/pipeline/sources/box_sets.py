"""Small sets of boxes in every format of a tool, as files by name; and what may be wrong in their texts."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
CLASSES = ["car", "sky", "tree"]
ODD_WORDS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1e999",
        "nan",
        "inf",
        "x",
        "\u0661",
        "9" * 5000,
        "../../x.png",
        "/etc/passwd",
        "\0",
        "&amp;",
    ),
    *("<", ">", "]]>", "<!DOCTYPE a>", "&lol;", "true", "yes", "[]", "{}", "- a", ": b", "*x", "&x", "!!int x", "\t"),
)
"""Words that may stand anywhere in a damaged text."""


def picture(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def with_images(folder: str, files: dict[str, str]) -> dict[str, bytes]:
    texts = {name: text.encode() for name, text in files.items()}
    return texts | {f"{folder}{number}.png": picture(number) for number in range(3)}


def yolo_files() -> dict[str, bytes]:
    texts = {
        f"train/labels/{number}.txt": f"{number} 0.5 0.5 0.25 0.25\n0 0.1 0.1 0.2 0.2 0.3 0.1\n" for number in range(3)
    }
    about = "train: ../train/images\nval: ../train/images\nnc: 3\nnames: [car, sky, tree]\n"
    return with_images("train/images/", {"data.yaml": about, **texts})


def voc_files() -> dict[str, bytes]:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>10</ymax></bndbox>"
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
    texts = {
        f"Annotations/{number}.xml": f"<annotation>{size}<object><name>{name}</name>"
        f"<difficult>{number % 2}</difficult>{box}</object></annotation>"
        for number, name in enumerate(CLASSES)
    }
    return with_images("JPEGImages/", {"ImageSets/Main/trainval.txt": "0\n1\n2\n", **texts})


BOX_SETS: dict[str, tuple[Callable[[], dict[str, bytes]], dict[str, Any]]] = {
    "yolo": (yolo_files, {}),
    "voc": (voc_files, {"classes": CLASSES}),
}
"""By kind, the files of a small set by name, and the keys of the recipe besides `path`."""


def damage_text(data: bytes, rng: random.Random) -> bytes:
    """Put odd words in the place of some, or take some away."""
    text = data.decode()
    for _ in range(rng.choice((1, 1, 2, 5))):
        words = text.split(" ") if rng.random() < 0.5 else text.split(rng.choice(("\n", ">", "<", "0", ",")))
        joint = text[len(words[0]) : len(words[0]) + 1]
        place = rng.randrange(len(words))
        words[place : place + 1] = [] if rng.random() < 0.2 else [rng.choice(ODD_WORDS)]
        text = joint.join(words)
    return text.encode("utf-8", "surrogatepass")
