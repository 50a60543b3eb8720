"""Write the model card of an exported student from what its root records of how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pipeline.recipe.weight_names import is_path
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.workspace import Workspace

EVALUATE = "evaluate"
UNKNOWN = "The root that this was exported from no longer tells."
ROLES = ("student", "teacher", "baseline")
"""Columns of the table of metrics."""


def model_card(student: Artifact, loading: str, preprocessing: str) -> str:
    """Return the text of a README for an exported student: how to load it, and what it was made of.

    No path of this machine is in it.
    """
    about = student.load("model.json", read_json)
    made_from = _inputs_of(student)
    teachers = [made for made in made_from.values() if made.kind == "teacher"]
    sections = [
        ["---", "library_name: timm", "tags:", "- image-feature-extraction", "- timm", "---"],
        [f"# {about['backbone']}, a multi-task student", "", *_introduction(student, about)],
        ["## How do I load it?", "", "```python", *loading.splitlines(), "```"],
        ["## How are images prepared?", "", preprocessing],
        ["## What was it trained on?", "", *_sets(made_from.values()), "", *_pool(made_from.get("pool"), student)],
        ["## Which teachers labelled the images?", "", *_teachers(teachers), "", *_licences(student, teachers)],
        ["## How good is it?", "", *_metrics(student)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _inputs_of(student: Artifact) -> dict[str, Artifact]:
    """Return the artifacts that the student was made from, by step, as far as they are still there."""
    workspace, found = Workspace(student.root), {}
    for step, made in student.manifest["inputs"].items():
        place = student.root / f"artifacts/{step}/{made['path']}/manifest.json"
        if place.exists():
            artifact = workspace.open(step, made["path"])
            if artifact.digest == made["digest"]:
                found[step] = artifact
    return found


def _introduction(student: Artifact, about: Mapping[str, Any]) -> Iterator[str]:
    heads = ", ".join(f"{name} ({space['task']})" for name, space in about["heads"].items())
    yield f"The backbone of a network that was trained by multi-task self-training, with these heads at once: {heads}."
    yield "The heads are not in this folder."
    yield f"Fingerprint of the student: `{student.fingerprint}`."
    untrained = student.counts.get("untrained", [])
    if untrained:
        parts = ", ".join(sorted({name.partition(".")[0] for name in untrained}))
        yield f"No head trained {parts} ({len(untrained)} parameters): they have their initial values."


def _sets(artifacts: Iterable[Artifact]) -> Iterator[str]:
    """Yield a table of the sets."""
    rows = []
    for made in artifacts:
        if made.kind != "data":
            continue
        images = _counts(made, "images")
        labels = _counts(made, "labels")
        kind = made.manifest["config"].get("source", {}).get("kind", "")
        rows.append((made.section[-1], kind, images.pop("", 0), _listed(images), _listed(labels) or "none"))
    yield from _table(("set", "format", "images", "by split", "true labels"), rows)


def _counts(made: Artifact, prefix: str) -> dict[str, int]:
    """Return the counts of this name and below it: `images` and `images.train`."""
    found = {name.removeprefix(prefix).lstrip("."): count for name, count in made.counts.items() if _is(name, prefix)}
    return {name: count for name, count in found.items() if isinstance(count, int)}


def _is(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _pool(pool: Artifact | None, student: Artifact) -> Iterator[str]:
    if pool is not None:
        yield f"Pool: {pool.counts['images']:,} images of {', '.join(pool.manifest['config']['pool'])}."
    settings = student.manifest["config"]["student"]
    labels = {
        "true_first": "true labels where there are any, else those of the teachers",
        "true_only": "true labels alone",
        "pseudo_only": "the teachers' labels alone",
    }
    words = labels.get(settings["labels"], settings["labels"])
    yield f"The student learned from {student.counts['images']:,} images: {words}."


def _teachers(teachers: Iterable[Artifact]) -> Iterator[str]:
    """Yield a table of the teachers."""
    rows = []
    for made in teachers:
        config, about = made.manifest["config"]["teacher"], made.load("teacher.json", read_json)
        model = config.get("model") or config.get("backbone") or config.get("function") or ""
        scores = ", ".join(f"{metric} {value:.4g}" for metric, value in list(about["scores"].items())[:1])
        measured = f"{scores} on {about['held_out']:,} images" if scores else ""
        trained = about["data"] or ""
        weights = public_name(config.get("weights")) if config.get("weights") else ""
        rows.append((made.section[-1], config["kind"], about["space"]["task"], model, weights, trained, measured))
    yield from _table(("teacher", "kind", "task", "model", "weights", "trained on", "on held-out images"), rows)


def _licences(student: Artifact, teachers: Iterable[Artifact]) -> Iterator[str]:
    weights = {
        f"{made.section[-1]}: {name}" for made in teachers if (name := _weights(made.manifest["config"]["teacher"]))
    }
    if own := _weights(student.manifest["config"]["student"]):
        weights.add(f"the student's own start: {own}")
    if weights:
        yield "Weights of others went into it. Check the licences of"
        yield ""
        yield from (f"* {each}" for each in sorted(weights))
        yield ""
    yield "Check the licences of the sets above as well, before this model is given away."


def _weights(config: Mapping[str, Any]) -> str:
    """Return the model and the weights that a section of the recipe names; "" if it begins from random ones."""
    if not config.get("weights"):
        return ""
    model = config.get("model") or config.get("backbone") or ""
    return f"{model} ({public_name(config['weights'])})" if model else public_name(config["weights"])


def public_name(weights: str) -> str:
    """Return the name of weights without the folders of this machine."""
    return PurePath(weights).name if is_path(weights) else weights


def _metrics(student: Artifact) -> Iterator[str]:
    """Yield a table of what was measured of this student, with its teachers and the trivial baseline."""
    records = _measured(student)
    values: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        target = tuple(record[key] for key in ("head", "task", "dataset", "split", "n", "metric", "better"))
        values.setdefault(target, {})[str(record["model"]).partition(":")[0]] = record["value"]
    rows = [
        (head, f"{dataset}, {split}", n, f"{metric} ({better} is better)", *map(_value, map(found.get, ROLES)))
        for (head, _, dataset, split, n, metric, better), found in values.items()
        if found.get("student") is not None
    ]
    if not rows:
        yield "It was not measured."
        return
    yield from _table(("head", "set", "images", "metric", *ROLES), rows)
    yield ""
    yield "Held-out images, whole. The baseline is the best label that ignores the image."


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _measured(student: Artifact) -> list[dict[str, Any]]:
    """Return the records of an evaluation of this student, [] if there is none."""
    workspace = Workspace(student.root)
    for folder in (student.root / f"artifacts/{EVALUATE}").folders():
        if not folder.child("manifest.json").exists():
            continue
        made = workspace.open(EVALUATE, folder.name)
        if made.manifest["inputs"].get("student", {}).get("digest") == student.digest and made.is_whole():
            return list(made.load("metrics.json", read_json))
    return []


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield a table of Markdown, or a line that nothing is known."""
    names, rows = list(columns), [list(row) for row in rows]
    if not rows:
        yield UNKNOWN
        return
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(_cell(entry) for entry in row)} |"


def _cell(entry: Any) -> str:
    text = f"{entry:,}" if isinstance(entry, int) else str(entry)
    return " ".join(text.split()).replace("|", "\\|")
