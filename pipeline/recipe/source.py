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

    later_keys = frozenset({"channels"})
    kind: str
    """The format: the name of a file in `pipeline/sources/`."""
    channels: int = Field(default=3, ge=1, le=16)
    """Channels of the images. Of 3 they are pictures in RGB of 8 bits, whatever the files hold; of any other number the
    bands of TIFF files or NumPy's arrays (height, width, channels), whose numbers are taken as they are."""
    max_bad: Share = 0.05
    """Largest share of unusable files, and of unusable annotations; above it reading the set fails."""
