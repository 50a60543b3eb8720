"""Forms that a trained student is taken out in: one file each; the file's name is what `must export student --to` says.

A file `student/export/<form>.py` holds `SUFFIX`, how the written file's name ends, `WHY`, and a function `export`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import Artifact
from pipeline.storage.errors import explaining_full_disk


def names() -> list[str]:
    """The forms there are, by their files."""
    return list(modules(__name__))


def form_of(name: str, to: Path) -> Any:
    """The module of a form. ConfigError if there is none of this name, or `to` does not end as its files do."""
    form = importlib.import_module(f"{__name__}.{require_one_of(name, names(), '--to')}")
    if to.suffix != form.SUFFIX:
        raise ConfigError(f"OUT {str(to)!r}: {form.WHY}; end it in {form.SUFFIX}.")
    return form


def export_student(name: str, student: Artifact, to: Path, heads: Sequence[str] = ()) -> list[str]:
    """Write a trained student to the file `to` in a form, whole or not at all, and return what to tell about it.

    `heads` names some of the student's heads, for forms that hold heads; all, if it is empty.
    """
    form = form_of(name, to)
    with explaining_full_disk("export", to):
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{to}: can't be written ({error.strerror}). Name another file.") from error
        lines: list[str] = form.export(student, to, heads)
    return lines
