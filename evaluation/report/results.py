"""The report's first sections: what came out, what to look at with care, and the results in numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from evaluation.backbone_table import any_measured
from evaluation.comparison.comparison import advised
from evaluation.metric_table import (
    ARROWS,
    NINE_TENTHS,
    ROLES,
    EvaluationTarget,
    Line,
    fine_print,
    leading,
    outcome,
    read_lines,
    weak_teachers,
)
from evaluation.report.charts import standing
from evaluation.report.html import Html, element, escape, join
from evaluation.report.page import NOTHING, duration, facts, file_name, folded, listed, paragraph, plural, table
from evaluation.report.run_record import RunRecord
from pipeline.steps.artifact import read_json


def head(run: RunRecord) -> Html:
    """The name of the run, its key facts, its outcome in words, and every warning."""
    lines, _ = read_lines(run.metrics())
    began = run.began()
    when = f"{began:%d %B %Y, %H:%M} UTC" if began else "date unknown"
    return join(
        [
            element("h1", run.name),
            paragraph(f"{when} · {run.folder.name}", class_="soft"),
            *(paragraph(sentence, class_="lead") for sentence in _leading_words(run, lines)),
            *([paragraph(fine_print(lines, run.home()), class_="note")] if lines else []),
            facts(key_facts(run)),
            warning_box(warnings(run)),
            machine(run),
        ]
    )


def _leading_words(run: RunRecord, lines: Sequence[Line]) -> list[str]:
    """The outcome; of a run that measured neither student nor teachers, what its comparison came to."""
    return (advised(run.artifacts) if not lines else []) or outcome(lines, run.home())


def key_facts(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Time, machine, teachers, pool and labels in a few words each."""
    yield "Total time", duration(run.seconds())
    choices = run.choices()
    chosen = choices.get("training student") or next(iter(choices.values()), None)
    if chosen:
        yield "Device", device(chosen["device"])
        yield "Student trained in", join([escape(way(chosen)), element("small", _compared(chosen))])
    yield "Teachers", str(len(run.of_kind("teacher")))
    if "pool" in run.artifacts:
        yield "Pool", plural(run.artifacts["pool"].counts["images"], "image")
    if "label" in run.artifacts:
        entries = run.artifacts["label"].load("labels.json", read_json)
        yield "Pseudo labels", f"{sum(entry['rows'] - entry['failed'] for entry in entries):,}"


def device(name: str) -> str:
    """What a person would call the device; only its kind, if the run was made on a machine with another."""
    from pipeline.training.device import device_name, find_device  # noqa: PLC0415 - torch, for a name

    return device_name(name) if find_device("auto") == name else name


def _compared(choice: Mapping[str, Any]) -> str:
    """The milliseconds that decided, in words."""
    return ", ".join(f"{name}:\u00a0{ms:,.0f}\u00a0ms" for name, ms in choice["measured_ms"].items()) or "as told"


def way(choice: Mapping[str, Any]) -> str:
    """A precision and a layout, named as their measurements are."""
    return f"{choice['precision']}{' channels_last' if choice['channels_last'] else ''}"


def machine(run: RunRecord) -> Html:
    """The table of milliseconds per way and work."""
    choices = run.choices()
    if not choices:
        return Html()
    ways = list(dict.fromkeys(itertools.chain.from_iterable(choice["measured_ms"] for choice in choices.values())))
    rows = [
        [work, choice["device"], way(choice), *(_milliseconds(choice, name) for name in ways)]
        for work, choice in choices.items()
    ]
    about = (
        "Milliseconds per trial call in each precision and memory layout, measured on this machine on the model "
        "itself; the fastest, in bold, was used. A work without numbers was told what to use."
    )
    shown = table(["Work", "Device", "Chosen", *(f"{name}, ms" for name in ways)], rows, range(3, 3 + len(ways)))
    return folded("How precision and memory layout were chosen", paragraph(about, class_="note"), shown)


def _milliseconds(choice: Mapping[str, Any], name: str) -> Html | str:
    if name not in choice["measured_ms"]:
        return NOTHING
    text = f"{choice['measured_ms'][name]:,.1f}"
    return element("span", text, class_="good") if name == way(choice) else text


def warning_box(items: Sequence[Html | str]) -> Html:
    """All warnings, or a word that there are none."""
    if not items:
        return paragraph("No warnings.", class_="soft")
    title = element("h3", f"{plural(len(items), 'warning')}")
    return element("div", title, listed(items), class_="warnings", role="note")


def warnings(run: RunRecord) -> list[Html | str]:
    """What was dropped, kept out, skewed, failed or came out worse than it should, a sentence each."""
    lines, _ = read_lines(run.metrics())
    return [
        *weak_teachers(lines),
        *_weak_student(lines),
        *_skewed(run),
        *_collapsed(run),
        *_left_out(run),
        *_failed(run),
    ]


def _weak_student(lines: Sequence[Line]) -> Iterator[str]:
    for line in leading(lines):
        if line.ahead("student", "baseline") is False:
            yield (
                f"The student is no better than the trivial baseline at {line.place.head} on "
                f"{line.place.dataset}/{line.place.split}: {line.metric} {line.values['student']:.3f} against "
                f"{line.values['baseline']:.3f}."
            )


def _skewed(run: RunRecord) -> list[str]:
    made = run.artifacts.get("student")
    return [f"Kept labels: {warning}." for warning in made.counts.get("warnings", ())] if made else []


def _collapsed(run: RunRecord) -> Iterator[str]:
    for step, made in run.artifacts.items():
        found = made.counts.get("features")
        if found and found["collapsed"]:
            before, after = found["before"], found["after"]
            yield (
                f"The features of {step} have collapsed: their spread is {after['spread']:.3f}, where 1 would be even, "
                f"and was {before['spread']:.3f} before; their effective rank is {after['rank']:.1f}, and was "
                f"{before['rank']:.1f}."
            )


def _left_out(run: RunRecord) -> Iterator[Html | str]:
    for name, made in run.of_kind("data").items():
        bad = made.counts.get("quarantined", 0)
        if bad:
            first = made.load("quarantine.parquet", pq.read_table).slice(0, 1).to_pylist()[0]
            total = bad + made.counts.get("images", 0)
            words = f"{bad:,} of {plural(total, 'file')} of the set {name} can't be used and were left out. First: "
            yield element("span", words, file_name(first["source"]), f": {first['reason']}.")
    pool = run.artifacts.get("pool")
    for reason, count in (pool.counts.get("left_out", {}) if pool else {}).items():
        if reason.startswith("held out"):
            verb = "was" if count == 1 else "were"
            yield f"{plural(count, 'image')} {verb} kept out of the pool: the same bytes are {reason}."


def _failed(run: RunRecord) -> Iterator[str]:
    made = run.artifacts.get("label")
    if not made:
        return
    failed: Counter[tuple[str, str]] = Counter()
    for entry in made.load("labels.json", read_json):
        failed[entry["teacher"], entry["set"]] += entry["failed"]
    for (teacher, name), count in failed.items():
        if count:
            verb = "has" if count == 1 else "have"
            yield f"{plural(count, 'image')} of {name} {verb} no label by {teacher}: labelling failed there."


def results(run: RunRecord) -> Html:
    """Student, teacher and baseline by metric."""
    lines, others = read_lines(run.metrics())
    if not lines and not others:
        return Html() if any_measured(run.artifacts) else paragraph("Nothing was measured in this run.")
    parts = [_explanation(), _results_table(lines), _footnotes(lines)] if lines else []
    if others:
        parts += [element("h3", "Further measurements"), _others_table(others)]
    return join(parts)


def _explanation() -> Html:
    return paragraph(
        "Every model on the same held-out images. Share: the student as a share of its teacher, "
        f"or the teacher as a share of the student where less is better; from {NINE_TENTHS:.0%} on it is in bold. "
        "In the last column better is to the right: a tick is the trivial baseline, the best answer that does not look "
        "at the image, a ring the teacher, a dot the student.",
        class_="note",
    )


def _results_table(lines: Sequence[Line]) -> Html:
    top = ["", "Student", "Teacher", "Baseline", "Share", ""]
    kinds = [None, "n", "n", "n", "n", "hide"]
    header = element("tr", *(element("th", name, class_=kind) for name, kind in zip(top, kinds, strict=True)))
    protocols = _protocols(lines)
    rows = []
    for place, found in itertools.groupby(lines, key=lambda line: line.place):
        rows.append(_place_row(place, protocols.index((place.protocol, place.seed)) + 1))
        rows += [_line_row(line) for line in found]
    return element("div", element("table", element("thead", header), element("tbody", *rows)), class_="wide")


def _place_row(place: EvaluationTarget, footnote: int) -> Html:
    where = f" {place.task} on {place.dataset}/{place.split}, {plural(place.n, 'image')}"
    cells = [place.head, element("span", where, class_="soft"), element("sup", str(footnote), class_="soft")]
    return element("tr", element("th", *cells, colspan="6", scope="rowgroup"))


def _line_row(line: Line) -> Html:
    near = line.share is not None and line.share >= NINE_TENTHS
    share = element("span", _share(line.share), class_="good" if near else None)
    numbers = [_number(line.values.get(role)) for role in ROLES]
    cells = [element("td", f"{ARROWS[line.better]}\u00a0{line.metric}", title=f"{line.better} is better")]
    cells += [element("td", cell, class_="n") for cell in [*numbers, share]]
    return element("tr", *cells, element("td", standing(line.values, line.better), class_="hide"))


def _share(share: float | None) -> str:
    if share is None:
        return NOTHING
    return f"{share:.1%}" if share < 2 else f"{share:.3g} times"


def _number(value: float | None) -> Html:
    return element("span", NOTHING if value is None else f"{value:.3f}", title=None if value is None else f"{value!r}")


def _protocols(lines: Sequence[Line]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((line.place.protocol, line.place.seed) for line in lines))


def _footnotes(lines: Sequence[Line]) -> Html:
    notes = [
        paragraph(element("sup", str(number)), f" Seed {seed}. Protocol: {protocol}.", class_="note")
        for number, (protocol, seed) in enumerate(_protocols(lines), start=1)
    ]
    return join(notes)


def _others_table(records: Sequence[Mapping[str, Any]]) -> Html:
    """Records of other models than student, teachers and baseline, one a row with all that is known of them."""
    keys = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    rows = [[_plain(record.get(key, "")) for key in keys] for record in records]
    return table(keys, rows)


def _plain(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
