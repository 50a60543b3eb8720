"""Export forms of a trained student: one file each, whose name is the FORM of `must export student --to FORM`.

A file `student/export/<form>.py` holds `SUFFIX` of the written file, None for a folder of any name, `SUFFIX_REASON`,
why it must be that one, and

    def export(student: Artifact, to: Path, heads: Sequence[str]) -> list[str]: ...

which writes the file or folder `to`, whole or not at all, and returns lines that say how to use it. No `heads` means
all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.bands import RGB
from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import Artifact, read_json
from pipeline.storage.atomic import check_new_file
from pipeline.storage.shortage import explain_shortage

ANY_CHANNELS = ("safetensors", "onnx")
"""Forms of students of images of any number of channels."""
BACKBONE = "backbone.safetensors"
"""The file of a student's artifact that holds its backbone under timm's names."""


def names() -> list[str]:
    """Return the names of all forms."""
    return list(modules(__name__))


def load_form(name: str, to: Path) -> Any:
    """Load the module of a form.

    Raises ConfigError if there is none of this name, if `to` has another suffix, or if it is a file that exists.
    """
    form = importlib.import_module(f"{__name__}.{require_one_of(name, names(), '--to')}")
    if form.SUFFIX is not None and to.suffix != form.SUFFIX:
        raise ConfigError(f"OUT {str(to)!r}: {form.SUFFIX_REASON}; end it in {form.SUFFIX}.")
    if form.SUFFIX is not None:
        check_new_file(to)
    return form


def export_student(name: str, student: Artifact, to: Path, heads: Sequence[str] = ()) -> list[str]:
    """Write a trained student to the file or folder `to` in a form, and return lines that say how to use it.

    `heads`: the student's heads to write, for forms that hold heads; all if empty. Raises ConfigError if the form can't
    hold them, or if the file can't be written.
    """
    form = load_form(name, to)
    channels = student.load("model.json", read_json).get("channels", RGB)
    if channels != RGB and name not in ANY_CHANNELS:
        taken = f"students of images of {RGB} channels; these have {channels}"
        raise ConfigError(f"--to {name} takes {taken}: {' and '.join(ANY_CHANNELS)} take any.")
    with explain_shortage("export", to):
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{to}: can't be written ({error.strerror}). Name another file.") from error
        lines: list[str] = form.export(student, to, heads)
    return lines
