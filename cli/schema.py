"""Generate the recipe's reference from its pydantic models: JSON Schema for editors, Markdown for people.

`python -m cli.schema > docs/reference/recipe.md` updates the page.
"""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import BaseConfig, FitConfig, ValidateConfig
from pipeline.recipe.comparison import CompareConfig
from pipeline.recipe.evaluation import EvaluateConfig
from pipeline.recipe.plugins import modules
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.runtime import RuntimeConfig
from pipeline.recipe.source import SourceConfig
from pipeline.recipe.stage import LabelledConfig, PolicyConfig, StageConfig
from pipeline.recipe.student import LabellingConfig, StudentConfig
from pipeline.recipe.teacher import CalibrateConfig, TeacherConfig, TrainingConfig

TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
HEAD = """\
# The recipe, key by key

One YAML file describes a run. An unknown key is an error that names the nearest known key. `${NAME}` and
`${NAME:-default}` are replaced from the environment; `$${` stands for `${` itself. Relative paths start from the folder
in which the command runs. `-o a.b=value` changes a key for one run. `must schema > recipe.schema.json` writes a JSON
Schema, by which editors complete and check recipes.

Passwords belong into the environment: a run's folder keeps `${NAME}` as it is written. Passwords and secret parameters
of URLs (`https://me:password@host`, `?token=...`) are masked in whatever is stored or printed, and change no result.
"""

ENTRIES = """\
`<name>: {kind: <a heading below>, ...}`. A name has lower-case letters, digits and `_`, and starts with a letter. All
kinds have:
"""

STAGES = """\
A list of stages, which run in this order: `- {name: <name>, method: <a heading below>, data: [<sets>], ...}`.
`-o stages.<name>.steps=100` changes a key of one. All methods have the keys of *schedule* and:
"""
STAGE_SECTIONS: dict[str, type[BaseModel]] = {"augment": PolicyConfig, "labels": LabelledConfig}

COMPARISONS = "`<name>: {data: [...], methods: {...}, ...}`. `-o compare.<name>.steps=[50]` changes a key of one."
CHAPTERS: tuple[tuple[str, str, type[BaseModel], type[BaseModel] | None], ...] = (
    ("The whole recipe", "", Recipe, None),
    ("runtime", "None of these keys changes a result's fingerprint.", RuntimeConfig, None),
    ("labelling", "", LabellingConfig, None),
    ("student", "Also the keys of *training* and *schedule* below.", StudentConfig, TrainingConfig),
    ("evaluate", "", EvaluateConfig, None),
    ("compare", COMPARISONS, CompareConfig, None),
    ("training", "For supervised teachers and the student.", TrainingConfig, FitConfig),
    ("schedule", "For supervised teachers, the student and stages.", FitConfig, BaseConfig),
    ("validate", "As in `validate: {every: 0.1, keep: best, patience: 3}`.", ValidateConfig, None),
    ("augment", "", AugmentConfig, None),
)


def schema() -> str:
    """Return the JSON Schema of a recipe."""
    return json.dumps(Recipe.model_json_schema(), indent=1)


def markdown() -> str:
    """Return the reference as one Markdown page."""
    parts = [HEAD]
    parts += [_chapter(title, note, model, above) for title, note, model, above in CHAPTERS]
    parts += [f"## data: formats\n\n{ENTRIES}\n", _table(SourceConfig, None)]
    parts += list(_kinds("pipeline.sources", SourceConfig))
    parts += [f"## teachers: kinds\n\n{ENTRIES}\n", _table(TeacherConfig, None)]
    parts += [f"### teachers: calibrate\n\n{_table(CalibrateConfig, None)}"]
    parts += list(_kinds("teachers", TeacherConfig))
    parts += [f"## stages: methods\n\n{STAGES}\n", _table(StageConfig, FitConfig)]
    parts += [f"### stages: {name}\n\n{_table(model, None)}" for name, model in STAGE_SECTIONS.items()]
    parts += list(_kinds("selfsup", StageConfig))
    return "\n".join(parts)


def _kinds(package: str, above: type[BaseModel]) -> Iterator[str]:
    for name, module in modules(package).items():
        loaded = importlib.import_module(module)
        note = "Also the keys of *training* and *schedule*.\n" if issubclass(loaded.Config, TrainingConfig) else ""
        yield f"### {name}\n\n{_first_line(loaded)}\n{note}\n{_table(loaded.Config, above)}"


def _first_line(module: types.ModuleType) -> str:
    """Return the first paragraph of a module's docstring, in one line."""
    return " ".join((module.__doc__ or "").split("\n\n")[0].split())


def _chapter(title: str, note: str, model: type[BaseModel], above: type[BaseModel] | None) -> str:
    heading = f"## {title}\n"
    return f"{heading}\n{note}\n\n{_table(model, above)}" if note else f"{heading}\n{_table(model, above)}"


def _table(model: type[BaseModel], above: type[BaseModel] | None) -> str:
    """Return a table of the model's keys without those of a training section, or of `above` with the same default and
    type.
    """
    fields = model.model_fields
    inherited = above.model_fields.items() if above else ()
    known = {name for name, field in inherited if _is_same(field, fields[name])}
    if above is TeacherConfig and issubclass(model, FitConfig):
        known |= set(TrainingConfig.model_fields)
    rows = [
        _row(name, field, model)
        for name, field in fields.items()
        if name not in known and not (name in ("kind", "method") and model not in STAGE_SECTIONS.values())
    ]
    return "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows, ""])


def _is_same(one: FieldInfo, other: FieldInfo) -> bool:
    return _default(one) == _default(other) and one.annotation == other.annotation


def _row(name: str, field: FieldInfo, model: type[BaseModel]) -> str:
    """Return a row; a key that only has another default has the meaning that a base class states."""
    bases = (
        base.model_fields[name] for base in model.__mro__ if issubclass(base, BaseModel) and name in base.model_fields
    )
    meaning = " ".join(next((each.description for each in bases if each.description), "").split())
    return f"| `{name}` | {_values(field)} | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if field.default_factory_takes_validated_data:
        return f"`{field.default_factory}`"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "see its section"
    if isinstance(value, float):
        return f"`{value:.3g}`"
    return f"`{json.dumps(value)}`"


def _values(field: FieldInfo) -> str:
    limits = [f"{sign} {value:g}" for sign, value in _limits(field)]
    return ", ".join([_type(field.annotation), *limits])


def _limits(field: FieldInfo) -> Iterator[tuple[str, float]]:
    for rule in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("multiple_of", "multiple of")):
            if getattr(rule, name, None) is not None:
                yield sign, getattr(rule, name)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(member) for member in arguments if member is not type(None))
    if origin is dict and arguments[1] is not Any:
        return f"{_type(arguments[1])} by name"
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    return TYPE_NAMES.get(annotation, "section")


if __name__ == "__main__":
    print(markdown(), end="")
