"""Base class of the entries of the recipe's `data` section: what every kind of source has. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(BaseModel):
    """The keys that every kind of source has.

    Example:
        class Config(SourceConfig):
            kind: Literal["folder"] = "folder"
            path: str
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: str
    """The format: the name of a file in `pipeline/sources/`."""
    max_bad: Share = 0.05
    """Largest share of unusable files; above it reading the set fails."""
