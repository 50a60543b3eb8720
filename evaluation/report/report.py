"""Write a run's report: one HTML page, made from what the run left on disk, that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from markupsafe import Markup

from evaluation.report import backbones, comparisons, labels, results, rounds, steps
from evaluation.report.html import render, storable
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import Artifact
from pipeline.storage.path import StoragePath

MAX_ERROR_CHARS = 300
SECTIONS: dict[str, Callable[[RunRecord], Markup]] = {
    "Results": results.results,
    "Comparisons": comparisons.comparisons,
    "Backbones": backbones.backbones,
    "Rounds": rounds.rounds,
    "Labels learned from": labels.learned_labels,
    "Held-out images": labels.held_out,
    "Training": labels.curves,
    "Calibration": labels.calibration,
    "Applicability": labels.applicability,
    "Kept labels": labels.kept_labels,
    "Steps": steps.steps,
    "Data": steps.data,
    "Recipe": steps.recipe,
}
"""Sections by title; one without content is left out."""


def write_report(folder: StoragePath, artifacts: Mapping[str, Artifact]) -> None:
    """Write `report.html` into a run's folder. A section that can't be shown says why; the others stay."""
    run = RunRecord(folder, artifacts)
    sections = [(title, content) for title, build in SECTIONS.items() if (content := _attempt(build, run))]
    page = render("report.html", title=f"{run.name}: must", head=_attempt(results.head, run), sections=sections)
    folder.child("report.html").write(storable(page).encode())


def _attempt(build: Callable[[RunRecord], Markup], run: RunRecord) -> Markup:
    try:
        return build(run)
    except Exception as error:  # the run is done, maybe after days: what a view of it stumbles over must not undo that
        first_line = (str(error).splitlines() or [""])[0][:MAX_ERROR_CHARS]
        text = Markup("<p>This part could not be shown: {}: {}</p>")
        return text.format(type(error).__name__, first_line)
