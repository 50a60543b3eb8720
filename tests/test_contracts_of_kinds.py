"""Contracts that every kind of source and teacher must keep. Kinds are found by their files, not listed here."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import timm
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.models.weights import NETWORK
from pipeline.recipe.plugins import modules
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.source import SourceConfig
from pipeline.recipe.teacher import TeacherConfig
from pipeline.sources import BaseSource
from pipeline.steps.artifact import write_json

EXAMPLES: dict[str, Any] = {
    "path": "somewhere",
    "count": 3,
    "seed": 1,
    "task": "segmentation",
    "data": "street",
    "domain": "street",
    "model": "test_resnet",
    "weights": "weights.safetensors",
    "boxes": "things",
    "prompts": {"car": ["car", "van"], "dog": ["dog"]},
}
"""A value for every required field of any kind, by the field's name."""


def kinds_of(package: str) -> list[tuple[str, str]]:
    return [(package, kind) for kind in modules(package)]


KINDS = [*kinds_of("pipeline.sources"), *kinds_of("teachers")]
every_kind = pytest.mark.parametrize(("package", "kind"), KINDS, ids=[f"{package}.{kind}" for package, kind in KINDS])


def config_of(package: str, kind: str) -> BaseModel:
    """Return a config of a kind with its required fields only, filled from EXAMPLES."""
    config: type[BaseModel] = importlib.import_module(f"{package}.{kind}").Config
    required = {name: field for name, field in config.model_fields.items() if field.is_required() and name != "kind"}
    return config.model_validate({name: example(f"{package}.{kind}", name, field) for name, field in required.items()})


def example(kind: str, name: str, field: FieldInfo) -> Any:
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)[0]
    assert name in EXAMPLES, f"{kind} requires {name!r}: add a value for it to EXAMPLES"
    return EXAMPLES[name]


@every_kind
def test_config_survives_json(package: str, kind: str) -> None:
    config = config_of(package, kind)
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert type(config).model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@every_kind
def test_config_kind_is_the_file_name_and_unknown_keys_are_refused(package: str, kind: str) -> None:
    config = config_of(package, kind)
    assert isinstance(config, TeacherConfig if package == "teachers" else SourceConfig)
    assert config.kind == kind
    with pytest.raises(ValidationError, match="no_such_key"):
        type(config).model_validate({**config.model_dump(), "no_such_key": 1})
    with pytest.raises(ValidationError, match="frozen"):
        config.kind = "another"


@every_kind
def test_recipe_finds_the_config_by_kind(package: str, kind: str) -> None:
    config = config_of(package, kind)
    field = "teachers" if package == "teachers" else "data"
    data = {"pool": {"kind": "folder", "path": "p"}, "street": {"kind": "folder", "path": "s"}}
    teachers = {"texture": {"kind": "analytic"}}
    recipe: dict[str, Any] = {"name": "r", "data": data, "teachers": teachers, "pool": ["pool"], "student": {}}
    recipe[field] = {**recipe[field], "one": config.model_dump(mode="json")}
    read = Recipe.model_validate(recipe)
    assert getattr(read, field)["one"] == config
    assert Recipe.model_validate(read.model_dump(mode="json")) == read


@pytest.mark.parametrize("kind", modules("pipeline.sources"))
def test_source_is_a_concrete_base_source(kind: str) -> None:
    source = importlib.import_module(f"pipeline.sources.{kind}").Source
    assert issubclass(source, BaseSource)
    assert not inspect.isabstract(source), source.__abstractmethods__
    assert list(inspect.signature(source).parameters) == ["config"]


@pytest.mark.parametrize("kind", modules("teachers"))
def test_teacher_module_has_make_and_load(kind: str) -> None:
    module = importlib.import_module(f"teachers.{kind}")
    assert list(inspect.signature(module.make).parameters) == ["config", "inputs", "out"]
    assert list(inspect.signature(module.load).parameters) == ["folder"]


@pytest.mark.parametrize("kind", modules("teachers"))
def test_teacher_config_backbone_name_is_a_timm_model_or_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.safetensors").touch()
    write_json(Path("weights.json"), {"format": NETWORK, "backbone": "test_vit", "heads": {}})
    config = config_of("teachers", kind)
    assert isinstance(config, TeacherConfig)
    name = config.backbone_name()
    assert name is None or timm.is_model(name)


def test_modules_finds_kinds() -> None:
    assert {kind for _, kind in kinds_of("teachers")} >= {"supervised", "pretrained", "analytic"}
    assert {kind for _, kind in kinds_of("pipeline.sources")} >= {"folder", "coco", "masks", "depth", "imagefolder"}
