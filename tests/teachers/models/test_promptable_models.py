"""Promptable teachers make the masks that the library's own processor and model make of the same boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.rle import decode_mask
from pipeline.training.autotune import ComputeConfig
from tasks.frozen_teacher import FrozenTeacher
from tasks.prediction import Predictor, Preprocessing, check_finite_label
from teachers.models.torchvision_models import DetectedBoxes
from tests.teachers.small_promptable import MAKERS, random_promptable, save_promptable, transformers

models: Any = pytest.importorskip("teachers.models.promptable_models", reason="transformers is not installed")

CORNERS = [[2.0, 3.0, 20.0, 14.0], [10.0, 1.0, 31.0, 30.0], [0.0, 0.0, 9.0, 31.0], [5.0, 5.0, 25.0, 28.0]]
"""Boxes in inputs of 32 x 32 pixels, not all of which are in the valid part of padded images."""
SCORES = [0.02, 0.9, 0.4, 0.6]
SIZES = [(64, 64), (64, 40), (30, 60), (200, 125), (16, 12)]
"""(width, height) of images that fill whole cells of 4 pixels of a padded square of 64, as inputs do here."""
every_type = pytest.mark.parametrize("name", MAKERS)
both_resizes = pytest.mark.parametrize("resize", ["stretch", "pad"])


class FixedBoxes(nn.Module):
    """A detector that finds the same boxes in each image, and keeps what it was given."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        self.seen = images
        found = {"boxes": torch.tensor(CORNERS), "scores": torch.tensor(SCORES), "labels": torch.tensor([1, 2, 1, 2])}
        return {"things": [dict(found) for _ in images]}


def detector(resize: Any = "stretch") -> Predictor:
    space = LabelSpace("detection", ("car", "cat"))
    return Predictor(FixedBoxes(), {"things": DetectedBoxes(space)}, Preprocessing(32, resize))


def build(folder: Path, name: str, resize: Any = "stretch", **settings: Any) -> Any:
    """Return the predictor of a tiny model that is given fixed boxes, from its files alone."""
    published = save_promptable(folder, name)
    model, processor = models.fetch(str(published))
    about = {"weights": "tiny", "task": "masks", "head": "mine", "classes": ["car", "cat"], "threshold": 0.05}
    out = folder / "out"
    model.save_pretrained(out)
    shutil.rmtree(published)
    return models.build_predictor(
        out, models.describe(processor, {**about, "max_boxes": 100, **settings}), detector(resize), "fixed"
    )


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def stacked(predictor: Predictor, images: list[Image.Image]) -> Tensor:
    """Return the input of the teacher, uint8 (B, 3, S, S)."""
    inputs = np.stack([predictor.preprocessing(image, image.size) for image in images])
    return torch.from_numpy(inputs).permute(0, 3, 1, 2)


def values(predictor: Predictor, images: list[Image.Image]) -> list[Value]:
    predicted = predictor.predict(stacked(predictor, images), [image.size for image in images])
    return [predictor.values(predicted, index, image.size)["mine"] for index, image in enumerate(images)]


def published_logits(name: str, predictor: Predictor, image: Image.Image, boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the library's logits (N, H, W), of the teacher's input: resizing differs, and has no part in this."""
    model, processor = random_promptable(name)
    asked = processor(image, input_boxes=[boxes.tolist()], return_tensors="pt")
    [pixels] = stacked(predictor, [image]).permute(0, 2, 3, 1).numpy()
    asked["pixel_values"] = processor.image_processor(pixels, return_tensors="pt")["pixel_values"]
    sizes = [asked.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in asked]
    with torch.inference_mode():
        masks = model(**{key: each.float() for key, each in asked.items()}, multimask_output=False).pred_masks
    [logits] = processor.post_process_masks(masks, *sizes, binarize=False)
    return np.asarray(logits[:, 0].numpy())


def check_masks(value: Value, logits: NDArray[Any]) -> None:
    """Compare masks pixel by pixel where logits are not so near to 0 that rounding decides."""
    clear = np.abs(logits) > 1e-4 * np.abs(logits).max()
    found = np.stack([decode_mask(mask, logits.shape[:0:-1]) for mask in value["masks"]])
    np.testing.assert_array_equal(found[clear], logits[clear] > 0)
    assert clear.mean() > 0.95
    assert 0.1 < found.mean() < 0.9


@both_resizes
@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_promptable_teacher_makes_the_masks_of_the_library(tmp_path: Path, name: str, resize: str) -> None:
    predictor = build(tmp_path, name, resize)
    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    for image, value in zip(images, values(predictor, images), strict=True):
        check_masks(value, published_logits(name, predictor, image, value["boxes"]))


def test_promptable_teacher_takes_the_part_for_images_of_a_model_for_videos(tmp_path: Path) -> None:
    predictor = build(tmp_path, "sam2_video")
    [value] = values(predictor, [picture((64, 40))])
    assert type(predictor.network.model).__name__ == "Sam2Model"
    assert len(value["masks"]) == 3


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_box_prompter_keeps_classes_and_scores_of_boxes_above_the_threshold(tmp_path: Path, name: str) -> None:
    predictor = build(tmp_path, name, threshold=0.4, max_boxes=2)
    [value] = values(predictor, [picture((64, 64))])
    np.testing.assert_array_equal(value["scores"], np.array([0.9, 0.6], np.float32))
    np.testing.assert_array_equal(value["classes"], [1, 1])
    np.testing.assert_array_equal(value["boxes"], 2 * np.array([CORNERS[1], CORNERS[3]]))
    np.testing.assert_array_equal(value["size"], [64, 64])


def test_box_prompter_makes_no_mask_without_a_box(tmp_path: Path) -> None:
    [value] = values(build(tmp_path, "sam", threshold=1.0), [picture((64, 40))])
    assert [len(value[name]) for name in ("boxes", "scores", "classes", "masks")] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_box_prompter_decodes_alike_in_any_batch(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, images = build(tmp_path, name), [picture((64, 40), seed) for seed in range(3)]
    together = predictor.predict(stacked(predictor, images), [(64, 40)] * 3)["mine"]["images"]
    monkeypatch.setattr(models, "BOXES_PER_PASS", 2)
    for image, found in zip(images, together, strict=True):
        [alone] = predictor.predict(stacked(predictor, [image]), [(64, 40)])["mine"]["images"]
        np.testing.assert_allclose(alone["masks"], found["masks"], atol=2e-3)


@every_type
def test_box_prompter_in_bfloat16_is_near(tmp_path: Path, name: str) -> None:
    predictor, image = build(tmp_path, name), picture((64, 64))
    [exact] = predictor.predict(stacked(predictor, [image]), [image.size])["mine"]["images"]
    predictor.compute = ComputeConfig("cpu", "bf16", True, {})
    predictor.compute.place(predictor.network)
    [near] = predictor.predict(stacked(predictor, [image]), [image.size])["mine"]["images"]
    assert np.abs(near["masks"] - exact["masks"]).mean() < 0.1 * exact["masks"].std()


def test_box_prompter_does_not_take_a_mask_that_is_not_finite_for_no_object(tmp_path: Path) -> None:
    predictor = build(tmp_path, "sam")
    with torch.no_grad():
        predictor.network.model.mask_decoder.output_hypernetworks_mlps[0].proj_out.bias[:] = torch.inf
    [value] = values(predictor, [picture((64, 64))])
    predicted = predictor.predict(stacked(predictor, [picture((64, 64))]), [(64, 64)])
    assert np.isnan(predicted["mine"]["images"][0]["scores"]).all()
    with pytest.raises(DataError, match="scores are not finite"):
        check_finite_label(value)


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_image_embedder_tells_a_vector_of_each_image(tmp_path: Path, name: str) -> None:
    predictor = build(tmp_path, name)
    images = stacked(predictor, [picture((64, 64), seed) for seed in range(2)])
    _, vectors = predictor.predict_with_vectors(images, [(64, 64)] * 2)
    np.testing.assert_allclose(predictor.embed(images), vectors, rtol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])
    np.testing.assert_allclose(FrozenTeacher(predictor)(images).vector, vectors, rtol=1e-5)


@both_resizes
@pytest.mark.parametrize("own", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(64, 64), (64, 40), (30, 60), (200, 125)])
def test_resample_gives_what_the_other_preprocessing_makes(own: Any, resize: Any, size: tuple[int, int]) -> None:
    image, one, other = picture(size), Preprocessing(64, own), Preprocessing(32, resize)
    inputs = torch.from_numpy(one(image, size).copy()).permute(2, 0, 1)[None]
    found = models.resample(inputs, one, other, [size])[0].permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - other(image, size)).mean() < 2


def test_resample_changes_nothing_where_both_are_the_same() -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    same = Preprocessing(64)
    torch.testing.assert_close(models.resample(images, same, same, [(30, 20), (64, 64)]), images)


def test_load_config_refuses_a_model_that_takes_no_boxes(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"a model of type 'vit', which makes no masks of boxes here; SAM \(hub:face"):
        models.load_config(str(tmp_path))


def test_load_config_refuses_patches_without_pixels(tmp_path: Path) -> None:
    file = save_promptable(tmp_path, "sam") / "config.json"
    about = json.loads(file.read_text("utf-8"))
    about["vision_config"]["patch_size"] = 0
    file.write_text(json.dumps(about), "utf-8")
    with pytest.raises(ConfigError, match=r"the patch_size in its config\.json is 0"):
        models.load_config(str(file.parent))


def test_load_processor_refuses_images_of_another_size_than_the_model_takes(tmp_path: Path) -> None:
    folder = save_promptable(tmp_path, "sam2")
    transformers.Sam2ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match="makes images of 32 pixels, and the model takes 64: give a folder whose"):
        models.load_processor(str(folder))
