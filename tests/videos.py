"""Small videos whose frames show their numbers, so that a test can tell which it was given."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = (64, 48)


def picture(number: int) -> NDArray[np.uint8]:
    """Return a grey picture that shows its number in bits: grey goes through any codec unchanged but for a little."""
    bits = [40 + 170 * (number >> bit & 1) for bit in range(8)]
    return np.repeat(np.repeat(np.array(bits, np.uint8)[None], 48, 0), 8, 1)[..., None].repeat(3, -1)


def number_in(image: Any) -> int:
    """Return the number that a picture shows."""
    columns = np.asarray(image)[4:-4, 4::8].mean(axis=(0, 2)) > 125
    return int((columns << np.arange(8)).sum())


def write_video(file: Path, frames: int = 40, codec: str = "mpeg4", rotation: int = 0, **options: str) -> None:
    """Write frames that show their numbers, ten in a second; an MP4 has its table of frames at the beginning."""
    import av  # noqa: PLC0415 - an extra

    with av.open(str(file), "w", options={"movflags": "faststart"} if file.suffix == ".mp4" else {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(10), options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
