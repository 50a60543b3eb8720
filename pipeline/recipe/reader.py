"""Read recipes: YAML, overrides, environment variables, and errors that name the place."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.paths import make_paths_absolute
from pipeline.recipe.plugins import CHOSEN, UNKNOWN_KIND, config_class, modules
from pipeline.recipe.recipe import Expansion, Location, Recipe
from pipeline.recipe.stage import StageConfig
from pipeline.recipe.yaml_text import parse_yaml, read_text

Model = TypeVar("Model", bound=BaseModel)
NAMED = ("data", "teachers", "compare")
"""Sections whose entries have names: `-o data.more={kind: coco, ...}` adds one, `-o data.more.path=x` changes it."""
LONGEST_VALUE = 200
"""Characters of a value in a message."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe in a YAML file, and apply `key.sub=value` overrides. ConfigError says where and what is wrong.

    Its paths begin in the folder of the file, those of overrides in the current one.
    """
    return parse_recipe(read_text(path), str(path), overrides, path.parent)


def parse_recipe(text: str, origin: str, overrides: Sequence[str] = (), folder: Path | None = None) -> Recipe:
    """Read a recipe from YAML text; errors begin with `origin`. Paths begin in `folder`, or stay as they are."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides are a list of texts, as [{overrides!r}], and no text.")
    data = parse_yaml(text, origin)
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}.")
    data = _change(data, lambda value, place: value)
    changed = [apply_override(data, override) for override in overrides]
    variables: dict[Location, Expansion] = {}
    expanded = expand(data, origin, variables)
    if folder is not None:
        make_paths_absolute(expanded, folder, changed, variables)
    _check_without_methods(expanded, origin)
    recipe = read_section(Recipe, expanded, origin)
    return recipe.with_variables(variables)


def _check_without_methods(given: Mapping[str, Any], origin: str) -> None:
    """Check a recipe but for stages of known methods, whose files load torch: other mistakes are told before that."""
    package, key = CHOSEN["stages"]
    stages = given.get("stages")
    if not stages or not isinstance(stages, list):
        return
    known = modules(package)
    rest = [
        StageConfig.model_construct(name=str(number), method=stage[key], data=[])
        if isinstance(stage, Mapping) and str(stage.get(key)) in known
        else stage
        for number, stage in enumerate(stages)
    ]
    read_section(Recipe, {**given, "stages": rest}, origin)


def read_section(model: type[Model], given: Any, origin: str) -> Model:
    """Validate a section. ConfigError has a line for each mistake, beginning with `origin`."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        told = _once_for_each_place(problems, given)
        raise ConfigError("\n".join(explain(origin, problem, model, given) for problem in told)) from error


def _once_for_each_place(problems: Sequence[ErrorDetails], given: Any) -> list[ErrorDetails]:
    """Join what pydantic says of each member of a union, as of a name or a list: `input should be 'all' or a list`.

    Where the value fits one member but for something in it, that alone is told.
    """
    found: dict[tuple[str, ...], ErrorDetails] = {}
    for problem in problems:
        place = tuple(_written(problem, given))
        if place in found and "value_error" in (problem["type"], found[place]["type"]):  # ours says all that would work
            found[place] = problem if problem["type"] == "value_error" else found[place]
        elif place in found and problem["type"] not in ("missing", "extra_forbidden"):
            other = problem["msg"].removeprefix("Input should be ")
            found[place] = {**found[place], "msg": f"{found[place]['msg']} or {other}"}
        else:
            found[place] = problem
    inside = {place[:length] for place in found for length in range(len(place))}
    return [problem for place, problem in found.items() if place not in inside or len(place) == len(problem["loc"])]


def _change(value: Any, change: Callable[[Any, Location], Any], place: Location = ()) -> Any:
    """Return nested YAML with all but its lists and mappings changed, given their places.

    Copied, so that overriding one place leaves others that share it by an `*alias`.
    """
    if isinstance(value, dict):
        return {key: _change(item, change, (*place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_change(item, change, (*place, number)) for number, item in enumerate(value)]
    return change(value, place)


def apply_override(data: dict[str, Any], override: str) -> Location:
    """Set `a.b.c=value` in nested mappings, and return its place; the value is YAML.

    In a list of named sections, `b` is a name.
    """
    path, found, value = override.partition("=")
    if not found or not path:
        raise ConfigError(f"-o {override!r}: write key.sub=value, for example student.epochs=3.")
    *parents, last = path.split(".")
    if len(parents) > 1 and parents[0] in NAMED and isinstance(data.get(parents[0]), dict):
        require_one_of(parents[1], map(str, data[parents[0]]), f"-o {override!r}: {parents[0]}")
    place, location = data, list[str | int]()
    for parent in parents:
        if isinstance(place, list):
            named = {each["name"]: n for n, each in enumerate(place) if isinstance(each, dict) and "name" in each}
            location.append(named[require_one_of(parent, named, f"-o {override!r}:")])
            place = place[location[-1]]
            continue
        location.append(parent)
        place = place.setdefault(parent, [] if [*location] == ["stages"] else {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"-o {override!r}: {parent!r} holds the value {place!r} and has no keys.")
    if not isinstance(place, dict):
        raise ConfigError(f"-o {override!r}: {path.rpartition('.')[0]} is a list: name the section to change.")
    place[last] = parse_yaml(value, f"-o {override!r}")
    return (*location, last)


_VARIABLE = re.compile(r"\$\$\{|\$\{(\w+)(?::-([^}]*))?\}")
"""`${NAME}`, `${NAME:-default}`, and `$${` for the signs themselves."""


def expand(value: Any, origin: str, found: dict[Location, Expansion] | None = None) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in strings from the environment, and `$${` by `${`.

    What was replaced is added to `found`, by its place. Raises ConfigError if NAME is not set.
    """

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name is None:
            return "${"
        replacement = os.environ.get(name) or default
        if replacement is None:
            raise ConfigError(f"{origin}: {match.string!r} needs the environment variable {name}, which is not set.")
        return replacement

    def change(text: Any, place: Location) -> Any:
        if not isinstance(text, str):
            return text
        expanded = _VARIABLE.sub(replace, text)
        if found is not None and expanded != text:
            found[place] = Expansion(text, expanded)
        return expanded

    return _change(value, change)


def escape(text: str) -> str:
    """Return a text in which `expand` replaces nothing."""
    return text.replace("${", "$${")


def _is_meant(value: Any, text: str) -> bool:
    """Return True if a text of the recipe became this value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(text) == value
    return text == value if isinstance(value, str) else text.strip().lower() == str(value).lower()


def as_written(recipe: Recipe) -> Any:
    """Return a recipe as YAML that reads as the same recipe, defaults filled in and its variables left in place."""

    def change(value: Any, place: Location) -> Any:
        variable = recipe.variables.get(place)
        if variable and _is_meant(value, variable.expanded):
            return variable.written
        return escape(value) if isinstance(value, str) else value

    return _change(recipe.model_dump(mode="json"), change)


def explain(origin: str, problem: ErrorDetails, model: type[BaseModel], given: Any) -> str:
    """Return one line about a mistake in a recipe, or in a section of the class `model`."""
    location, whole = _written(problem, given), issubclass(model, Recipe)
    if whole and location[:1] == ["stages"] and len(location) > 1:
        location[1] = _stage_name(given["stages"], int(location[1]))
    where = f"{origin}: {'.'.join(location) or 'recipe'}" if whole else ".".join([origin, *location])
    kind, value, message = problem["type"], problem["input"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = _known_keys(problem, Recipe if whole else model, given)
        near = difflib.get_close_matches(location[-1], known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key (value {_short(value)}).{guess} Known keys: {', '.join(known)}."
    if kind == "missing":
        return f"{where}: missing; it has to be given."
    if kind == UNKNOWN_KIND:
        return f"{where}{problem['msg']}."
    quoted = f" (value {_short(value)})" if kind != "value_error" else ""
    return f"{where}: {message[0].lower()}{message[1:]}{quoted}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _written(problem: ErrorDetails, given: Any) -> list[str]:
    """Return the place of a mistake as the recipe has it, without pydantic's names for the members of a union."""
    location: list[str] = []
    for step in problem["loc"]:
        keys = given if isinstance(given, Mapping) else ()
        part = next(
            (key for key in keys if step == str(key)), step
        )  # pydantic gives keys that are large numbers as text
        is_there = part in given if isinstance(given, Mapping) else isinstance(given, list) and isinstance(part, int)
        if is_there:
            given = given[part]
        if is_there or (problem["type"] == "missing" and part == problem["loc"][-1]):
            location.append(str(part))
    return location


def _stage_name(stages: Sequence[Any], number: int) -> str:
    """Return a stage's name, which overrides use; its number if it has none."""
    stage = stages[number]
    return str(stage.get("name", number)) if isinstance(stage, Mapping) else str(number)


def _known_keys(problem: ErrorDetails, model: Any, given: Any) -> list[str]:
    """Return the known keys where an unknown key was given, by walking the path of the error."""
    path = list(problem["loc"][:-1])
    while path:
        part = path.pop(0)
        if part in CHOSEN and model is Recipe:
            package, key = CHOSEN[part]
            model = config_class(package, given[part][path.pop(0)][key])
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if get_origin(annotation) is dict:
                _, annotation = get_args(annotation)
                path = path[1:]  # what the section is called
            model = next((each for each in get_args(annotation) if hasattr(each, "model_fields")), annotation)
    return list(model.model_fields)
