"""The report's middle: pictures of labels, curves of losses, and how much of the labels the thresholds keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tasks
from evaluation.report.charts import bar, loss_chart
from evaluation.report.figures import strip, swatches
from evaluation.report.html import Html, element, join
from evaluation.report.page import NOTHING, listed, paragraph, percent, plural, table
from evaluation.report.predictions import held_out_strips
from evaluation.report.run_record import TOTAL, Log, RunRecord
from evaluation.report.samples import Album, pool_strips
from pipeline.stores.labels import LabelSpace

MOST_CLASSES = 20


def learned_labels(run: RunRecord) -> Html:
    """Pool images with the labels that the student learned from."""
    album = Album(run)
    strips = list(pool_strips(album))
    if not strips:
        return paragraph("There is no pool, or no label, to show.")
    about = (
        "Pool images, and beside each what the student learned from: a true label where the teacher's own set holds "
        "the image, else the teacher's label with the threshold applied. The images are taken from each set in turn by "
        "the hash of their bytes; nobody picked them."
    )
    lines = [strip(pictures) for pictures in strips]
    notes = [paragraph(about, class_="note"), *_rejected(run)]
    return join([*notes, element("div", *lines, class_="strips"), _reading(album)])


def _rejected(run: RunRecord) -> Iterator[Html]:
    """How many labels the student did not learn from as they were rejected by hand, if there were any."""
    made = run.artifacts.get("student")
    rejected = made.counts.get("rejected", {}) if made else {}
    if rejected:
        counts = ", ".join(f"{count:,} by {name}" for name, count in rejected.items())
        yield paragraph(f"Pseudo labels that were rejected by hand, and left out: {counts}.", class_="note")


def held_out(run: RunRecord) -> Html:
    """Held-out images with their true label, and what teacher and student make of them."""
    album = Album(run)
    places = list(held_out_strips(album))
    if not places:
        return paragraph("Nothing was measured on held-out images.")
    about = (
        "Images that nothing was trained on, chosen by the hash of their bytes: the true label, if there is one, and "
        "what teacher and student say. Masks and classes are shown whole, as they are measured; boxes from the "
        "threshold on."
    )
    parts = [paragraph(about, class_="note")]
    for place, strips in places:
        if strips:
            where = element("span", f" {place.task} on {place.dataset}/{place.split}", class_="soft")
            lines = [strip(pictures) for pictures in strips]
            parts += [element("h3", place.head, where), element("div", *lines, class_="pairs")]
    unshown = ", ".join(f"{place.head} on {place.dataset}" for place, strips in places if not strips)
    if unshown:
        parts.append(paragraph(f"Left out, for the page to be ready soon: {unshown}.", class_="note"))
    return join([*parts, _colours(album)])


def _reading(album: Album) -> Html:
    """How to read the drawings of the tasks that were drawn."""
    used = {head.label.task: head.label.legend for head in album.heads.values() if head.is_learned}
    lines = [f"{task}: {reading}." for task, reading in used.items() if reading]
    return join([element("div", listed(lines), class_="note"), _colours(album)])


def _colours(album: Album) -> Html:
    """The colours of the classes that were drawn in masks."""
    return join(
        element("div", element("span", name, class_="note"), swatches(space, sorted(classes)), class_="key")
        for name, (space, classes) in album.seen.items()
    )


def curves(run: RunRecord) -> Html:
    """The losses of the student, of every teacher that was trained, and of the stages, over the steps."""
    student = run.artifacts.get("student")
    mine = Log.of(student).losses() if student else {}
    teachers = {name: Log.of(made).losses() for name, made in run.of_kind("teacher").items()}
    parts = []
    if mine:
        charts = [loss_chart("weighted total" if name == TOTAL else name, points) for name, points in mine.items()]
        parts += [element("h3", "Student"), _grid(charts)]
    stages = {name: Log.of(made).losses() for name, made in run.of_kind("stage").items()}
    for title, trained in (("Teachers", teachers), ("Stages", stages)):
        charts = [
            loss_chart(each if name == TOTAL else f"{each}: {name}", points, _followed(name))
            for each, losses in trained.items()
            for name, points in losses.items()
            if len(points) > 1 or not _is_look(name)
        ]
        if charts:
            parts += [element("h3", title), _grid(charts)]
    parts += _features(run)
    silent = [name for name, losses in teachers.items() if not losses] + (
        ["the student"] if student and not mine else []
    )
    if silent:
        parts.append(paragraph(f"No training log, as nothing was trained or it was not kept: {', '.join(silent)}."))
    return join(parts) if parts else paragraph("Nothing was trained.")


def _followed(name: str) -> str:
    """What a curve's axis is."""
    return f"{name} of a batch" if _is_look(name) else "loss"


def _is_look(name: str) -> bool:
    """Whether it follows the features of a batch, now and then, and not a loss."""
    return name.startswith("feature ")


def _features(run: RunRecord) -> Iterator[Html]:
    """How far apart the stages' features were before and after."""
    looks = {name: made.counts["features"] for name, made in run.of_kind("stage").items()}
    if looks:
        rows = [
            [name, *(f"{look[when][key]:.3g}" for key in ("spread", "rank") for when in ("before", "after"))]
            for name, look in looks.items()
        ]
        yield paragraph("Features of the same images, up to 512 of the stage's, before and after it:", class_="note")
        yield table(["Stage", "Spread before", "after", "Effective rank before", "after"], rows, range(1, 5))


def _grid(charts: Sequence[Html]) -> Html:
    return element("div", *charts, class_="charts")


def kept(run: RunRecord) -> Html:
    """How much of each class the thresholds keep."""
    found = run.kept()
    if not found:
        return paragraph("What the thresholds keep was not counted in this run.")
    parts = [
        paragraph(
            "Of the pseudo labels of each class, the share whose score reaches the threshold; and the class's part in "
            "all labels, before and after. A class whose part shrinks is seen more rarely by the student.",
            class_="note",
        )
    ]
    cut = {name: share for name, share in found.items() if share["threshold"] > 0}
    for name, share in cut.items():
        parts += _kept_by(name, share)
    whole = [name for name in found if name not in cut]
    if whole:
        parts.append(paragraph(f"No threshold, everything is kept: {', '.join(whole)}."))
    return join(parts)


def _kept_by(name: str, share: Mapping[str, Any]) -> Iterator[Html]:
    unit = tasks.label(LabelSpace(share["task"], tuple(share["classes"]))).unit
    held, left = sum(share["held"]), sum(share["kept"])
    counted = (
        f" {share['task']}, threshold {share['threshold']:g}: {left:,.0f} of {held:,.0f} {unit} kept "
        f"({percent(left / held) if held else NOTHING}) on {plural(share['images'], 'image')}"
    )
    yield element("h3", name, element("span", counted, class_="soft"))
    if share["warning"]:
        yield paragraph("Warning: ", share["warning"], ".")
    order = sorted(range(len(share["held"])), key=lambda number: -share["held"][number])
    shown = [number for number in order if share["held"][number]][:MOST_CLASSES]
    head = ["Class", "Share kept", "", "Kept", "Held", "Part before", "Part after"]
    yield table(head, (_class_row(share, number, held, left) for number in shown), {1, 3, 4, 5, 6})
    rest = [number for number in order[len(shown) :] if share["held"][number]]
    if rest:
        amount = sum(share["held"][number] for number in rest)
        yield paragraph(
            f"The {len(shown)} most frequent of {len(order):,} classes; {len(rest):,} more hold {amount:,.0f} {unit}.",
            class_="note",
        )
    if len(order) > len(shown) + len(rest):
        empty = len(order) - len(shown) - len(rest)
        yield paragraph(
            f"{plural(empty, 'class', 'classes')} of {len(order):,} never named by this teacher.", class_="note"
        )


def _class_row(share: Mapping[str, Any], number: int, held: float, left: float) -> list[Html | str]:
    mine, stays = share["held"][number], share["kept"][number]
    return [
        share["classes"][number],
        percent(stays / mine),
        bar(stays / mine, f"{stays:,.0f} of {mine:,.0f}"),
        f"{stays:,.0f}",
        f"{mine:,.0f}",
        percent(mine / held),
        percent(stays / left) if left else NOTHING,
    ]
