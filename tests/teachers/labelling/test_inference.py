"""Inference on shards: what teachers see does not depend on other teachers."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.stores.images import NewImage, ShardWriter
from tasks.prediction import Predictor, Preprocessing
from tasks.task import Task
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
        nothing = nn.Identity()
        predictors = {str(number): Predictor(nothing, {}, way) for number, way in enumerate(company)}
        batch = ShardInference(shard, predictors, {}).load(range(1))
        return {way: images.numpy().tobytes() for way, images in batch.inputs.items()}

    together = preprocess(all_ways)
    assert together == {way: preprocess([way])[way] for way in all_ways}
    assert together == preprocess(all_ways[::-1])


class Mean(nn.Module):
    """Gives the mean of each image."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"mean": images.float().mean(dim=(1, 2, 3))}


def test_shard_inference_infers_a_batch_that_the_device_has_no_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not uploaded whole, and each teacher takes as many of its images at once as the device holds."""
    writer = ShardWriter(tmp_path, "shard")
    for number in range(5):
        writer.add(NewImage(jpeg(32 + 8 * number), "jpg", 32 + 8 * number, 32 + 8 * number, str(number)))
    writer.close()
    head = cast(Task, SimpleNamespace(predict=lambda output, valid: output))
    predictors = {name: Predictor(Mean(), {"mean": head}, Preprocessing(32)) for name in ("one", "other")}
    shard = ShardInference(image_shard(writer.tar_path), predictors, {})

    def means() -> dict[str, list[float]]:
        predictions = shard.infer_all(shard.load(range(5))).predictions
        found: dict[str, Any] = {name: started.read()[0]["mean"] for name, started in predictions.items()}
        return {name: means.tolist() for name, means in found.items()}

    expected, to, moved = means(), Tensor.to, list[int]()

    def to_small_device(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if len(tensor) > 2:
            raise torch.OutOfMemoryError("no more")
        moved.append(len(tensor))
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", to_small_device)
    assert means() == expected
    assert moved == [2, 2, 1] * 2
