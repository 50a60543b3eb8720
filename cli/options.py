"""Arguments, options and output that several commands share; importing this module is cheap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML file that describes the run.")]
RootOption = Annotated[
    str, typer.Option("--root", help="Folder for artifacts and runs: a path, or a URL such as s3://bucket/name.")
]
OverrideOptions = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Change a recipe key, e.g. student.epochs=3."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(value: Any, sort_keys: bool = False) -> None:
    """Print a value as JSON, for programs."""
    print(json.dumps(value, indent=1, sort_keys=sort_keys))
