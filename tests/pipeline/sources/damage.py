"""Damage the files of small sets in many ways, and read them: an image is read, or refused by an error of ours.

`python -m tests.pipeline.sources.damage KIND FIRST LAST` reads a set of this kind LAST - FIRST times, each time with
one file damaged by the seed FIRST, FIRST + 1, ..., and prints a line of JSON for each that ends in any other way.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pillow_heif import register_heif_opener

import tasks
from ingest.ingest import open_source
from pipeline.data.decode import inspect_image
from pipeline.errors import ConfigError, DataError, MustError, Shortage
from pipeline.sources import SourceRecord
from tests.pipeline.sources.box_sets import BOX_SETS, damage_text
from tests.videos import write_video

MAX_S = 20
MAX_BYTES = 2 << 30
SIDE = 32
CLASSES = ["car", "sky", "tree"]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, 10**30, -(2**63), float("inf"), float("nan"), "", " ", "0", "-1", "1e999"),
    *("\ud800", "\0", "..", "../../x.png", "/etc/passwd", "http://localhost:1/x.png", "x" * 70_000, "\u00e9", "\u0661"),
    *([], {}, [[]], [None], ["car"], [1, 2, 3, 4], {"id": 1}, [float("nan")] * 4, ["1", "1", "3", "3"]),
]
"""Values that may stand anywhere in a damaged file."""

FORMS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM", "TIFF", "AVIF", "HEIF")
"""Formats of images, in Pillow's words."""

Damage = Callable[[bytes, random.Random], bytes]


def picture(number: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, form)
    return buffer.getvalue()


def folder_files() -> dict[str, bytes]:
    register_heif_opener()
    modes = {f"{mode}.png": picture(1, "PNG", mode) for mode in ("L", "P", "RGBA")}
    return {f"{number}.{form.lower()}": picture(number, form) for number, form in enumerate(FORMS)} | modes


def mask(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE), number % 3, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def depth(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE), 1000 + number, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def coco_files() -> dict[str, bytes]:
    boxes = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1, 2, 9, 9], "iscrowd": 0} for n in range(3)]
    images = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(2)]
    images.append({"id": 2, "coco_url": "http://images.cocodataset.org/2.png"})
    categories = [{"id": 1 + n, "name": name, "supercategory": "thing"} for n, name in enumerate(CLASSES)]
    text = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    return {"instances_train.json": text.encode(), **{f"images/train/{n}.png": picture(n) for n in range(3)}}


def csv_files() -> dict[str, bytes]:
    rows = [f"{n}.png,{CLASSES[n]},train" for n in range(3)]
    return {"set.csv": "\n".join(["image,label,split", *rows]).encode(), **{f"{n}.png": picture(n) for n in range(3)}}


def depth_files() -> dict[str, bytes]:
    cameras = {"unit": "millimetre", "unknown": 0, "scenes": {"": {"fx": 30, "fy": 30, "cx": 16, "cy": 16}}}
    maps = {f"depth/{n}.png": depth(n) for n in range(3)}
    return {"cameras.json": json.dumps(cameras).encode(), **maps, **{f"rgb/{n}.png": picture(n) for n in range(3)}}


def masks_files() -> dict[str, bytes]:
    classes = {"classes.json": json.dumps({"classes": CLASSES}).encode()}
    return {
        **classes,
        **{f"masks/{n}.png": mask(n) for n in range(3)},
        **{f"images/{n}.png": picture(n) for n in range(3)},
    }


def normal_map(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), (128, 128, 255 - number), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def normals_files() -> dict[str, bytes]:
    maps = {f"normals/{n}.png": normal_map(n) for n in range(3)}
    return {**maps, **{f"images/{n}.png": picture(n) for n in range(3)}}


def rasters_files() -> dict[str, bytes]:
    metres = np.full((SIDE, SIDE), 1.5, np.float32)
    plain, packed = io.BytesIO(), io.BytesIO()
    np.save(plain, metres)
    np.savez_compressed(packed, depth=metres)
    pfm = f"Pf\n{SIDE} {SIDE}\n-1.0\n".encode() + metres.tobytes()
    maps = {"depth/0.npy": plain.getvalue(), "depth/1.npz": packed.getvalue(), "depth/2.pfm": pfm}
    return {"train.txt": b"0\n1.png\nimages/2.png\n", **maps, **masks_files(), **normals_files()}


def parquet_files() -> dict[str, bytes]:
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(3)]
    return {"train.parquet": parquet_bytes(pa.table({"image": images, "label": CLASSES}))}


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def video_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "a.mp4", 3)
        return {"a.mp4": (Path(folder) / "a.mp4").read_bytes()}


def webdataset_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for n in range(3):
            for name, data in ((f"{n}.png", picture(n)), (f"{n}.json", json.dumps({"label": CLASSES[n]}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"train.tar": buffer.getvalue()}


FILES: dict[str, tuple[Callable[[], dict[str, bytes]], dict[str, Any]]] = {
    "folder": (folder_files, {}),
    "imagefolder": (lambda: {f"train/{name}/a.png": picture(n) for n, name in enumerate(CLASSES)}, {}),
    "coco": (coco_files, {"multilabel": True}),
    "csv": (csv_files, {}),
    "depth": (depth_files, {"normals": "from_depth"}),
    "masks": (masks_files, {}),
    "normals": (normals_files, {}),
    "parquet": (parquet_files, {}),
    "rasters": (rasters_files, {"masks": "masks", "depth": "depth", "normals": "normals"}),
    "video": (video_files, {"every": 1}),
    "webdataset": (webdataset_files, {"classes": CLASSES}),
    **BOX_SETS,
}
"""By kind, the files of a small set by name, and the keys of the recipe besides `path`."""


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        damaged[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(damaged)


def repeat(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:]


def blank(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + bytes(end - begin) + data[end:]


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Put an odd value in some places, take entries away, or nest a value very deeply."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = content
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if rng.random() < 0.3 or not isinstance(place[key], dict | list) or not place[key]:
                if rng.random() < 0.2:
                    del place[key]
                else:
                    place[key] = copy.deepcopy(rng.choice(ODD))
                break
            place = place[key]
    text = json.dumps(content)
    if rng.random() < 0.1:
        deep = rng.choice((500, 50_000))
        text = text.replace("1", "[" * deep + "]" * deep, 1)
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


def damage_csv(data: bytes, rng: random.Random) -> bytes:
    rows = [row.split(",") for row in data.decode().split("\n")]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice(rows)
        if rng.random() < 0.2:
            row.append("more")
        elif rng.random() < 0.2 and len(row) > 1:
            row.pop()
        else:
            row[rng.randrange(len(row))] = str(rng.choice([*ODD, '"', '"a\nb"', "a" * 200_000]))
    return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")


def damage_parquet(data: bytes, rng: random.Random) -> bytes:
    """Write other types and values than a set has, whole as a file."""
    images = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": "../x.png"}, None]
    columns: dict[str, list[Any]] = {
        "image": [
            images,
            [picture(0), b"", None],
            ["a", "b", "c"],
            [1, 2, 3],
            [[picture(0)], [], None],
            [{"x": 1}, {}, {}],
        ],
        "label": [
            *([None, None, None], [1, 2, 2**40], [0.5, float("nan"), 1.0], [True, False, None], [b"car", b"\xff", b""]),
            *(
                [["car"], ["sky", "car"], []],
                [[1], [2], None],
                [{"a": 1}, None, {}],
                ["car", "", None],
                [[[1]], [], []],
            ),
            *(pa.array([1, 2, 3], pa.timestamp("us")), pa.array(["car", "sky", "car"]).dictionary_encode()),
        ],
        "split": [["train", "test", "x"], [1, 2, 3], [None, None, "val"]],
    }
    chosen = {name: rng.choice(values) for name, values in columns.items() if rng.random() < 0.7}
    if not chosen:
        return parquet_bytes(pq.read_table(io.BytesIO(data)).slice(0, 0))
    return parquet_bytes(pa.table(chosen))


def damage_tar(data: bytes, rng: random.Random) -> bytes:
    """Change fields of a header, and make its checksum right again."""
    damaged, blocks = bytearray(data), range(0, len(data) - 512, 512)
    headers = [start for start in blocks if data[start + 257 : start + 262] == b"ustar"]
    start = rng.choice(headers)
    field, values = rng.choice(
        (
            ((124, 136), (b"77777777777\0", b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\7", b"zzz", b"")),
            (
                (0, 100),
                (b"../../x.png", b"/etc/passwd", b"", b"\xff\xfe.png", b"a/b/0.json", b"0.png", b".png", b"0.cls"),
            ),
            ((156, 157), (b"1", b"2", b"3", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"\xff")),
        )
    )
    damaged[start + field[0] : start + field[1]] = rng.choice(values)[: field[1] - field[0]].ljust(
        field[1] - field[0], b"\0"
    )
    damaged[start + 148 : start + 156] = b" " * 8
    damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])
    return bytes(damaged)


def damage_image(data: bytes, rng: random.Random) -> bytes:
    """Save it in another mode, size or format."""
    image: Image.Image = Image.open(io.BytesIO(data))
    mode = rng.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I", "F", "CMYK", "I;16"))
    image = image.convert("L").convert(mode) if rng.random() < 0.7 else image.resize((rng.choice((1, 7, 33)), SIDE))
    buffer = io.BytesIO()
    try:
        image.save(buffer, rng.choice(("PNG", "TIFF", "JPEG", "GIF", "WEBP", "BMP", "PPM")))
    except Exception:  # a format that has no such mode
        return flip(data, rng)
    return buffer.getvalue()


ANY: list[Damage] = [cut, flip, flip, repeat, blank, lambda data, rng: b"", lambda data, rng: rng.randbytes(100)]
OF_SUFFIX: dict[str, Damage] = {
    ".json": damage_json,
    ".csv": damage_csv,
    **dict.fromkeys((".txt", ".xml", ".yaml"), damage_text),
    ".parquet": damage_parquet,
    ".tar": damage_tar,
    **dict.fromkeys((".npy", ".npz", ".pfm", ".mp4"), flip),
    **{f".{form.lower()}": damage_image for form in FORMS},
}


def write_damaged(kind: str, seed: int, folder: Path) -> str:
    """Write a set with one damaged file, and return what was done to which."""
    files, rng = FILES[kind][0](), random.Random(f"{kind} {seed}")
    names = [name for name in files if OF_SUFFIX[Path(name).suffix] is not damage_image] or list(files)
    name = rng.choice(names if rng.random() < 0.7 else list(files))
    damage = OF_SUFFIX[Path(name).suffix] if rng.random() < 0.6 else rng.choice(ANY)
    files[name] = damage(files[name], rng)
    write(files, folder)
    return f"{damage.__name__} of {name}"


def write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def read_set(kind: str, folder: Path) -> int:
    """Read all that there is to read of a set; return how many images are whole, with their labels."""
    source = open_source({"kind": kind, "path": str(folder), **FILES[kind][1]})
    labels = {task: tasks.label(space) for task, space in source.spaces().items()}
    source.file_stamps()
    return sum(read_record(record, labels) for record in source.records())


def read_record(record: SourceRecord, labels: dict[str, Any]) -> bool:
    try:
        facts = inspect_image(record.read())
        for task, value in record.truth((facts.width, facts.height)).values.items():
            labels[task].encode(value)
    except Shortage:
        raise
    except MustError:
        return False
    return True


def most_bytes(pid: int) -> int:
    """Return the most memory that a process has held; what `getrusage` says may be of the process that started it."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


def _hang(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"not done after {MAX_S} s")


def main(kind: str, first: str, last: str) -> None:
    signal.signal(signal.SIGALRM, _hang)
    for seed in range(int(first), int(last)):
        with tempfile.TemporaryDirectory() as folder:
            done = write_damaged(kind, seed, Path(folder))
            signal.alarm(MAX_S)
            try:
                read_set(kind, Path(folder))
            except (ConfigError, DataError):
                pass
            except BaseException:
                print(json.dumps({"kind": kind, "seed": seed, "damage": done, "error": traceback.format_exc()[-600:]}))
            signal.alarm(0)
    peak = most_bytes(os.getpid())
    if peak > MAX_BYTES:
        print(json.dumps({"kind": kind, "error": f"{peak:,} bytes of memory were held"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
