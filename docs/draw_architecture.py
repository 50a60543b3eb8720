"""Draw docs/architecture.svg: the way of the data through the rooms, and what drives it.

python docs/draw_architecture.py
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 980, 480
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c2733 }
.title { font-weight: 600 }
.room { font: 12px ui-monospace, monospace; fill: #0b6b4f }
.note { font-size: 12px; fill: #56646f }
.box { fill: #f4f8fb; stroke: #7d94a6 }
.store { fill: #fdf6e3; stroke: #b58900 }
.band { fill: #eef3ee; stroke: #9bb59b }
.arrow { fill: none; stroke: #56646f; stroke-width: 1.6; marker-end: url(#head) }
.dashed { stroke-dasharray: 4 4 }
"""
BOX_WIDTH, BOX_HEIGHT, BAND_HEIGHT, MARGIN = 146, 76, 34, 20


class Box(NamedTuple):
    """A thing that data goes through: where its left upper corner is, what it is, and which room holds it."""

    left: int
    top: int
    title: str
    note: str
    room: str
    style: str = "box"


class Band(NamedTuple):
    """Rooms that all others go through, over the whole width."""

    top: int
    rooms: str
    note: str


BOXES = [
    Box(20, 222, "your files", "folders, COCO, ...", "pipeline/sources"),
    Box(190, 222, "image store", "tars, Parquet index", "ingest", "store"),
    Box(372, 134, "teachers", "trained, published", "teachers"),
    Box(372, 310, "label stores", "Parquet, raw scores", "teachers/labelling", "store"),
    Box(566, 222, "student", "images join labels", "student"),
    Box(750, 134, "stages", "self-supervised", "selfsup"),
    Box(750, 310, "evaluation", "probes, report", "evaluation"),
]
ARROWS = [
    "M156 260H188",
    "M326 250C352 250 346 172 370 172",
    "M326 270C352 270 346 348 370 348",
    "M326 260H564",
    "M440 210V308",
    "M508 348C542 348 536 272 564 272",
    "M702 250C728 250 724 172 748 172",
    "M702 270C728 270 724 348 748 348",
    "M818 210V308",
    "M896 172H916",
]
TRUE_LABELS = "M88 220C88 172 200 158 368 160"
NOTES = {(112, 160): "true labels", (922, 168): "backbone", (922, 184): "for timm"}
BANDS = [
    Band(16, "cli, must.py", "what a user calls, with a recipe and a root"),
    Band(60, "flows", "plan the steps, reuse what is there, run the rest: here, in processes, with Prefect"),
    Band(396, "browser", "look at the stores, question them, reject labels"),
    Band(438, "tasks, pipeline", "what all rooms stand on: labels and heads; recipe, storage, stores, data, training"),
]


def draw_box(box: Box) -> str:
    """Return a rectangle with three lines of text."""
    lines = (("title", box.title, 24), ("note", box.note, 44), ("room", box.room, 64))
    texts = [
        f'<text class="{style}" x="{box.left + 9}" y="{box.top + down}">{escape(text)}</text>'
        for style, text, down in lines
    ]
    size = f'x="{box.left}" y="{box.top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
    return "\n".join([f'<rect class="{box.style}" {size} rx="6"/>', *texts])


def draw_band(band: Band) -> str:
    """Return a rectangle over the whole width with a line of text."""
    size = f'x="{MARGIN}" y="{band.top}" width="{WIDTH - 2 * MARGIN}" height="{BAND_HEIGHT}"'
    return (
        f'<rect class="band" {size} rx="6"/>\n'
        f'<text class="room" x="{MARGIN + 12}" y="{band.top + 22}">{escape(band.rooms)}</text>\n'
        f'<text class="note" x="{MARGIN + 140}" y="{band.top + 22}">{escape(band.note)}</text>'
    )


def draw() -> str:
    """Return the picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Files become an image store; teachers label it; a student learns; stages and evaluation follow">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#56646f"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *(f'<path class="arrow" d="{path}"/>' for path in ARROWS),
        f'<path class="arrow dashed" d="{TRUE_LABELS}"/>',
        *map(draw_box, BOXES),
        *map(draw_band, BANDS),
        *(f'<text class="note" x="{x}" y="{y}">{text}</text>' for (x, y), text in NOTES.items()),
        "</svg>\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
