"""The functions of an image that texture labels are responses of, and the names of their responses. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Function = Literal["gabor", "hog", "edges", "colors"]
EDGE_SCALES = (1.0, 2.0, 4.0)
"""Standard deviations of the blurs before edges are looked for, pixels."""
COLORS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (220, 20, 20),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 20),
    "green": (30, 150, 40),
    "blue": (30, 60, 200),
    "purple": (130, 30, 150),
    "pink": (255, 150, 190),
    "brown": (120, 70, 20),
}
"""The basic color terms of Berlin and Kay (1969), with an RGB value of each that is our choice."""


def response_names(function: Function, wavelengths: Sequence[float], orientations: int) -> list[str]:
    """Return the names of a function's responses; `<scale>@<degrees>` for those that have a direction.

    Those of `gabor` are in order of their wavelengths, and then of their angles.
    """
    if function == "edges":
        return [f"edges {scale:g}" for scale in EDGE_SCALES]
    if function == "colors":
        return list(COLORS)
    scales = [f"{wavelength:g}" for wavelength in wavelengths] if function == "gabor" else ["hog"]
    angles = [f"{180 * number / orientations:g}" for number in range(orientations)]
    return [f"{scale}@{angle}" for scale in scales for angle in angles]
