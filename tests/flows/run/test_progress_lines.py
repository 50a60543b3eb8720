"""What a run says of a set that it has read."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import must
from flows.plan.selection import Selection
from ingest.init import write_recipe


def test_run_says_how_many_images_lack_labels_and_what_was_noted_of_many(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"set/images/{number}.png")
        if number % 2:
            mask = Image.new("L", (8, 8), 0)
            mask.putpixel((0, 0), 1)
            mask.save(tmp_path / f"set/masks/{number}.png")
    write_recipe([tmp_path / "set"], tmp_path / "mine.yaml")
    lines: list[str] = []
    must.run(
        tmp_path / "mine.yaml",
        tmp_path / "root",
        ["runtime.runner=inline"],
        Selection("data.set"),
        progress=lambda step, share, line: lines.append(line),
    )
    assert lines[-1].endswith("; labels of 3 of 6 images; no mask: 3 times")
