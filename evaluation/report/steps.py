"""The report's last sections: what ran and for how long, the data, and all that is needed to run it again."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from markupsafe import Markup

from evaluation.report.formatting import count, duration, percent, plural
from evaluation.report.html import ReportTable, render
from evaluation.report.run_record import FinishedStep, RunRecord, TrainingLog
from ingest.pool import read_pool
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import Artifact
from pipeline.storage.parquet import read_parquet
from pipeline.stores.naming import LABEL_STEP

MAX_LISTED = 5
"""Files, or reasons, that are listed of each kind."""


def steps(run: RunRecord) -> Markup:
    """Render what ran and what was reused, with time, counts and speed."""
    return render("steps.html", steps=run.steps(), total=run.seconds(), work_done=work_done)


def work_done(step: FinishedStep) -> str:
    """Return what a step counted, and how fast it was, in words."""
    counts = step.artifact.counts
    words = [_counted(value, name) for name, value in counts.items() if type(value) is int and "." not in name]
    return ", ".join([*words, *_training(step.artifact), *_labelling(step)])


def _counted(number: int, name: str) -> str:
    noun = name.replace("_", " ")
    return f"{number:,} {noun.removesuffix('s') if number == 1 else noun}"


def _training(artifact: Artifact) -> Iterator[str]:
    log = TrainingLog.of(artifact)
    if not log.lines:
        return
    yield plural(len(log.lines), "optimiser step")
    if "earlier_seconds" in artifact.counts:
        yield f"{duration(artifact.counts['training_seconds'])} of training, earlier attempts included"
    if log.images_per_second():
        yield f"{log.images_per_second():,.0f} images/s"
    sections = [section for section in artifact.manifest["config"].values() if isinstance(section, dict)]
    waiting = next((log.waiting_share(section["batch"]) for section in sections if "batch" in section), None)
    if waiting is not None:
        yield f"{percent(waiting)} of the time waiting for data"
    split = "each process's part of a batch" if "processes" in artifact.counts else "batches"
    for event in artifact.counts.get("out_of_memory", ()):
        yield f"out of memory at step {event['step']:,} (from there on {split} in {event['pieces']:,} pieces)"


def _labelling(step: FinishedStep) -> Iterator[str]:
    counts = step.artifact.counts
    labelled, makers = counts.get("labelled_now", 0), counts.get("choices", ())
    seconds = counts.get("worker_seconds", step.seconds)
    if labelled and seconds:
        rate = labelled / seconds
        worker = " per worker" if "worker_seconds" in counts else ""
        if step.step != LABEL_STEP:
            yield f"{rate:,.1f} images/s{worker}"
        else:
            labels = f"{rate * len(makers):,.0f} labels/s{worker}, by {plural(len(makers), 'teacher')}"
            yield f"{rate:,.1f} images/s and {labels}"


def data(run: RunRecord) -> Markup:
    """Render the sets, what was left out of them or changed, and the pool."""
    sets, pool = run.of_kind("data"), run.artifacts.get("pool")
    in_pool = Counter(read_pool(pool, ["set"])["set"].to_pylist()) if pool else Counter[str]()
    head = ["Set", "Kind", *SPLITS, "In the pool", "True labels", "Duplicates", "Unusable", "Notes"]
    rows = [_set_row(name, artifact, in_pool[name]) for name, artifact in sets.items()]
    return render(
        "data.html",
        sets=ReportTable(head, rows, {2, 3, 4, 5, 7, 8, 9}) if rows else None,
        exclusions={name: _exclusions(artifact) for name, artifact in sets.items()},
        pool={"images": pool.counts["images"], "left_out": pool.counts.get("left_out", {})} if pool else None,
        max_listed=MAX_LISTED,
    )


def _set_row(name: str, artifact: Artifact, in_pool: int) -> list[str]:
    counts = artifact.counts
    labels: Counter[str] = Counter()
    for key, number in counts.items():
        kind, _, rest = key.partition(".")
        if kind == "labels":
            labels[rest.partition(".")[0]] += number
    return [
        name,
        artifact.manifest["config"].get("source", {}).get("kind", ""),
        *(count(counts.get(f"images.{split}", 0)) for split in SPLITS),
        count(in_pool),
        ", ".join(f"{task} {number:,}" for task, number in labels.items()) or "none",
        *(count(counts.get(key, 0)) for key in ("duplicates", "quarantined", "notes")),
    ]


def _exclusions(artifact: Artifact) -> dict[str, Any]:
    """Return the files of a set that can't be used or are double, and by reason how many of its labels were changed."""
    tables = {name: f"{name}.parquet" for name in ("quarantine", "duplicates", "notes")}
    rows = {
        name: artifact.load(file, read_parquet).to_pylist() if artifact.has(file) else []
        for name, file in tables.items()
    }
    return {**rows, "notes": Counter(row["reason"] for row in rows["notes"])}


def recipe(run: RunRecord) -> Markup:
    """Render the recipe with all its defaults, versions, and the fingerprints that address every artifact."""
    return render(
        "recipe.html",
        text=run.recipe_text,
        software=ReportTable(["Software", "Version"], _versions(run.artifacts.values())),
        artifacts=[
            (step, made.fingerprint, made.digest[:16], made.manifest["version"], _began(made))
            for step, made in run.artifacts.items()
        ],
    )


def _versions(artifacts: Iterable[Artifact]) -> list[list[str]]:
    """Return every version that took part: artifacts that are reused may have been made by another."""
    found: dict[str, dict[str, None]] = {}
    for artifact in artifacts:
        for name, version in artifact.manifest["software"].items():
            found.setdefault(name, {})[str(version)] = None
    return [[name, ", ".join(versions)] for name, versions in found.items()]


def _began(artifact: Artifact) -> str:
    return f"{datetime.datetime.fromtimestamp(artifact.manifest['began'], datetime.UTC):%Y-%m-%d %H:%M} UTC"
