"""The commands `must export`: labels and the student, in forms that other tools read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Overrides, RecipePath, Root
from pipeline.errors import PROJECT
from pipeline.storage.root import DEFAULT_ROOT

if TYPE_CHECKING:
    from pipeline.export import ExportSample
    from pipeline.recipe.recipe import Recipe
    from pipeline.steps.runtime import Progress
    from pipeline.storage import root as roots
    from student.dataset import StudentHead

# Everything that takes time to import is imported by the command that needs it: help comes at once.
# ruff: noqa: PLC0415

EVERY = 20
"""Images between updates of the progress."""


def _forms(package: str) -> str:
    """The names of a package's files, which are those of forms; nothing is loaded."""
    return ", ".join(sorted(path.stem for path in (PROJECT / package / "export").glob("[!_]*.py")))


commands = typer.Typer(no_args_is_help=True, help="Take results out of a root, in forms that other tools read.")


@commands.command("labels")
def labels_command(
    recipe: RecipePath,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write: absent or empty.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=f"One of {_forms('pipeline')}.")],
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="NAME", help="Labels of this teacher's head alone; may be repeated."),
    ] = None,
) -> None:
    """Write the pool with the labels that the student learns from: true labels first, then pseudo labels as the
    recipe's thresholds leave them.
    """
    from cli.console import Console
    from pipeline.recipe.reader import read_recipe
    from pipeline.storage.root import Root as Where

    read = read_recipe(recipe, override or ())
    with Console().progress() as progress:
        wanted = Wanted(to, local_path(out), tuple(head or ()))
        summary = export_labels(read, Where.of(root, read.runtime.cache_gb), wanted, progress)
    print("\n".join(told(summary, out)))


@commands.command("student")
def student_command(
    recipe: RecipePath,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file to write: *.safetensors or *.onnx.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=f"One of {_forms('student')}.")],
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", metavar="NAME", help="For onnx: this head alone; may be repeated.")
    ] = None,
) -> None:
    """Write the trained student: its backbone as timm loads it, or its predictions as a graph."""
    from flows.run.run import plan_unchecked
    from pipeline.recipe.reader import read_recipe
    from pipeline.steps.artifact import require
    from pipeline.storage.root import Root as Where
    from student.export import export_student, load_form

    file = local_path(out)
    load_form(to, file)  # what is wrong with it is said before anything that takes time
    read = read_recipe(recipe, override or ())
    planned = plan_unchecked(read, Where.of(root, read.runtime.cache_gb)).planned
    student = next(each.artifact for each in planned if each.step.name == "student")
    lines = export_student(to, require(student, "student"), file, head or ())
    print("\n".join([f"Wrote {out}.", *lines]))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Labels in a form, to be written to the folder `out`: of all heads, or of those that are named."""

    form: str
    out: Path
    heads: tuple[str, ...] = ()


def local_path(out: str) -> Path:
    """The path OUT on this machine. ConfigError if it is a URL."""
    from pipeline.errors import ConfigError
    from pipeline.storage.path import URL

    if URL.match(out):
        raise ConfigError(f"OUT {out!r}: exports are written to this machine; name a path, and copy it there after.")
    return Path(out)


def export_labels(recipe: Recipe, root: roots.Root, wanted: Wanted, progress: Progress | None = None) -> dict[str, Any]:
    """Write the labels that the recipe's student learns from, and return what `export.json` says of them.

    Raises ConfigError for a form, a head or a folder that can't be, DataError if labels are not made yet.
    """
    import tasks
    from flows.run.run import find_inputs
    from pipeline.export import load_writer, write_export
    from pipeline.recipe.student import StudentConfig
    from pipeline.storage.atomic import check_absent
    from student.dataset import heads_of
    from student.export_samples import labelled_samples

    load_writer(wanted.form)  # what is wrong with it is said before anything that takes time
    check_absent(wanted.out)
    step, inputs = find_inputs(recipe, root, "student")
    student = StudentConfig.model_validate(step.config["student"])
    heads = _chosen(heads_of(student, inputs), wanted.heads)
    about = {
        "recipe": recipe.name,
        "labels": student.labels,
        "thresholds": {name: head.threshold for name, head in heads.items()},
        "made_from": {name: inputs[name].fingerprint for name in ("pool", "label")},
    }
    labels = {name: tasks.label(head.space) for name, head in heads.items()}
    samples = labelled_samples(student, heads, inputs)
    if progress:
        samples = _counted(samples, inputs["pool"].counts["images"], progress)
    return write_export(wanted.form, wanted.out, labels, samples, about)


def _chosen(heads: Mapping[str, StudentHead], names: Sequence[str]) -> dict[str, StudentHead]:
    from pipeline.errors import require_one_of

    return {name: heads[require_one_of(name, heads, "--head")] for name in names or heads}


def _counted(samples: Iterable[ExportSample], total: int, progress: Progress) -> Iterator[ExportSample]:
    for number, sample in enumerate(samples):
        if number % EVERY == 0:
            progress("export", number / max(total, 1), f"{number}/{total} images")
        yield sample


def told(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """What an export came to, in lines: what was written by head, and what was not, and why."""
    yield f"Wrote {summary['images']} images to {out}."
    if left := summary["images_without_labels"]:
        yield f"{left} images have no label that this form can hold, and are left out."
    for head, found in summary["heads"].items():
        counts = ", ".join(f"{number} {what}" for what, number in found["written"].items()) or "nothing"
        yield f"  {head} ({found['task']}): {counts}, in {found['where']}"
        if found["lost"]:
            yield f"    not held: {found['lost']}"
    for head, reason in summary["left_out"].items():
        yield f"  {head} is left out: {reason}."
