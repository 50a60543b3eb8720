"""Images of several channels as inputs of a model."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np

from pipeline.data import bands
from tasks.inference.images import ImageInput, prepare
from tasks.prediction import Preprocessing


def test_prepare_decodes_bands_once_and_draws_their_first_three() -> None:
    file, numbers = io.BytesIO(), np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    np.save(file, numbers)
    with mock.patch.object(bands, "decode_bands", wraps=bands.decode_bands) as decode:
        image = prepare(ImageInput("a.npy", file.getvalue), Preprocessing(4, channels=5))
    assert decode.call_count == 1
    assert (image.reason, image.size, image.suffix) == ("", (6, 4), "npy")
    assert image.pixels is not None
    assert image.pixels.shape == (4, 4, 5)
    assert image.source.channels == 5
    assert image.source.image().size == (6, 4)
