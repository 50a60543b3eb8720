"""The report's last sections: what ran and for how long, the data, and all that is needed to run it again."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow.parquet as pq

from evaluation.report.charts import bar
from evaluation.report.html import Html, element, join
from evaluation.report.page import NOTHING, duration, file_name, folded, listed, paragraph, percent, plural, table
from evaluation.report.run_record import FinishedStep, Log, RunRecord
from ingest.pool import read_pool
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import Artifact

FIRST = 5
"""Files, or reasons, that are listed of each kind."""


def steps(run: RunRecord) -> Html:
    """What ran and what was reused, with time, counts and speed."""
    total = run.seconds()
    done = run.steps()
    made = sum(not step.reused for step in done)
    about = (
        f"{plural(made, 'step')} ran and {len(done) - made} were reused, in {duration(total)}. "
        "Shares are of that time. What is reused shows in grey how long it took when it was made."
    )
    head = ["Step", "", "Time", "Share", "", "What it did"]
    rows = [_step_row(step, total) for step in done]
    return join([paragraph(about, class_="note"), table(head, rows, {2, 3})])


def _step_row(step: FinishedStep, total: float) -> list[Html | str]:
    taken = duration(step.seconds)
    if step.reused:
        return [step.step, "reused", element("span", taken, class_="soft"), "", "", did(step)]
    share = step.seconds / total if total else 0.0
    why = element("span", "ran", title=step.why or None)
    return [step.step, why, taken, percent(share), bar(share), did(step)]


def did(step: FinishedStep) -> str:
    """What a step counted, and how fast it was, in words."""
    counts = step.artifact.counts
    words = [_counted(value, name) for name, value in counts.items() if type(value) is int and "." not in name]
    return ", ".join([*words, *_training(step.artifact), *_labelling(step)])


def _counted(count: int, name: str) -> str:
    noun = name.replace("_", " ")
    return f"{count:,} {noun.removesuffix('s') if count == 1 else noun}"


def _training(made: Artifact) -> Iterator[str]:
    log = Log.of(made)
    if not log.lines:
        return
    yield plural(len(log.lines), "optimiser step")
    if "earlier_seconds" in made.counts:
        yield f"{duration(made.counts['training_seconds'])} of training, earlier attempts included"
    if log.rate():
        yield f"{log.rate():,.0f} images/s"
    parts = [part for part in made.manifest["config"].values() if isinstance(part, dict)]
    waiting = next((log.waiting(part["batch"]) for part in parts if "batch" in part), None)
    if waiting is not None:
        yield f"{percent(waiting)} of the time waiting for data"
    what = "each process's part of a batch" if "processes" in made.counts else "batches"
    for cut in made.counts.get("out_of_memory", ()):
        yield f"out of memory at step {cut['step']:,} (from there on {what} in {cut['pieces']:,} pieces)"


def _labelling(step: FinishedStep) -> Iterator[str]:
    counts = step.artifact.counts
    labelled, workers = counts.get("labelled_now", 0), len(counts.get("choices", ()))
    if labelled and step.seconds:
        rate = labelled / step.seconds
        yield f"{rate:,.1f} images/s by {plural(workers, 'teacher')}, {rate * workers:,.0f} labels/s"


def data(run: RunRecord) -> Html:
    """The sets, what was wrong with them, and the pool."""
    used = _used(run)
    head = ["Set", "Kind", *SPLITS, "In the pool", "True labels", "Duplicates", "Unusable", "Notes"]
    rows = [_set_row(name, made, used) for name, made in run.of_kind("data").items()]
    parts = [table(head, rows, {2, 3, 4, 5, 7, 8, 9})] if rows else [paragraph("No set was read.")]
    for name, made in run.of_kind("data").items():
        parts += _troubles(name, made)
    return join([*parts, *_pool(run)])


def _used(run: RunRecord) -> Counter[str]:
    pool = run.artifacts.get("pool")
    if not pool:
        return Counter()
    return Counter(read_pool(pool, ["set"])["set"].to_pylist())


def _set_row(name: str, made: Artifact, used: Counter[str]) -> list[str]:
    counts = made.counts
    labels: Counter[str] = Counter()
    for key, count in counts.items():
        kind, _, rest = key.partition(".")
        if kind == "labels":
            labels[rest.partition(".")[0]] += count
    return [
        name,
        made.manifest["config"].get("source", {}).get("kind", ""),
        *(_count(counts.get(f"images.{split}", 0)) for split in SPLITS),
        _count(used[name]),
        ", ".join(f"{task} {count:,}" for task, count in labels.items()) or "none",
        *(_count(counts.get(trouble, 0)) for trouble in ("duplicates", "quarantined", "notes")),
    ]


def _count(count: int) -> str:
    return f"{count:,}" if count else NOTHING


def _troubles(name: str, made: Artifact) -> Iterator[Html]:
    """The first files that can't be used or are double, and what had to be changed in labels."""
    unusable = _listing(made, "quarantine")
    if unusable:
        yield element("h3", name, element("span", f" {plural(len(unusable), 'unusable file')}", class_="soft"))
        yield _files(unusable)
    double = _listing(made, "duplicates")
    if double:
        yield element("h3", name, element("span", f" {plural(len(double), 'duplicate')}, left out", class_="soft"))
        yield _files(double)
    notes = Counter(row["reason"] for row in _listing(made, "notes"))
    if notes:
        total = f" {plural(sum(notes.values()), 'note')} on labels that were clipped or dropped"
        yield element("h3", name, element("span", total, class_="soft"))
        yield listed([f"{reason}: {count:,}" for reason, count in notes.most_common(FIRST)] + _more(len(notes)))


def _listing(made: Artifact, kind: str) -> list[dict[str, str]]:
    name = f"{kind}.parquet"
    rows: list[dict[str, str]] = made.load(name, pq.read_table).to_pylist() if made.has(name) else []
    return rows


def _files(rows: list[dict[str, str]]) -> Html:
    first = [element("span", file_name(row["source"]), f": {row['reason']}") for row in rows[:FIRST]]
    return listed([*first, *_more(len(rows))])


def _more(count: int) -> list[str]:
    return [f"and {count - FIRST:,} more"] if count > FIRST else []


def _pool(run: RunRecord) -> Iterator[Html]:
    pool = run.artifacts.get("pool")
    if not pool:
        return
    yield element("h3", "Pool", element("span", f" {plural(pool.counts['images'], 'image')}", class_="soft"))
    reasons = pool.counts.get("left_out", {})
    if reasons:
        yield listed(f"{plural(count, 'image')} left out: {reason}" for reason, count in reasons.items())
    else:
        yield paragraph("No image was left out: none is held out in a set, none is double.")


def recipe(run: RunRecord) -> Html:
    """The recipe with all its defaults, versions, and the fingerprints that address every artifact."""
    parts = [folded("Recipe as run, with its defaults", element("pre", run.recipe_text))] if run.recipe_text else []
    versions = table(["Software", "Version"], _versions(run.artifacts.values()))
    head = ["Step", "Fingerprint", "Digest of the result", "Version", "Made"]
    marks = table(head, (_mark_row(name, made) for name, made in run.artifacts.items()), {3})
    return join([*parts, folded("Software", versions), folded("Fingerprints", marks)])


def _versions(artifacts: Iterable[Artifact]) -> list[list[str]]:
    """Every version that took part: artifacts that are reused may have been made by another."""
    found: dict[str, dict[str, None]] = {}
    for made in artifacts:
        for name, version in made.manifest.get("software", {}).items():
            found.setdefault(name, {})[str(version)] = None
    return [[name, ", ".join(versions)] for name, versions in found.items()]


def _mark_row(name: str, made: Artifact) -> list[Html | str]:
    manifest = made.manifest
    began = datetime.datetime.fromtimestamp(manifest.get("began", 0), datetime.UTC)
    fingerprint, digest = (
        element("code", manifest.get("fingerprint", "")),
        element("code", manifest.get("digest", "")[:16]),
    )
    return [name, fingerprint, digest, str(manifest.get("version", "")), f"{began:%Y-%m-%d %H:%M} UTC"]
