"""What the how-to pages say of all methods, against their configurations."""

from __future__ import annotations

import re
from pathlib import Path

from tests.selfsup.small_methods import METHODS, config

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


def named(page: str, pattern: str) -> list[str]:
    """Return what a sentence of a page names in `code`."""
    [sentence] = re.findall(pattern, (HOW_TO / page).read_text("utf-8"))
    return re.findall(r"`(\w+)`", sentence)


def test_stages_page_names_the_methods_whose_biases_and_norms_decay() -> None:
    found = named("stages.md", r"Biases and norms have no LARS here, and decay in (.*?) alone")
    assert found == [name for name in METHODS if config(name).decay == "all"]


def test_data_page_names_the_methods_that_take_pictures_alone() -> None:
    found = named("data.md", r"Methods that a teacher teaches \((.*?)\)")
    assert found == [name for name in METHODS if config(name).taught_by]
