"""The report's sections on labels and training: pictures of labels, curves of losses, and what the thresholds keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

import tasks
from evaluation.report.charts import loss_chart, reliability_chart
from evaluation.report.figures import class_colors
from evaluation.report.formatting import DASH, percent
from evaluation.report.html import ReportTable, StyledText, render
from evaluation.report.predictions import held_out_strips
from evaluation.report.results import MOST_INAPPLICABLE
from evaluation.report.run_record import RunRecord, TrainingLog
from evaluation.report.samples import RunSamples, pool_strips
from evaluation.report.step_tables import feature_table
from pipeline.stores.labels import INAPPLICABLE, LabelSpace

MAX_CLASSES = 20
"""Classes of a teacher that are listed."""


def learned_labels(run: RunRecord) -> Markup:
    """Render pool images with the labels that the student learned from."""
    samples = RunSamples(run)
    strips = list(pool_strips(samples))
    student = run.student
    heads = [head for head in samples.heads.values() if head.is_learned]
    return render(
        "learned_labels.html",
        strips=strips,
        rejected=student.counts.get("rejected", {}) if student else {},
        legends={head.label.task: head.label.legend for head in heads if head.label.legend},
        class_keys=_class_keys(samples),
    )


def held_out(run: RunRecord) -> Markup:
    """Render held-out images with their true label and the predictions of teacher and student."""
    samples = RunSamples(run)
    targets = list(held_out_strips(samples))
    return render("held_out.html", targets=targets, class_keys=_class_keys(samples))


def _class_keys(samples: RunSamples) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return by teacher the colors of the classes that were drawn in masks."""
    drawn = samples.drawn_classes.items()
    return [(teacher, class_colors(space, sorted(classes))) for teacher, (space, classes) in drawn]


def curves(run: RunRecord) -> Markup:
    """Render the losses of the student, of every trained teacher and of the stages, over the steps."""
    student = run.student
    log = TrainingLog.of(student) if student else TrainingLog([])
    teachers, stages = (
        {name: TrainingLog.of(artifact) for name, artifact in run.of_kind(kind).items()}
        for kind in ("teacher", "stage")
    )
    features = feature_table(run)
    charts = {
        "Student": [loss_chart(*curve) for curve in log.curves("weighted total")],
        "Teachers": list(_charts(teachers)),
        "Stages": list(_charts(stages)),
    }
    unlogged = [name for name, each in teachers.items() if not each.lines]
    return render(
        "training.html",
        charts={title: drawn for title, drawn in charts.items() if drawn},
        features=features if features.rows else None,
        unlogged=[*unlogged, *(["the student"] if student and not log.lines else [])],
    )


def _charts(logs: Mapping[str, TrainingLog]) -> Iterator[Markup]:
    for trained, log in logs.items():
        yield from (loss_chart(*curve) for curve in log.curves(trained, f"{trained}: "))


def calibration(run: RunRecord) -> Markup:
    """Render how well the teachers' scores state the share that is right, before and after calibration."""
    calibrations = {name: teacher.calibration for name, teacher in run.teachers().items()}
    found = {name: each.reliability for name, each in calibrations.items() if each and each.reliability}
    made = run.of_kind("teacher").items()
    reasons = {name: each.counts["uncalibrated"] for name, each in made if "uncalibrated" in each.counts}
    if not found and not reasons:
        return Markup()
    rows = [
        [
            name,
            f"{each.dataset}/{each.split}",
            f"{each.images:,}",
            f"{each.examples:,}",
            f"{each.raw.ece:.3f}",
            f"{each.calibrated.ece:.3f}",
        ]
        for name, each in found.items()
    ]
    head = ["Teacher", "Measured on", "Images", "Predictions", "Error raw", "calibrated"]
    return render(
        "calibration.html",
        charts=[reliability_chart(name, each) for name, each in found.items()],
        errors=ReportTable(head, rows, range(2, 6)) if rows else None,
        reasons=reasons,
    )


def applicability(run: RunRecord) -> Markup:
    """Render by teacher and set of the pool the share of images that are of another kind than the teacher's."""
    made = run.of_kind("teacher")
    known = {name: each.counts["applicability"] for name, each in made.items() if each.counts.get("applicability")}
    told = {name: about for name, about in known.items() if "dataset" in about}
    reasons = {name: about["why"] for name, about in known.items() if "why" in about}
    label = run.artifacts.get("label")
    if label is None or not known:
        return Markup()
    shares = label.counts["inapplicable"]
    sets = list(dict.fromkeys(name for by_set in shares.values() for name in by_set))
    rows = [
        [
            teacher,
            f"{about['dataset']} ({about['held_out']:,})",
            *(_share(shares.get(teacher, {}), name) for name in sets),
        ]
        for teacher, about in told.items()
    ]
    return render(
        "applicability.html",
        shares=ReportTable(["Teacher", "Knows", *sets], rows, range(2, 2 + len(sets))) if rows else None,
        reasons=reasons,
        limit=INAPPLICABLE,
    )


def _share(shares: Mapping[str, float], name: str) -> StyledText | str:
    """Return a share in percent, marked where it is most of a set; a dash for a set that is not labelled."""
    if name not in shares:
        return DASH
    return StyledText(percent(shares[name]), "warn" if shares[name] > MOST_INAPPLICABLE else "")


def kept_labels(run: RunRecord) -> Markup:
    """Render how much of each class the thresholds keep."""
    reports = run.kept()
    return render(
        "kept.html",
        reports=[_kept_by_class(name, report) for name, report in reports.items() if report["threshold"] > 0],
        unfiltered=[name for name, report in reports.items() if report["threshold"] <= 0],
        weights={name: report["weight"] for name, report in reports.items() if "weight" in report},
        nothing=DASH,
    )


def _kept_by_class(teacher: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a threshold keeps of a teacher's labels, in all and of the most frequent classes."""
    held: list[float] = report["held"]
    by_amount = sorted(range(len(held)), key=lambda number: -held[number])
    named = [number for number in by_amount if held[number]]
    others = named[MAX_CLASSES:]
    return {
        **report,
        "teacher": teacher,
        "unit": tasks.label(LabelSpace(report["task"], tuple(report["classes"]))).unit,
        "totals": {"held": sum(held), "kept": sum(report["kept"])},
        "rows": [
            {"name": report["classes"][number], "held": held[number], "kept": report["kept"][number]}
            for number in named[:MAX_CLASSES]
        ],
        "others": len(others),
        "others_held": sum(held[number] for number in others),
        "unnamed": len(held) - len(named),
    }
