"""Prediction forms: the layouts in which `must predict --to FORM` writes what a model says about images.

A file `pipeline/predictions/<form>.py` holds `class Writer(BaseWriter)`, as a form of export does; there is nothing to
register. The images stay where they are, and a sample's `source` is their path as the user named it. Modules that begin
with `_` are helpers. No torch in this package.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, require_one_of
from pipeline.export import BaseWriter, ExportSample, describe_heads, select_heads
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import write_json
from pipeline.storage.atomic import atomic_folder, check_absent
from pipeline.storage.shortage import explain_shortage
from pipeline.stores.labels import Label

SUMMARY = "predictions.json"
"""The description that every folder of predictions has; it is written last."""

About = Callable[[], Mapping[str, Any]]


def form_names() -> list[str]:
    """Return the names of all forms: those of the files in this package."""
    return list(modules(__name__))


def load_writer(form: str) -> type[BaseWriter]:
    """Import the writer of a form. Raises ConfigError, which lists the forms, if there is none of this name."""
    name = require_one_of(form, form_names(), "--to")
    return importlib.import_module(f"{__name__}.{name}").Writer


def write_predictions(
    form: str,
    out: Path,
    heads: Mapping[str, Label],
    samples: Iterable[ExportSample],
    about: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Write samples to the folder `out`, all or none, and return the content of its `predictions.json`.

    What `about` returns after the last sample is added to it. Raises as `pipeline.export.write_export` does.
    """
    writer_class = load_writer(form)
    supported, unsupported = select_heads(writer_class, heads, form)
    try:
        with explain_shortage("predict", out):
            check_absent(out)
            with atomic_folder(out) as folder, writer_class(folder, supported) as writer:
                images = sum(_add(writer, sample) for sample in samples)
                writer.finish()
                heads_written = describe_heads(writer)
                summary = {"form": form, "images": images, **about(), "heads": heads_written, "left_out": unsupported}
                write_json(folder / SUMMARY, summary)
    except OSError as error:
        raise ConfigError(f"{out}: can't be written ({error.strerror or error}). Name another folder.") from error
    return summary


def _add(writer: BaseWriter, sample: ExportSample) -> bool:
    """Add a sample if it has a label that the form can hold, and return True if so."""
    values = {head: value for head, value in sample.values.items() if head in writer.heads}
    if not values:
        return False
    for head in values:
        writer.counts[head]["images"] += 1
    writer.add(dataclasses.replace(sample, values=values))
    return True
