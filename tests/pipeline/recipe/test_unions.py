"""Keys of the recipe that take values of several kinds, as a number or a word: one line says what would work."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import pytest

from pipeline.errors import ConfigError
from pipeline.recipe import augment, base, comparison, evaluation, recipe, runtime, source, stage, student, teacher
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.plugins import modules
from pipeline.recipe.reader import read_section

SECTIONS = (augment, base, comparison, evaluation, recipe, runtime, source, stage, student, teacher)
KINDS = ("pipeline.sources", "teachers", "selfsup")


def configs() -> Iterator[type[BaseConfig]]:
    """Yield the class of every section of a recipe."""
    names = [name for package in KINDS for name in modules(package).values()]
    for module in (*SECTIONS, *map(importlib.import_module, names)):
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, BaseConfig) and found.__module__ == module.__name__:
                yield found


def takes_several_kinds(annotation: Any) -> bool:
    """Return True if it, or what is in it, is a union of several types beside None, none of which is text."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    is_union = get_origin(annotation) in (Union, types.UnionType) and len(members) > 1 and str not in members
    return is_union or any(map(takes_several_kinds, members))


UNIONS = {
    (config.__module__, name): (config, name)
    for config in configs()
    for name in config.__annotations__
    if name in config.model_fields and takes_several_kinds(config.model_fields[name].annotation)
}


@pytest.mark.parametrize("case", UNIONS.values(), ids=lambda case: f"{case[0].__module__}.{case[1]}")
def test_read_section_says_once_what_a_key_of_several_kinds_takes(case: tuple[type[BaseConfig], str]) -> None:
    config, name = case
    for value in ("auot", ["auot"]):
        with pytest.raises(ConfigError) as caught:
            read_section(config, {name: value}, "mine.yaml")
        lines = [line for line in str(caught.value).splitlines() if line.startswith(f"mine.yaml.{name}")]
        if lines:  # else it takes lists of text
            assert len(lines) == 1, lines
            assert "auot" in lines[0]


def test_read_section_names_numbers_and_words_of_training_processes() -> None:
    for value in ("auot", 0, 1.5):
        with pytest.raises(ConfigError, match=r"^r\.training_processes: .* from 1 on, or auto would work\.$") as caught:
            read_section(runtime.RuntimeConfig, {"training_processes": value}, "r")
        assert f"{value!r} is no number of processes" in str(caught.value)
    for value in (2, "2"):  # a variable gives text
        assert read_section(runtime.RuntimeConfig, {"training_processes": value}, "r").training_processes == 2


def test_read_section_tells_what_is_wrong_inside_a_value_of_the_right_kind() -> None:
    given = {"kind": "analytic", "task": "depth", "require": {"delta1": "high"}}
    with pytest.raises(ConfigError) as caught:
        read_section(teacher.TeacherConfig, given, "r")
    assert str(caught.value).splitlines() == [
        "r.require.delta1: input should be a valid number, unable to parse string as a number (value 'high')."
    ]
