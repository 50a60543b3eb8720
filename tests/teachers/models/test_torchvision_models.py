"""Teachers of timm, torchvision and earlier networks predict what the model itself predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from tasks.network import Network, NetworkConfig
from tasks.prediction import Predictor
from tasks.teacher import Teacher
from teachers import checkpoint, pretrained
from teachers import torchvision as published
from teachers.models.torchvision_models import space_of
from tests.disk import made_in


def make(kind: Any, settings: dict[str, Any], out: Path) -> Predictor:
    out.mkdir()
    inputs = Inputs({}, Runtime(Root.of(out)))
    config = {"name": "mine", "teacher": {"kind": kind.__name__.rsplit(".", 1)[-1], **settings}, "seed": 0}
    kind.make(config, inputs, out)
    return kind.load(out)


def picture(side: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8))


def saved_classifier(name: str, folder: Path) -> dict[str, Any]:
    """Save random weights of a timm classifier of two classes, and return a teacher's settings for it."""
    path = folder / "weights.safetensors"
    save_file(timm.create_model(name, num_classes=2).state_dict(), path)
    return {"model": name, "weights": str(path), "classes": ["a", "b"]}


def test_pretrained_teacher_gives_probabilities_of_the_timm_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    settings = {
        "model": "test_resnet",
        "weights": str(tmp_path / "weights.safetensors"),
        "classes": list("abcde"),
        "image_size": 64,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
    }
    predictor = make(pretrained, settings, tmp_path / "out")
    images = picture()
    normalised = (images / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / 0.2
    with torch.inference_mode():
        expected = model(normalised).softmax(dim=1)
    torch.testing.assert_close(
        torch.from_numpy(predictor.predict(images, [(64, 64)] * 2)["mine"]["probs"]), expected, rtol=1e-4, atol=1e-5
    )


def test_pretrained_teacher_matches_renamed_weights_in_order(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=5).eval()
    renamed = {f"layer_{number}": tensor for number, tensor in enumerate(model.state_dict().values())}
    torch.save(renamed, tmp_path / "weights.pth")
    settings = {"model": "test_resnet", "weights": str(tmp_path / "weights.pth"), "classes": list("abcde")}
    predictor = make(pretrained, settings, tmp_path / "out")
    own = predictor.network.state_dict()
    assert all(torch.equal(own[f"model.{name}"], tensor) for name, tensor in model.state_dict().items())


def test_pretrained_teacher_refuses_weights_of_another_model(tmp_path: Path) -> None:
    save_file({"something": torch.zeros(3)}, tmp_path / "weights.safetensors")
    settings = {"model": "test_resnet", "weights": str(tmp_path / "weights.safetensors"), "classes": list("abcde")}
    message = r"weights\.safetensors, for a 'test_resnet': .*tensors missing.* Name weights of a 'test_resnet'"
    with pytest.raises(ConfigError, match=message):
        make(pretrained, settings, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "task", "model", "other"),
    [
        (pretrained, "classification", "test_resnet", "test_efficientnet"),
        (published, "segmentation", "lraspp_mobilenet_v3_large", "fcn_resnet50"),
        (published, "detection", "ssdlite320_mobilenet_v3_large", "ssd300_vgg16"),
    ],
)
def test_teacher_config_check_compares_weights_with_model(
    tmp_path: Path, kind: Any, task: str, model: str, other: str
) -> None:
    path = tmp_path / "weights.pth"

    def config(named: str) -> Any:
        return kind.Config(task=task, model=named, weights=str(path), classes=["__background__", "b", "c", "d"])

    if kind is pretrained:
        torch.save(timm.create_model(model, num_classes=4).state_dict(), path)
    else:
        made = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=4)
        torch.save(made.state_dict(), path)
    config(model).check()
    with pytest.raises(ConfigError, match=rf"weights\.pth, for a '{other}': .*, the model needs"):
        config(other).check()


def test_pretrained_teacher_crops_the_center(tmp_path: Path) -> None:
    settings = {**saved_classifier("test_resnet", tmp_path), "image_size": 32, "centre": 0.5}
    predictor = make(pretrained, settings, tmp_path / "out")
    image = Image.new("RGB", (128, 64), "black")
    image.paste((255, 255, 255), (48, 16, 80, 48))
    assert predictor.preprocessing(image, image.size).min() > 200


def test_pretrained_teacher_resamples_positions_to_its_image_size(tmp_path: Path) -> None:
    settings = saved_classifier("test_vit", tmp_path)
    pretrained.Config(**settings, image_size=96).check()
    predictor = make(pretrained, {**settings, "image_size": 96}, tmp_path / "out")
    assert predictor.predict(picture(96), [(96, 96)] * 2)["mine"]["probs"].shape == (2, 2)


def test_pretrained_teacher_refuses_a_size_that_its_model_cannot_take(tmp_path: Path) -> None:
    settings = saved_classifier("test_vit", tmp_path)
    with pytest.raises(ConfigError, match=r"image_size: 'test_vit' can't take images of 90 x 90 pixels"):
        pretrained.Config(**settings, image_size=90).check()


def test_pretrained_teacher_that_learned_from_stretched_images_sees_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = saved_classifier("test_resnet", tmp_path)
    published = timm.data.resolve_data_config({}, model=timm.create_model("test_resnet"))
    monkeypatch.setattr(
        timm.data,
        "resolve_data_config",
        lambda *_, **__: {**published, "crop_mode": "squash", "interpolation": "bicubic"},
    )
    predictor = make(pretrained, settings, tmp_path / "out")
    image = Image.new("RGB", (128, 64), "black")
    image.paste((255, 255, 255), (0, 0, 64, 64))
    seen = predictor.preprocessing(image, image.size)
    assert seen.mean() == pytest.approx(127.5, abs=3)
    assert predictor.preprocessing.bicubic


@pytest.mark.parametrize(
    ("task", "name"), [("segmentation", "lraspp_mobilenet_v3_large"), ("detection", "ssdlite320_mobilenet_v3_large")]
)
def test_torchvision_teacher_gives_values_of_its_label_space(tmp_path: Path, task: str, name: str) -> None:
    torch.manual_seed(0)
    outputs = ["__background__", "cat", "N/A", "dog"]
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    settings = {
        "task": task,
        "model": name,
        "weights": str(tmp_path / "weights.pth"),
        "classes": outputs,
        "image_size": 64,
    }
    predictor = make(published, settings, tmp_path / "out")
    space = Teacher.load(made_in(tmp_path / "out")).space
    values = predictor.values(predictor.predict(picture(), [(128, 64)] * 2), 0, (128, 64))["mine"]
    if task == "segmentation":
        assert space.classes == tuple(outputs)
        assert values["classes"].shape == (16, 16)
        assert 0 < values["confidence"].min() <= values["confidence"].max() <= 1
    else:
        assert space.classes == ("cat", "dog")
        assert set(values["classes"].tolist()) <= {0, 1}
        assert values["boxes"][:, 0::2].max(initial=0) <= 128
        assert (values["scores"] >= 0.01).all()


def test_space_of_detector_leaves_out_outputs_without_class() -> None:
    space, class_of_output = space_of("detection", ["__background__", "a", "N/A", "b"])
    assert space == LabelSpace("detection", ("a", "b"))
    assert class_of_output == [0, 1, 0, 2]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    spaces = {"depth": LabelSpace("depth"), "parts": LabelSpace("segmentation", ("a", "b"))}
    heads = {name: space.to_json() for name, space in spaces.items()}
    made = Network(NetworkConfig(backbone="test_resnet", image_size=64, width=16, heads=heads)).eval()
    (tmp_path / "earlier").mkdir()
    made.save(tmp_path / "earlier")
    return made


def test_checkpoint_teacher_gives_predictions_of_the_head(tmp_path: Path, network: Network) -> None:
    settings = {"task": "segmentation", "weights": str(tmp_path / "earlier" / "model.safetensors"), "head": "parts"}
    predictor = make(checkpoint, settings, tmp_path / "out")
    images = picture()
    with torch.inference_mode():
        expected = network(images)["parts"].softmax(dim=1).max(dim=1).values
    torch.testing.assert_close(
        torch.from_numpy(predictor.predict(images, [(64, 64)] * 2)["mine"]["confidence"]), expected
    )
    assert Teacher.load(made_in(tmp_path / "out")).space == LabelSpace("segmentation", ("a", "b"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "depth", "head": "dept"}, "Did you mean 'depth'"),
        ({"task": "depth"}, "head"),
        ({"task": "normals", "head": "depth"}, "is for 'depth'"),
    ],
)
def test_checkpoint_teacher_refuses_missing_head(
    tmp_path: Path, network: Network, settings: dict[str, str], message: str
) -> None:
    weights = str(tmp_path / "earlier" / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        make(checkpoint, {"weights": weights, **settings}, tmp_path / "out")


def test_checkpoint_teacher_refuses_other_formats(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"format": "timm_classifier"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="format 'timm_classifier'; a network of this version, of format 'network-2'"):
        make(checkpoint, {"task": "depth", "weights": str(tmp_path / "model.safetensors")}, tmp_path / "out")


@pytest.mark.parametrize("known", ["imagenet-1k", "imagenet-12k", "imagenet-22k"])
def test_class_names_that_timm_knows_are_of_one_class_each(known: Any) -> None:
    names = pretrained.class_names(pretrained.Config(model="test_resnet", weights="timm", classes=known))
    assert len(set(names)) == len(names)
    assert known != "imagenet-1k" or {"crane (n02012849)", "crane (n03126707)"} < set(names)
