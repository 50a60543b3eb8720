"""Arguments and options that commands share. Loads nothing that takes time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML file that describes the run.")]
Root = Annotated[
    str, typer.Option("--root", help="Folder for artifacts and runs: a path, or a URL as s3://bucket/name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Change a key, as in student.epochs=3."),
]
