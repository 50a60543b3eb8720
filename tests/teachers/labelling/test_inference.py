"""Inference on shards: what teachers see does not depend on other teachers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.stores.images import NewImage, ShardWriter
from tasks.prediction import Predictor, Preprocessing
from teachers.labelling import inference
from teachers.labelling.inference import ShardInference
from tests.disk import image_shard


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_shard_inference_decodes_the_same_whatever_other_teachers_need(tmp_path: Path, suffix: str) -> None:
    """Each teacher's JPEGs are decoded at the size that it needs, also beside teachers that need a larger one."""
    data = jpeg(256)
    if suffix == "png":
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).save(file, "PNG")
        data = file.getvalue()
    writer = ShardWriter(tmp_path, "shard")
    writer.add(NewImage(data, suffix, 256, 256, "one"))
    writer.close()
    shard = image_shard(writer.tar_path)
    all_ways = [Preprocessing(size) for size in (32, 48, 192)]
    all_ways += [Preprocessing(64, crop_pct=0.875, bicubic=True), Preprocessing(64, "pad")]

    def preprocess(company: list[Preprocessing]) -> dict[Preprocessing, bytes]:
        nothing = inference.torch.nn.Identity()
        predictors = {str(number): Predictor(nothing, {}, way) for number, way in enumerate(company)}
        batch = ShardInference(shard, predictors, {}).load(range(1))
        return {way: images.numpy().tobytes() for way, images in batch.inputs.items()}

    together = preprocess(all_ways)
    assert together == {way: preprocess([way])[way] for way in all_ways}
    assert together == preprocess(all_ways[::-1])
