"""Sections of a recipe that name a file: `kind: coco` is read by the class `Config` of `pipeline/sources/coco.py`.

The file is the registration. It is imported when a recipe names it and not before: methods of stages need torch, and a
recipe without stages is read without it. Files whose names begin with `_` are helpers.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

CHOSEN = {"data": ("pipeline.sources", "kind"), "teachers": ("teachers", "kind"), "stages": ("selfsup", "method")}
"""Sections whose entries name a file: its package, and the key that names it."""
UNKNOWN_KIND = "unknown_kind"
"""The type of the validation error for a name that no file has."""


def modules(package: str) -> dict[str, str]:
    """Return the full names of a package's plug-in modules by name: not its subpackages, not its `_helpers`."""
    paths = importlib.import_module(package).__path__
    found = (each.name for each in pkgutil.iter_modules(paths) if not each.ispkg and not each.name.startswith("_"))
    return {name: f"{package}.{name}" for name in sorted(found)}


def config_class(package: str, name: str) -> type[BaseModel]:
    """Import the plug-in module `name` of a package, and return its `Config`."""
    found: type[BaseModel] = importlib.import_module(f"{package}.{name}").Config
    return found


class KindOf:
    """Annotate a field whose class is the `Config` of the module that its `kind`, or another key, names.

    Example:
        teachers: dict[str, Annotated[TeacherConfig, KindOf("teachers")]]
    """

    def __init__(self, package: str, key: str = "kind") -> None:
        self.package, self.key = package, key

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices = [handler(config_class(self.package, name).__pydantic_core_schema__) for name in modules(self.package)]
        return {"oneOf": choices, "discriminator": {"propertyName": self.key}}

    def _read(self, value: Any) -> BaseModel:
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError(
                UNKNOWN_KIND,
                ": {value} is no mapping with the key {key}",
                {"value": reprlib.repr(value), "key": self.key},
            )
        given, known = value.get(self.key), modules(self.package)
        if given not in known:
            near = difflib.get_close_matches(str(given), known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise PydanticCustomError(
                UNKNOWN_KIND,
                ".{key}: {given} is not a {key}.{guess} Known: {known}",
                {"key": self.key, "given": repr(given), "guess": guess, "known": ", ".join(known)},
            )
        return config_class(self.package, str(given)).model_validate(value)
