"""The extra `transformers`, which some kinds of teachers need. No torch."""

from __future__ import annotations

import importlib.util

from pydantic import AfterValidator

from pipeline.errors import install_command


def check_installed() -> None:
    """Raise ValueError, for a recipe's validation, if Hugging Face transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"the package transformers is not installed: {install_command('transformers')}")


def _checked(kind: str) -> str:
    check_installed()
    return kind


NEEDS_TRANSFORMERS = AfterValidator(_checked)
"""Annotates the key `kind` of teachers that can't be without the extra."""
