"""Summarize a step in Markdown, for its page in Prefect: its numbers, its curves, and some of its images. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from evaluation.metric_table import outcome_sentences, read_lines
from evaluation.report.charts import loss_image
from evaluation.report.formatting import teacher_scores
from evaluation.report.markdown import grid, image, pictures, table, text
from evaluation.report.run_record import FinishedStep, RunRecord, TrainingLog
from evaluation.report.step_samples import step_strips
from evaluation.report.step_tables import step_table
from evaluation.report.steps import work_done
from pipeline.steps.artifact import Artifact

MAX_CURVES = 9


class StepPage(NamedTuple):
    """A step in Markdown."""

    card: str
    """What is seen at a glance: a paragraph of text, the main curve, and a picture."""
    body: str
    """The table, the other curves, and all pictures with their notes."""


def step_page(run: RunRecord, step: str) -> StepPage:
    """Return the page of a step.

    Args:
        run: its artifacts are the step's inputs, and its own
    """
    artifact = run.artifacts[step]
    curves = list(TrainingLog.of(artifact).curves("loss"))[:MAX_CURVES]
    charts = [image(curve.title, loss_image(*curve)) for curve in curves]
    strips = step_strips(run, artifact)
    glance = [image(each.title, each.url) for strip in strips[:1] for each in strip[:2][-1:]]  # the first with a label
    found = step_table(run, artifact)
    body = [
        *([table(found)] if found else []),
        *(["## Curves", grid(charts[1:])] if charts[1:] else []),
        *(["## Images", pictures(strips)] if strips else []),
        f"Artifact: `{artifact}`",
    ]
    return StepPage("\n\n".join([text(_sentence(run, step, artifact)), *charts[:1], *glance]), "\n\n".join(body))


def _sentence(run: RunRecord, step: str, artifact: Artifact) -> str:
    return "; ".join(part for part in _parts(run, step, artifact) if part) or "done"


def _parts(run: RunRecord, step: str, artifact: Artifact) -> Iterator[str]:
    """Yield how good the result of a step is, and what was done."""
    if artifact.kind == "teacher":
        yield teacher_scores(artifact.counts)
    if artifact.kind == "evaluate":
        yield " ".join(outcome_sentences(read_lines(run.metrics())[0], run.home()))
    yield work_done(FinishedStep(step, False, artifact.manifest["seconds"], "", artifact))
