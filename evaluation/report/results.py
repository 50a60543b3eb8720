"""The report's first sections: the outcome in words, the warnings, and the table of results."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from evaluation.backbone_table import has_measurements, not_measured
from evaluation.comparison.comparison import comparison_advice
from evaluation.metric_table import (
    ARROWS,
    NINE_TENTHS,
    ROLES,
    ClassLine,
    fine_print,
    outcome_sentences,
    read_class_lines,
    read_lines,
    weak_models,
)
from evaluation.report.charts import standing
from evaluation.report.formatting import DASH, duration, percent, plural
from evaluation.report.html import ReportTable, StyledText, render
from evaluation.report.rounds import KIND
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import Artifact, of_kind, read_json
from pipeline.storage.parquet import read_parquet
from pipeline.stores.labels import INAPPLICABLE
from pipeline.stores.naming import LABEL_INDEX

MAX_CLASSES = 200
"""Classes that a table shows at most, the weakest."""
MOST_INAPPLICABLE = 0.5
"""Share of a set's images of another kind than a teacher's above which there is a warning."""


class ReportWarning(NamedTuple):
    """A sentence. A file's name may stand in it, between `text` and `rest`: the page sets it apart."""

    text: str
    file: str = ""
    rest: str = ""

    def __str__(self) -> str:
        return f"{self.text}{self.file}{self.rest}"


def head(run: RunRecord) -> Markup:
    """Render the run's name, its key facts, its outcome in words, and every warning."""
    lines, _ = read_lines(run.metrics())
    began = run.began()
    return render(
        "head.html",
        name=run.name,
        began=f"{began:%d %B %Y, %H:%M} UTC" if began else "date unknown",
        folder=run.folder.name,
        # a run that measured neither student nor teachers may have compared methods
        outcome=(comparison_advice(run.artifacts) if not lines else []) or outcome_sentences(lines, run.home()),
        fine_print=fine_print(lines, run.home()) if lines else "",
        facts=list(key_facts(run)),
        warnings=warnings(run),
        timings=timing_table(run),
    )


def key_facts(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Yield (name, fact, note): time, machine, teachers, pool and labels in a few words each."""
    yield "Total time", duration(run.seconds()), ""
    choices = run.choices()
    choice = choices.get("training student") or next(iter(choices.values()), None)
    if choice:
        times = ", ".join(f"{name}:\u00a0{ms:,.0f}\u00a0ms" for name, ms in choice["measured_ms"].items())
        yield "Device", display_device(choice["device"]), ""
        yield "Student trained in", layout(choice), times or "as the recipe says"
    yield "Teachers", str(len(run.of_kind("teacher"))), ""
    if "pool" in run.artifacts:
        yield "Pool", plural(run.artifacts["pool"].counts["images"], "image"), ""
    if "label" in run.artifacts:
        entries = run.artifacts["label"].load(LABEL_INDEX, read_json)
        yield "Pseudo labels", f"{sum(entry['rows'] - entry['failed'] for entry in entries):,}", ""


def display_device(device: str) -> str:
    """Return the product name of a torch device if this machine has it, else `device` itself."""
    from pipeline.training.device import device_name, find_device  # noqa: PLC0415 - torch, for a name

    return device_name(device) if find_device("auto") == device else device


def layout(choice: Mapping[str, Any]) -> str:
    """Return precision and memory layout under the name that their timings have."""
    return f"{choice['precision']}{' channels_last' if choice['channels_last'] else ''}"


def timing_table(run: RunRecord) -> ReportTable | None:
    """Return the milliseconds of each precision and memory layout for each model; None if nothing was timed."""
    choices = run.choices()
    if not choices:
        return None
    layouts = list(dict.fromkeys(itertools.chain.from_iterable(choice["measured_ms"] for choice in choices.values())))
    rows = [
        [work, choice["device"], layout(choice), *(_milliseconds(choice, name) for name in layouts)]
        for work, choice in choices.items()
    ]
    head = ["Work", "Device", "Chosen", *(f"{name}, ms" for name in layouts)]
    return ReportTable(head, rows, range(3, len(head)))


def _milliseconds(choice: Mapping[str, Any], name: str) -> StyledText | str:
    if name not in choice["measured_ms"]:
        return DASH
    text = f"{choice['measured_ms'][name]:,.1f}"
    return StyledText(text, "good") if name == layout(choice) else text


def warnings(run: RunRecord) -> list[ReportWarning]:
    """Return what was dropped, kept out, skewed, failed or came out worse than it should, a sentence each."""
    lines, _ = read_lines(run.metrics())
    sentences = [
        *_untracked(run),
        *not_measured(run.metrics(), run.artifacts),
        *weak_models(lines),
        *_foreign(run),
        *_unchanged(run),
        *_skewed(run),
        *_lapsed(run),
        *_collapsed(run),
    ]
    return [
        *map(ReportWarning, sentences),
        *_unusable(run),
        *map(ReportWarning, lost_labels(run.artifacts)),
        *_conflicts(run),
        *map(ReportWarning, [*_held_out(run), *_failed(run)]),
    ]


def _foreign(run: RunRecord) -> Iterator[str]:
    """Yield a sentence for each set of the pool most of whose images are of another kind than a teacher's."""
    made = run.artifacts.get("label")
    unlike: dict[str, dict[str, float]] = {}
    for teacher, shares in (made.counts["inapplicable"] if made else {}).items():
        for name, share in shares.items():
            if share > MOST_INAPPLICABLE:
                unlike.setdefault(name, {})[teacher] = share
    for name, found in unlike.items():
        least, most = percent(min(found.values())), percent(max(found.values()))
        share, noun = least if least == most else f"{least} to {most}", "teacher" if len(found) == 1 else "teachers"
        yield (
            f"{share} of the images of the set {name} are unlike those known to {noun} {', '.join(found)} "
            f"(applicability below {INAPPLICABLE:g}): name the sets that a teacher is to label as "
            "teachers.NAME.labels, or give student.applicability.NAME."
        )


def _unchanged(run: RunRecord) -> Iterator[str]:
    for step, artifact in run.artifacts.items():
        if artifact.kind == KIND:
            for warning in artifact.counts["warnings"]:
                yield f"{step}: {warning}, so that the next student learns the same labels: leave the round out."


def _skewed(run: RunRecord) -> list[str]:
    student = run.student
    return [f"Kept labels: {warning}." for warning in student.counts.get("warnings", ())] if student else []


def _lapsed(run: RunRecord) -> Iterator[str]:
    student = run.student
    for teacher, count in (student.counts.get("lapsed_rejections", {}) if student else {}).items():
        verbs = "is of another version" if count == 1 else "are of other versions"
        ends = "doesn't count" if count == 1 else "don't count"
        yield (
            f"{plural(count, 'rejected label')} {verbs} of {teacher}, and {ends}: look at the labels of this version, "
            "and reject those that are wrong."
        )


def _collapsed(run: RunRecord) -> Iterator[str]:
    for step, artifact in run.artifacts.items():
        features = artifact.counts.get("features")
        if features and features["collapsed"]:
            before, after = features["before"], features["after"]
            yield (
                f"The features of {step} have collapsed: their spread is {after['spread']:.3f}, where 1 would be even, "
                f"and was {before['spread']:.3f} before; their effective rank is {after['rank']:.1f}, and was "
                f"{before['rank']:.1f}."
            )


def _unusable(run: RunRecord) -> Iterator[ReportWarning]:
    for name, artifact in run.of_kind("data").items():
        bad = artifact.counts.get("quarantined", 0)
        if bad:
            first = artifact.load("quarantine.parquet", read_parquet).slice(0, 1).to_pylist()[0]
            files = plural(bad + artifact.counts.get("images", 0), "file")
            text = f"{bad:,} of {files} of the set {name} can't be used and were left out. First: "
            yield ReportWarning(text, first["source"], f": {first['reason']}.")


def lost_labels(artifacts: Mapping[str, Artifact]) -> Iterator[str]:
    """Yield a sentence for each set that has fewer classes than when it was read before."""
    for name, artifact in of_kind(artifacts.values(), "data").items():
        yield from (f"The set {name} {warning}." for warning in artifact.counts.get("warnings", ()))


def _conflicts(run: RunRecord) -> Iterator[ReportWarning]:
    for name, artifact in run.of_kind("data").items():
        if count := artifact.counts.get("conflicts", 0):
            listed = artifact.load("duplicates.parquet", read_parquet).to_pylist()
            first = next(row for row in listed if "another label" in row["reason"])
            files = f"{plural(count, 'file')} of the set {name}"
            text = f"Not used: {files} with another label than the same image has already. First: "
            yield ReportWarning(text, first["source"], f": {first['reason']}.")


def _held_out(run: RunRecord) -> Iterator[str]:
    pool = run.artifacts.get("pool")
    for reason, number in (pool.counts.get("left_out", {}) if pool else {}).items():
        if reason.startswith("held out"):
            verb = "was" if number == 1 else "were"
            yield f"{plural(number, 'image')} {verb} kept out of the pool: the same bytes are {reason}."


def _failed(run: RunRecord) -> Iterator[str]:
    labels = run.artifacts.get("label")
    failed: Counter[tuple[str, str]] = Counter()
    for entry in labels.load(LABEL_INDEX, read_json) if labels else ():
        failed[entry["teacher"], entry["set"]] += entry["failed"]
    for (teacher, name), number in failed.items():
        if number:
            verb = "has" if number == 1 else "have"
            yield f"{plural(number, 'image')} of {name} {verb} no label by {teacher}: labelling failed there."


def _untracked(run: RunRecord) -> Iterator[str]:
    for event in run.events():
        if event["event"] == "trackers":
            yield f"The tracker {event['tracker']} wrote nothing: {event['error']}"


def results(run: RunRecord) -> Markup:
    """Render student, teacher and baseline by metric; nothing if only backbones were measured."""
    lines, others = read_lines(run.metrics())
    class_lines = read_class_lines(run.metrics())
    if not lines and not others and has_measurements(run.artifacts):
        return Markup()
    protocols = list(dict.fromkeys((line.target.protocol, line.target.seed) for line in lines))
    groups = [
        (target, protocols.index((target.protocol, target.seed)) + 1, list(group))
        for target, group in itertools.groupby(lines, key=lambda line: line.target)
    ]
    return render(
        "results.html",
        groups=groups,
        protocols=protocols,
        by_class=[(target, len(found), _class_table(found)) for target, found in class_lines.items()],
        max_classes=MAX_CLASSES,
        others=_others_table(others) if others else None,
        roles=ROLES,
        arrows=ARROWS,
        nine_tenths=NINE_TENTHS,
        nothing=DASH,
        standing=standing,
    )


def _class_table(lines: Sequence[ClassLine]) -> ReportTable:
    """Return a row per class, with student and teacher by each metric."""
    columns = [(metric, role) for metric in lines[0].values for role in ("student", "teacher")]
    rows = [
        [line.name, f"{line.support:,}", *(_class_value(line, metric, role) for metric, role in columns)]
        for line in lines[:MAX_CLASSES]
    ]
    head = ["Class", "Support", *(f"{metric}\n{role}" for metric, role in columns)]
    return ReportTable(head, rows, range(1, len(head)))


def _class_value(line: ClassLine, metric: str, role: str) -> str:
    value = line.values.get(metric, {}).get(role)
    return DASH if value is None else f"{value:.3f}"


def _others_table(records: Sequence[Mapping[str, Any]]) -> ReportTable:
    """Return the records of models other than student, teachers and baseline, one a row with all that they hold."""
    keys = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    values = [[record.get(key, "") for key in keys] for record in records]
    return ReportTable(
        keys, [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row] for row in values]
    )
