"""Base class of the entries of the recipe's `data` section: what every kind of source has. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.recipe.base import BaseConfig

Share = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(BaseConfig):
    """The keys that every kind of source has.

    Example:
        class Config(SourceConfig):
            kind: Literal["folder"] = "folder"
            path: str
    """

    kind: str
    """The format: the name of a file in `pipeline/sources/`."""
    max_bad: Share = 0.05
    """Largest share of unusable files, and of unusable annotations; above it reading the set fails."""
