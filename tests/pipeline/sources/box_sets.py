"""Small sets of boxes in every format of a tool, as files by name; and what may be wrong in their texts."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
CLASSES = ["car", "sky", "tree"]
ODD_WORDS = ["", " ", "0", "-1", "1e999", "nan", "inf", "x", "\u0661", "9" * 5000, "../../x.png", "/etc/passwd", "\0"]
ODD_WORDS += [
    "&amp;",
    "<",
    ">",
    "]]>",
    "<!DOCTYPE a>",
    "&lol;",
    "true",
    "yes",
    "[]",
    "{}",
    "- a",
    ": b",
    "*x",
    "&x",
    "\t",
]
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


def labelme_files() -> dict[str, bytes]:
    points = {"rectangle": [[9, 9], [1, 2]], "polygon": [[1, 1], [9, 1], [9, 9]], "circle": [[9, 9], [9, 12]]}
    texts = {}
    for number, (kind, where) in enumerate(points.items()):
        shapes = [{"label": CLASSES[number], "points": where, "shape_type": kind, "flags": {}}]
        content = {
            "version": "5",
            "shapes": shapes,
            "imagePath": f"{number}.png",
            "imageHeight": SIDE,
            "imageWidth": SIDE,
        }
        texts[f"{number}.json"] = json.dumps(content)
    return with_images("", texts)


def cvat_files() -> dict[str, bytes]:
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    shapes = (
        '<box label="car" xtl="1" ytl="2" xbr="9.5" ybr="9" rotation="10"/>',
        '<polygon label="sky" points="1,1;9,1;9,9"/>',
        '<mask label="tree" left="1" top="2" width="3" height="4" rle="1,2"/><points label="car" points="1,1"/>',
    )
    images = "".join(
        f'<image id="{n}" name="{n}.png" width="{SIDE}" height="{SIDE}">{shapes[n]}</image>' for n in range(3)
    )
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return with_images("images/", {"a.xml": f"<annotations><version>1.1</version>{meta}{images}</annotations>"})


def label_studio_files() -> dict[str, bytes]:
    values: list[dict[str, Any]] = [
        {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 5, "rectanglelabels": ["car"]},
        {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["sky"]},
        {"x": 30, "y": 30, "radiusX": 10, "radiusY": 5, "ellipselabels": ["tree"]},
    ]
    tasks = []
    for number, value in enumerate(values):
        mark = {"id": "a", "type": list(value)[-1], "value": value, "original_width": SIDE, "original_height": SIDE}
        choice = {"id": "b", "type": "choices", "from_name": "kind", "value": {"choices": [CLASSES[number]]}}
        made = [{"id": 1, "result": [mark, choice], "was_cancelled": False, "ground_truth": False}]
        tasks.append({"id": number, "annotations": made, "data": {"image": f"/data/upload/1/0123abcd-{number}.png"}})
    return with_images("photos/", {"project.json": json.dumps(tasks)})


BOX_SETS: dict[str, tuple[Callable[[], dict[str, bytes]], dict[str, Any]]] = {
    "yolo": (yolo_files, {}),
    "voc": (voc_files, {"classes": CLASSES}),
    "labelme": (labelme_files, {"classes": CLASSES}),
    "cvat": (cvat_files, {}),
    "label_studio": (label_studio_files, {}),
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
