"""Teachers of Hugging Face transformers predict what the model itself predicts. Needs no network."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, DataError
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from tasks.prediction import Predictor
from teachers import transformers as kind
from teachers.models import transformers_models

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

NAMES = {0: "cat", 1: "N/A", 2: "dog"}


def tiny(**more: Any) -> dict[str, Any]:
    """Return settings of a small transformer."""
    return {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 64,
        "patch_size": 16,
        **more,
    }


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def save(model: Any, processor: Any) -> Path:
        model.save_pretrained(tmp_path / "published")
        processor.save_pretrained(tmp_path / "published")
        return tmp_path / "published"

    torch.manual_seed(0)
    return save


def make(folder: Path, task: str, **settings: Any) -> Predictor:
    """Make the teacher from a folder, and load it from its artifact alone."""
    out = folder.parent / "out"
    out.mkdir()
    teacher = {"kind": "transformers", "task": task, "weights": str(folder), **settings}
    kind.make({"name": "mine", "teacher": teacher, "seed": 0}, Inputs({}, Runtime(Root.of(out))), out)
    folder.rename(folder.parent / "gone")
    predictor = kind.load(out)
    check_vectors(predictor)
    return predictor


def check_vectors(predictor: Predictor) -> None:
    """Check that the model tells a vector of each image, the same beside predictions."""
    images = pictures(predictor.preprocessing.size)
    vectors = predictor.embed(images)
    assert vectors is not None
    assert vectors.ndim == 2
    assert not np.allclose(vectors[0], vectors[1])
    beside = predictor.predict_with_vectors(images, SIZES)[1]
    assert beside is not None
    np.testing.assert_allclose(beside, vectors, atol=1e-5)


SIZES = [(128, 64)] * 2


def pictures(side: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8))


def normalised(images: torch.Tensor, processor: Any) -> torch.Tensor:
    """Preprocess images of the right size with the library."""
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    made: torch.Tensor = processor(arrays, return_tensors="pt", do_resize=False)["pixel_values"]
    return made


def test_classification_adapter_gives_probabilities_of_the_model(save: Any) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny(), id2label=NAMES)).eval()
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.4] * 3)
    predictor = make(save(model, processor), "classification")
    with torch.inference_mode():
        expected = model(normalised(pictures(), processor)).logits.softmax(dim=1)
    found = torch.from_numpy(predictor.predict(pictures(), SIZES)["mine"]["probs"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert predictor.heads["mine"].space.classes == ("cat", "N/A", "dog")
    assert (predictor.preprocessing.size, predictor.preprocessing.crop_pct) == (64, None)


def test_classification_adapter_resamples_positions_to_the_image_size(save: Any) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny(), id2label=NAMES)).eval()
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    predictor = make(save(model, processor), "classification", image_size=96)
    assert predictor.predict(pictures(96), SIZES)["mine"]["probs"].shape == (2, 3)


def test_transformers_teacher_refuses_a_size_that_its_model_cannot_take(
    save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teachers.models.transformers_models.RESAMPLES", "what no model has")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny(), id2label=NAMES)).eval()
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    with pytest.raises(
        ConfigError, match=r"teachers\.mine: the model can't take images of 96 x 96 pixels \(.*set another"
    ):
        make(save(model, processor), "classification", image_size=96)


def test_classification_adapter_gives_probabilities_of_each_class_of_a_multilabel_model(save: Any) -> None:
    config = transformers.ViTConfig(**tiny(), id2label=NAMES, problem_type="multi_label_classification")
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    predictor = make(save(model, processor), "multilabel")
    with torch.inference_mode():
        expected = model(normalised(pictures(), processor)).logits.sigmoid()
    found = torch.from_numpy(predictor.predict(pictures(), SIZES)["mine"]["probs"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert predictor.heads["mine"].space == LabelSpace("multilabel", ("cat", "N/A", "dog"))


@pytest.mark.parametrize(
    ("task", "problem_type", "fits"),
    [("classification", "multi_label_classification", "multilabel"), ("multilabel", None, "classification")],
)
def test_fetch_refuses_a_classifier_of_the_other_problem_type(
    task: str, problem_type: str | None, fits: str, save: Any
) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny(), problem_type=problem_type))
    folder = save(model, transformers.ViTImageProcessor(size={"height": 64, "width": 64}))
    with pytest.raises(ConfigError, match=f"task is '{task}', but .*published' is for '{fits}': the problem_type in"):
        transformers_models.fetch(str(folder), task)


def test_segmentation_adapter_gives_classes_of_the_model(save: Any) -> None:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, id2label=NAMES
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    predictor = make(save(model, processor), "segmentation")
    with torch.inference_mode():
        logits = model(normalised(pictures(), processor)).logits
    assert logits.shape[-1] == 16  # already a quarter of the input
    value = predictor.values(predictor.predict(pictures(), SIZES), 0, (128, 64))["mine"]
    np.testing.assert_array_equal(value["classes"], logits[0].argmax(dim=0).numpy())
    np.testing.assert_allclose(value["confidence"], logits[0].softmax(dim=0).amax(dim=0).numpy(), rtol=1e-4)


def test_detection_adapter_gives_boxes_of_the_model_for_classes_only(save: Any) -> None:
    config = transformers.YolosConfig(**tiny(image_size=[64, 64]), num_detection_tokens=30, id2label=NAMES)
    model = transformers.YolosForObjectDetection(config).eval()
    with torch.no_grad():
        model.vit.embeddings.detection_tokens.normal_()  # untrained ones all predict the same
    processor = transformers.YolosImageProcessor(size={"height": 64, "width": 64})
    predictor = make(save(model, processor), "detection")
    assert predictor.heads["mine"].space.classes == ("cat", "dog")
    with torch.inference_mode():
        output = model(normalised(pictures(), processor))
        (expected, _) = processor.post_process_object_detection(output, 0.01, [(64, 128)] * 2)
    value = predictor.values(predictor.predict(pictures(), SIZES), 0, (128, 64))["mine"]
    kept = expected["labels"] != 1
    order = expected["scores"][kept].argsort(descending=True)
    assert 0 < len(order) < len(kept)
    np.testing.assert_allclose(value["scores"], expected["scores"][kept][order].numpy(), rtol=1e-4)
    np.testing.assert_allclose(value["boxes"], expected["boxes"][kept][order].numpy(), rtol=1e-4, atol=1e-3)
    assert value["classes"].tolist() == [{0: 0, 2: 1}[int(label)] for label in expected["labels"][kept][order]]


@pytest.mark.parametrize("scale", ["relative", "metric"])
def test_depth_adapter_gives_depth_in_the_given_scale(save: Any, scale: str) -> None:
    config = transformers.GLPNConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
    )
    model = transformers.GLPNForDepthEstimation(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    predictor = make(save(model, processor), "depth", scale=scale)
    with torch.inference_mode():
        raw = model(normalised(pictures(), processor)).predicted_depth[:, None]
    resized = torch.nn.functional.interpolate(raw, size=(16, 16), mode="bilinear", antialias=True)[0, 0].numpy()
    depth = predictor.values(predictor.predict(pictures(), SIZES), 0, (128, 64))["mine"]["depth"]
    if scale == "metric":
        np.testing.assert_allclose(depth, resized, rtol=1e-4)
    else:
        spread = (resized - resized.min()) / (resized.max() - resized.min())
        np.testing.assert_allclose(depth, 0.01 + 0.99 * spread, atol=1e-4)
    assert predictor.heads["mine"].space.scale == scale


@pytest.mark.parametrize(
    ("processor", "settings", "side", "centre"),
    [
        ("CLIPImageProcessor", {}, 224, 1.0),
        ("ViTImageProcessor", {}, 224, None),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, 224, 0.875),
        ("ConvNextImageProcessor", {}, 384, None),
        ("DetrImageProcessor", {}, 800, None),
        ("BitImageProcessor", {"size": {"shortest_edge": 256}}, 224, 0.875),
    ],
)
def test_describe_follows_the_processor(
    processor: str, settings: dict[str, Any], side: int, centre: float | None
) -> None:
    made = getattr(transformers, processor)(**settings)
    about = described(made, task="classification")
    assert (about["size"], about["centre"]) == (side, centre)
    assert described(made)["centre"] is None, "a map has to be of the whole image"


def test_describe_refuses_blue_first() -> None:
    with pytest.raises(ConfigError, match="blue first"):
        described(transformers.MobileViTImageProcessor())


def described(processor: Any, **settings: Any) -> dict[str, Any]:
    asked = {
        "weights": "here",
        "task": "depth",
        "head": "mine",
        "scale": "relative",
        "resize": "stretch",
        "image_size": None,
        **settings,
    }
    model = types.SimpleNamespace(config=types.SimpleNamespace(id2label={}))
    return transformers_models.describe(model, processor, asked)


def test_describe_prefers_image_size_of_the_recipe() -> None:
    assert described(transformers.ViTImageProcessor(), image_size=96)["size"] == 96


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
    ],
)
def test_describe_gives_statistics_for_images_in_0_to_1(settings: dict[str, Any]) -> None:
    size = {"height": 64, "width": 64}
    processor = transformers.EfficientNetImageProcessor(size=size, include_top=False, **settings)
    about = described(processor)
    mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close((pictures() / 255 - mean) / std, normalised(pictures(), processor), rtol=1e-4, atol=1e-4)


def test_fetch_refuses_model_without_head_for_the_task(save: Any) -> None:
    folder = save(transformers.ViTModel(transformers.ViTConfig(**tiny())), transformers.ViTImageProcessor())
    with pytest.raises(DataError, match="not trained for classification"):
        make(folder, "classification")


def test_fetch_refuses_weights_that_are_not_finite(save: Any) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny()))
    torch.nn.init.constant_(model.classifier.weight, torch.nan)
    with pytest.raises(ConfigError, match=r"1 of \d+ tensors hold NaN or infinite numbers, first 'classifier\.weight'"):
        make(save(model, transformers.ViTImageProcessor()), "classification")


def test_fetch_refuses_model_of_another_task(save: Any) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**tiny()))
    with pytest.raises(ConfigError, match="can't be loaded as a detection model"):
        make(save(model, transformers.ViTImageProcessor()), "detection")


def test_fetch_refuses_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        make(tmp_path / "published", "depth")


def test_transformers_config_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"uv pip install -e .*\[transformers\]"):
        kind.Config(kind="transformers", task="depth", weights="somewhere")
