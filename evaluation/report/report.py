"""A run's report: one page that needs neither network nor any other file, made of what the run left on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evaluation.report import backbones, comparisons, labels, results, steps
from evaluation.report.html import Html
from evaluation.report.page import page, paragraph
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import Artifact
from pipeline.storage.path import StoragePath

MOST_WORDS = 300
"""Characters of an error that a part shows in its place."""
SECTIONS: dict[str, Callable[[RunRecord], Html]] = {
    "Results": results.results,
    "Comparisons": comparisons.comparisons,
    "Backbones": backbones.backbones,
    "Labels learned from": labels.learned_labels,
    "Held-out images": labels.held_out,
    "Training": labels.curves,
    "Kept labels": labels.kept,
    "Steps": steps.steps,
    "Data": steps.data,
    "Recipe": steps.recipe,
}


def write_report(folder: StoragePath, artifacts: Mapping[str, Artifact]) -> None:
    """Write `report.html` into a run's folder.

    A part that can't be shown says why and leaves the others as they are.
    """
    run = RunRecord(folder, artifacts)
    sections = [(title, _attempt(build, run)) for title, build in SECTIONS.items()]
    sections = [(title, content) for title, content in sections if content]
    text = page(f"{run.name}: must", _attempt(results.head, run), sections)
    folder.child("report.html").write(text.encode())


def _attempt(build: Callable[[RunRecord], Html], run: RunRecord) -> Html:
    try:
        return build(run)
    except Exception as error:  # the run is done, maybe after days: what a view of it stumbles over must not undo that
        first = (str(error).splitlines() or [""])[0][:MOST_WORDS]
        return paragraph(f"This part could not be shown: {type(error).__name__}: {first}")
