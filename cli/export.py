"""The commands `must export`: write labels and the student in formats that other tools read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli.options import OverrideOptions, RecipeArgument, RootOption
from pipeline.errors import PROJECT, ConfigError, require_one_of
from pipeline.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from pipeline.export import ExportSample
    from pipeline.recipe.recipe import Recipe
    from pipeline.steps.runtime import Progress
    from pipeline.storage.root import Root

# ruff: noqa: PLC0415 - as in cli/main.py

PROGRESS_IMAGES = 20
"""Number of images between progress updates."""


def forms_of(package: str) -> str:
    """Return the names of the forms in a package, from its file names alone: it is not loaded."""
    return ", ".join(sorted(path.stem for path in (PROJECT / package).glob("[!_]*.py")))


commands = typer.Typer(no_args_is_help=True, help="Write labels and the student in formats that other tools read.")


@commands.command("labels")
def labels_command(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write; it must be new or empty.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=f"One of {forms_of('pipeline/export')}.")],
    root: RootOption = DEFAULT_ROOT,
    override: OverrideOptions = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", metavar="NAME", help="Export this head alone; may be repeated.")
    ] = None,
    names: Annotated[
        str, typer.Option("--names", metavar="NAMES", help="Call images as their files (source), or by key (hash).")
    ] = "source",
) -> None:
    """Write the pool with the labels that the student learns from: true labels, else pseudo labels above the
    recipe's thresholds. The held-out images of its sets, with their true labels, are the split val.
    """
    from cli.console import Console
    from pipeline.recipe.reader import read_recipe
    from pipeline.storage.root import Root

    parsed = read_recipe(recipe, override or ())
    with Console().progress() as progress:
        opened = Root.of(root, parsed.runtime.cache_gb)
        request = LabelExport(to, local_path(out), head or (), names)
        summary = export_labels(parsed, opened, request, progress)
    print("\n".join(describe_export(summary, out)))


@commands.command("student")
def student_command(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file to write, for hf a folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=f"One of {forms_of('student/export')}.")],
    root: RootOption = DEFAULT_ROOT,
    override: OverrideOptions = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="NAME", help="For onnx: export this head alone; may be repeated."),
    ] = None,
) -> None:
    """Write the trained student: its backbone as a timm checkpoint (safetensors) or as a folder with a model card
    (hf), or the network with its heads as an ONNX graph.
    """
    from flows.plan.run_plan import plan_unchecked
    from pipeline.recipe.reader import read_recipe
    from pipeline.steps.artifact import require
    from pipeline.storage.root import Root
    from student.export import export_student, load_form

    file = local_path(out)
    load_form(to, file)  # errors in it are raised before anything slow
    parsed = read_recipe(recipe, override or ())
    planned = plan_unchecked(parsed, Root.of(root, parsed.runtime.cache_gb)).planned
    student = next(entry.artifact for entry in planned if entry.step.name == "student")
    lines = export_student(to, require(student, "student"), file, head or ())
    print("\n".join([f"Wrote {out}.", *lines]))


def local_path(out: str) -> Path:
    """Return OUT as a path. Raises ConfigError if it is a URL."""
    from pipeline.storage.path import URL

    if URL.match(out):
        raise ConfigError(
            f"OUT {out!r}: exports are written to this machine only; name a local path and copy the result."
        )
    return Path(out)


class LabelExport(NamedTuple):
    """A request of `must export labels`."""

    form: str
    out: Path
    heads: Sequence[str] = ()
    """The heads to export; none for all."""
    names: str = "source"
    """Names of the images: "source" or "hash"."""


def export_labels(recipe: Recipe, root: Root, request: LabelExport, progress: Progress | None = None) -> dict[str, Any]:
    """Write the labels that the recipe's student learns from, and return the content of `export.json`.

    Raises ConfigError for an unknown form or head, a form that can't hold the images, or an unusable folder, DataError
    if labels are not made yet.
    """
    import tasks
    from flows.plan.run_plan import find_inputs
    from pipeline.export import check_channels, load_writer, with_names, write_export
    from pipeline.recipe.student import StudentConfig
    from pipeline.storage.atomic import check_absent
    from pipeline.stores.naming import learned_labels
    from student.dataset import heads_of
    from student.export_samples import count_images, image_channels, labelled_samples

    form, out, _, names = request
    load_writer(form)  # errors in it are raised before anything slow
    check_absent(out)
    step, inputs = find_inputs(recipe, root, "student")
    check_channels(form, image_channels(inputs))
    student = StudentConfig.model_validate(step.config["student"])
    known = {name: head for name, head in heads_of(student, inputs).items() if not head.is_live}
    heads = {name: known[require_one_of(name, known, "--head")] for name in request.heads or known}
    about = {
        "recipe": recipe.name,
        "names": names,
        "labels": student.labels,
        "thresholds": {name: head.threshold for name, head in heads.items()},
        "made_from": {name: inputs[name].fingerprint for name in ("pool", learned_labels(inputs.artifacts))},
    }
    labels = {name: tasks.label(head.space) for name, head in heads.items()}
    samples = with_names(labelled_samples(student, heads, inputs), names)
    if progress:
        samples = _with_progress(samples, count_images(inputs), progress)
    return write_export(form, out, labels, samples, about)


def _with_progress(samples: Iterable[ExportSample], total: int, progress: Progress) -> Iterator[ExportSample]:
    for number, sample in enumerate(samples):
        if number % PROGRESS_IMAGES == 0:
            progress("export", number / max(total, 1), f"{number}/{total} images")
        yield sample


def describe_export(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """Yield lines on what an export wrote for each head, and what it left out and why."""
    splits = ", ".join(f"{number} {split}" for split, number in summary["splits"].items())
    yield f"Wrote {summary['images']} images to {out}{f' ({splits})' if len(summary['splits']) > 1 else ''}."
    if left_out := summary["images_without_labels"]:
        yield f"{left_out} images are left out: they have no label that this format can hold."
    yield from describe_written(summary)


def describe_written(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on what a form holds of each head, and which heads it leaves out and why."""
    for head, record in summary["heads"].items():
        counts = ", ".join(f"{number} {unit}" for unit, number in record["written"].items()) or "nothing"
        yield f"  {head} ({record['task']}): {counts}, in {record['where']}"
        if record["lost"]:
            yield f"    not held: {record['lost']}"
    for head, reason in summary["left_out"].items():
        yield f"  {head} is left out: {reason}."
