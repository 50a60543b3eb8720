"""The extra `transformers`, which some kinds of teachers need. No torch."""

from __future__ import annotations

import importlib.util

from pipeline.errors import install_command


def check_installed() -> None:
    """Raise ValueError, for a recipe's validation, if Hugging Face transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"the package transformers is not installed: {install_command('transformers')}")
