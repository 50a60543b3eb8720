"""The commands `must predict` and `must embed`: what a trained model says about files of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.export import describe_written, forms_of, local_path
from cli.options import OverrideOptions, RootOption
from evaluation.report.formatting import describe_suffixes
from must import load
from pipeline.errors import ConfigError
from pipeline.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from tasks.inference.image_files import ImageFiles
    from tasks.inference.model import TrainedModel

# ruff: noqa: PLC0415 - as in cli/main.py

commands = typer.Typer(no_args_is_help=True)
SHOWN = 3
"""Unreadable files that are printed; the summary lists more."""
PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH", help="Images, folders, patterns (quoted) or videos.", show_default=False)
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL", help="student, a teacher's name, or a model.safetensors with its model.json."
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="RECIPE", help="Take the model of this recipe.", show_default="the newest in the root"
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda or mps.", show_default="the fastest that there is"),
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Images that the model is given at once.")]
EveryOption = Annotated[
    int, typer.Option("--every", metavar="N", min=1, help="Of so many frames of a video, take the first.")
]


@commands.command("predict")
def predict_command(
    paths: PathsArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write; it must be new or empty.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=f"One of {forms_of('pipeline/predictions')}.")],
    model: ModelOption = "student",
    root: RootOption = DEFAULT_ROOT,
    recipe: RecipeOption = None,
    override: OverrideOptions = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", metavar="NAME", help="Predict this head alone; may be repeated.")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            metavar="[HEAD=]P",
            help="Least probability of what is kept, of all heads or of one; may be repeated.",
            show_default="0.5 of boxes, masks and keypoints",
        ),
    ] = None,
    batch: BatchOption = 16,
    every: EveryOption = 30,
    device: DeviceOption = None,
) -> None:
    """Write what a trained model says about images. An image that can't be read is left out, counted and named."""
    from cli.console import Console
    from pipeline.predictions import load_writer
    from pipeline.storage.atomic import check_absent

    folder = local_path(out)
    load_writer(to)  # errors in it are raised before anything slow
    check_absent(folder)
    least = parse_thresholds(threshold or ())
    images = _open_images(paths, every)
    opened = _load(model, recipe, root, override, device)
    images.channels = opened.channels
    from tasks.inference.files import FilesRequest, predict_files

    with Console().progress() as progress:
        request = FilesRequest(images, images.count(), head or (), least, batch, progress)
        summary = predict_files(opened, request, to, folder)
    print("\n".join([*describe_predictions(summary, out), *describe_skipped(images.skipped)]))


@commands.command("embed")
def embed_command(
    paths: PathsArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file to write: *.parquet or *.npy.")],
    model: ModelOption = "student",
    root: RootOption = DEFAULT_ROOT,
    recipe: RecipeOption = None,
    override: OverrideOptions = None,
    batch: BatchOption = 16,
    every: EveryOption = 30,
    device: DeviceOption = None,
) -> None:
    """Write the vector of each image, with the images' names."""
    from cli.console import Console

    file = local_path(out)
    images = _open_images(paths, every)
    from tasks.inference.vector_files import check_vector_file, embed_files

    check_vector_file(file)
    opened = _load(model, recipe, root, override, device)
    images.channels = opened.channels
    from tasks.inference.files import FilesRequest

    with Console().progress() as progress:
        request = FilesRequest(images, images.count(), batch=batch, progress=progress)
        count = embed_files(opened, request, file)
    print(f"Wrote {count:,} vectors to {out}.")
    for line in [*describe_unreadable(request.problems.to_json()), *describe_skipped(images.skipped)]:
        print(line)


def _open_images(paths: list[str], every: int) -> ImageFiles:
    from tasks.inference.image_files import ImageFiles

    return ImageFiles(paths, every)


def _load(model: str, recipe: Path | None, root: str, override: list[str] | None, device: str | None) -> TrainedModel:
    if override and recipe is None:
        raise ConfigError(f"-o {override[0]!r}: changes a recipe, and there is none; name it with --recipe.")
    return load(model, recipe, root, override, **({} if device is None else {"device": device}))


def parse_thresholds(given: Sequence[str]) -> float | dict[str, float] | None:
    """Return the least probability of all heads, or by head; None if none is given.

    Raises ConfigError for what is no number, and if one of all heads is given beside others.
    """
    by_head = {}
    for text in given:
        head, equals, number = text.rpartition("=")
        try:
            least = float(number)
        except ValueError:
            raise ConfigError(f"--threshold {text!r}: write a number, or one of a head, as in street=0.7.") from None
        if not equals and len(given) > 1:
            raise ConfigError(f"--threshold {text!r}: is for all heads and can't stand beside others.")
        if not equals:
            return least
        by_head[head] = least
    return by_head or None


def describe_predictions(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """Yield lines on what was written for each head, and what was left out and why."""
    yield f"Wrote what {summary['model']} says about {summary['images']:,} images to {out}."
    yield from describe_written(summary)
    yield from describe_unreadable(summary["unreadable"])


def describe_skipped(skipped: Mapping[str, int]) -> Iterator[str]:
    """Yield a line on the files in folders that are no images for the model; none if all are."""
    if skipped:
        yield f"No images: {describe_suffixes(skipped)}."


def describe_unreadable(unreadable: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the files that could not be used; none if all could."""
    if not unreadable["count"]:
        return
    yield f"{unreadable['count']:,} could not be used:"
    for entry in unreadable["first"][:SHOWN]:
        yield f"  {entry['file']}: {entry['reason']}"
    if unreadable["count"] > SHOWN:
        yield f"  and {unreadable['count'] - SHOWN:,} more."
