"""Prediction forms: the layouts in which `must predict --to FORM` writes what a model says about images.

A file `pipeline/predictions/<form>.py` holds `class Writer(BaseWriter)`, as a form of export does; there is nothing to
register. The images stay where they are, and a sample's `source` is their path as the user named it. Modules that begin
with `_` are helpers. No torch in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.export import BaseWriter, ExportSample, Forms, add_sample
from pipeline.stores.labels import Label

SUMMARY = "predictions.json"
"""The description that every folder of predictions has; it is written last."""
FORMS = Forms(__name__, SUMMARY, "predict")
form_names, load_writer = FORMS.names, FORMS.load_writer


def write_predictions(
    form: str,
    out: Path,
    heads: Mapping[str, Label],
    samples: Iterable[ExportSample],
    about: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Write samples to the folder `out`, all or none, and return the content of its `predictions.json`.

    What `about` returns after the last sample is added to it. Raises as `pipeline.export.Forms.write` does.
    """

    def add_all(writer: BaseWriter) -> dict[str, Any]:
        images = sum(add_sample(writer, sample) is not None for sample in samples)
        return {"images": images, **about()}

    return FORMS.write(form, out, heads, add_all)
