"""The reference of the commands is up to date and complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.cli import app
from typer.testing import CliRunner

from pipeline.errors import PROJECT


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    page: Path = tmp_path_factory.mktemp("reference") / "cli.md"
    options = ["--name", "must", "--title", "Commands", "--output", str(page)]
    CliRunner().invoke(app, ["cli.main", "utils", "docs", *options], catch_exceptions=False)
    return page.read_text("utf-8")


def test_cli_reference_page_is_up_to_date(text: str) -> None:
    page = PROJECT / "docs" / "reference" / "cli.md"
    assert page.read_text("utf-8") == text, "run the command in the docstring of cli/main.py"


def test_cli_reference_has_every_group(text: str) -> None:
    for command in ("must run", "must export labels", "must store sql", "must artifacts gc"):
        assert f"# `{command}`\n" in text
