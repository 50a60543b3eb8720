"""The recipe's reference is up to date, and describes every key."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from cli.schema import CHAPTERS, markdown, schema
from pipeline.recipe.plugins import modules

KINDS = {**modules("pipeline.sources"), **modules("teachers")}


def test_schema_markdown_in_docs_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run `python -m cli.schema > docs/reference/recipe.md`"


@pytest.mark.parametrize("module", KINDS.values(), ids=KINDS.keys())
def test_schema_describes_every_key_of_a_kind(module: str) -> None:
    fields = importlib.import_module(module).Config.model_fields
    assert [name for name, field in fields.items() if not field.description and name not in ("kind", "task")] == []


def test_schema_describes_every_key_of_the_recipe() -> None:
    for _, _, model, _ in CHAPTERS:
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_schema_markdown_has_keys_whose_type_a_kind_narrows() -> None:
    torchvision = markdown().partition("### torchvision\n")[2].partition("\n### ")[0]
    assert "| `task` | `detection` or `segmentation` | *required* |" in torchvision
    assert "| `require` |" not in torchvision


def test_schema_has_every_kind() -> None:
    text = json.dumps(json.loads(schema()))
    assert all(f'"const": "{kind}"' in text for kind in KINDS)
