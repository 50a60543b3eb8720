"""What every kind of source in a recipe's `data` has in common. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(BaseModel):
    """What every set of images can state in the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: str
    """The format: the name of a file in `pipeline/sources/`."""
    max_bad: Share = 0.05
    """The share of unusable files above which reading the set fails."""
