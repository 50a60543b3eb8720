"""Make a recipe's paths absolute: those that its file states begin in the file's folder, others in the current one.

Others are those of overrides and those that begin with a variable of the environment: users write them in a terminal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe.recipe import Expansion, Location
from pipeline.recipe.stage import names_weights
from pipeline.recipe.weight_names import is_path
from pipeline.storage.path import URL

VARIABLE = re.compile(r"\$\{(\w+)")
"""A variable at the beginning of a text."""


def make_paths_absolute(
    recipe: Mapping[str, Any], folder: Path, overrides: Collection[Location], variables: Mapping[Location, Expansion]
) -> None:
    """Change the relative paths of sets and weights in a recipe as YAML has it; other values stay, wrong ones as well.

    Args:
        recipe: with its overrides, and with the values of variables
        folder: where the recipe's file lies
        overrides: the places that overrides changed
        variables: the texts in which variables were replaced
    """
    for place, names_path in _places(recipe):
        parent: Any = recipe
        for key in place[:-1]:
            parent = parent[key]
        text = parent[place[-1]]
        if not isinstance(text, str) or not text or os.path.isabs(text) or URL.match(text) or not names_path(text):
            continue
        if not text.startswith("~"):
            start = Path() if _from_outside(place, overrides, variables) else folder
            parent[place[-1]] = os.path.abspath(start / text)


def _from_outside(place: Location, overrides: Collection[Location], variables: Mapping[Location, Expansion]) -> bool:
    """Return True if an override or a variable says where a path begins, and not the file."""
    if any(place[: len(changed)] == changed for changed in overrides):
        return True
    variable = VARIABLE.match(variables[place].written) if place in variables else None
    return variable is not None and bool(os.environ.get(variable[1]))


def _places(recipe: Mapping[str, Any]) -> Iterator[tuple[Location, Callable[[str], bool]]]:
    """Yield the places that may hold a path, each with a function that tells if a text there is one."""
    yield from ((("data", name, "path"), _is_any) for name in _with_key(recipe.get("data"), "path"))
    yield from ((("teachers", name, "weights"), is_path) for name in _with_key(recipe.get("teachers"), "weights"))
    yield from ((("student", "weights"), is_path) for _ in _with_key({"": recipe.get("student")}, "weights"))
    stages = recipe.get("stages")
    named = dict(enumerate(stages)) if isinstance(stages, list) else {}
    yield from ((("stages", number, "start"), _is_start) for number in _with_key(named, "start"))
    sections: dict[Location, Any] = {("evaluate",): recipe.get("evaluate")}
    compare = recipe.get("compare")
    sections |= {("compare", name): each for name, each in compare.items()} if isinstance(compare, dict) else {}
    for section, content in sections.items():
        starts = content.get("starts") if isinstance(content, dict) else None
        numbers = range(len(starts)) if isinstance(starts, list) else ()
        yield from (((*section, "starts", number), _is_start) for number in numbers)


def _with_key(section: Any, key: str) -> list[Any]:
    """Return the names of the entries of a section that have a key."""
    entries = section.items() if isinstance(section, dict) else ()
    return [name for name, entry in entries if isinstance(entry, dict) and key in entry]


def _is_any(text: str) -> bool:
    return True


def _is_start(start: str) -> bool:
    return names_weights(start) and is_path(start)
