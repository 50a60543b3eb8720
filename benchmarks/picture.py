"""Draw the README's picture: rows of pool images with the labels that the student learns from, a column per teacher.

    python -m benchmarks.picture recipes/quickstart.yaml docs/quickstart.png [--root must-root]

The recipe is run first, as far as its results are missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps

import must
from cli.options import RootOption
from evaluation.report.figures import Picture
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import RunSamples, pool_strips
from pipeline.storage.path import StoragePath

SIDE, GAP, HEAD, ROWS = 176, 8, 26, 5
INK, PAPER = (40, 44, 52), (255, 255, 255)


def draw_sheet(strips: Sequence[Sequence[Picture]]) -> Image.Image:
    """Draw the strips as rows below the column names, each picture fitted into a square."""
    columns = len(strips[0])
    size = (columns * (SIDE + GAP) + GAP, HEAD + len(strips) * (SIDE + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    names = ["image", *(f"{picture.title}: {picture.note.partition(',')[0]}" for picture in strips[0][1:])]
    for column, name in enumerate(names):
        draw.text((GAP + column * (SIDE + GAP), 6), name, fill=INK, font=font)
    for row, column in itertools.product(range(len(strips)), range(columns)):
        position = (GAP + column * (SIDE + GAP), HEAD + row * (SIDE + GAP))
        page.paste(_square(strips[row][column].image), position)
    return page


def _square(image: Image.Image) -> Image.Image:
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    fitted = ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    square.paste(fitted, ((SIDE - fitted.width) // 2, (SIDE - fitted.height) // 2))
    return square


def main(recipe: Path, to: Path, root: RootOption = must.DEFAULT_ROOT) -> None:
    """Draw the labels that the recipe's student learns from."""
    outcome = must.run(recipe, root)
    record = RunRecord(outcome.folder or StoragePath.of(root), outcome.artifacts)
    draw_sheet(list(itertools.islice(pool_strips(RunSamples(record)), ROWS))).save(to, optimize=True)
    print(f"Wrote {to}")


if __name__ == "__main__":
    typer.run(main)
