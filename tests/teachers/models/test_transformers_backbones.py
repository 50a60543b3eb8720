"""Backbones of Hugging Face transformers give the library's own vectors and maps. Needs no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from teachers.models import transformers_backbones
from tests.teachers.small_backbones import PATCH, SIDE, WIDTH, processor, random_backbone, save_backbone


def pictures(side: int = SIDE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8))


def prepared(images: Tensor) -> Tensor:
    """Return images of the right size as the library prepares them."""
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    made: Tensor = processor()(arrays, return_tensors="pt", do_resize=False)["pixel_values"]
    return made


def image_part(name: str) -> Any:
    """Return the part of a model that takes images."""
    model = random_backbone(name)
    return getattr(model, {"clip": "vision_model", "vit_classifier": "vit"}.get(name, ""), model)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("dinov2", 1),
        ("dinov3", 5),
        ("dinov3_convnext", 1),
        ("siglip", 0),
        ("clip", 1),
        ("vit", 1),
        ("vit_classifier", 1),
        ("convnext", None),
    ],
)
@torch.no_grad()
def test_transformers_backbone_gives_the_vector_and_the_map_of_the_library(
    name: str, prefix: int | None, tmp_path: Path
) -> None:
    """`prefix`: tokens before those of the patches; None for a network of maps."""
    expected = image_part(name)(pixel_values=prepared(pictures()))
    backbone, about = transformers_backbones.fetch(str(save_backbone(name, tmp_path)), "features", None)
    vector, [cells] = backbone.readout(pictures())
    hidden = expected.last_hidden_state
    if prefix is not None:
        hidden = hidden[:, prefix:].permute(0, 2, 1).reshape(2, hidden.shape[-1], *cells.shape[2:])
    torch.testing.assert_close(cells, hidden, rtol=1e-4, atol=1e-4)
    pooled = hidden.mean(dim=(2, 3)) if name == "vit_classifier" else expected.pooler_output
    torch.testing.assert_close(vector, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone(pictures()), vector)
    assert (backbone.width, backbone.channels) == (vector.shape[1], (cells.shape[1],)) == (WIDTH, (WIDTH,))
    stride = 32 if "convnext" in name else SIDE // cells.shape[2]
    assert cells.shape[2:] == (SIDE // stride, SIDE // stride)
    assert not torch.allclose(vector[0], vector[1]), "images differ"
    assert (about["size"], about["bicubic"], about["mean"]) == (SIDE, True, pytest.approx([0.4] * 3))


@pytest.mark.parametrize("name", ["dinov2", "siglip", "clip", "vit_classifier", "convnext"])
@torch.no_grad()
def test_build_needs_the_configuration_and_the_weights_alone(name: str, tmp_path: Path) -> None:
    folder = save_backbone(name, tmp_path)
    fetched, about = transformers_backbones.fetch(str(folder), "features", None)
    folder.rename(tmp_path / "gone")
    assert str(tmp_path) not in json.dumps(about)
    built = transformers_backbones.build(json.loads(json.dumps(about)))
    built.load_state_dict(fetched.state_dict())
    found, expected = built.readout(pictures()), fetched.readout(pictures())
    torch.testing.assert_close(found.vector, expected.vector, rtol=0, atol=0)
    torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=0)
    assert not any("text" in key for key in built.state_dict()), "of images alone"


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "siglip", "clip", "vit"])
@torch.no_grad()
def test_transformers_backbone_resamples_positions_to_the_image_size(name: str, tmp_path: Path) -> None:
    side = 3 * SIDE // 2
    backbone, about = transformers_backbones.fetch(str(save_backbone(name, tmp_path)), "features", side)
    patch = 8 if name == "clip" else PATCH
    assert about["size"] == side
    assert backbone.readout(pictures(side)).maps[0].shape == (2, WIDTH, side // patch, side // patch)


def test_fetch_takes_the_side_that_a_model_was_trained_on_whatever_its_patches(tmp_path: Path) -> None:
    """As SigLIP's of 384 pixels and patches of 14: the library cuts what is left over."""
    model = random_backbone("siglip")
    config = model.config.to_dict() | {"image_size": 70}
    type(model)(type(model.config).from_dict(config)).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    backbone, _ = transformers_backbones.fetch(str(tmp_path), "features", 70)
    with torch.no_grad():
        assert backbone.readout(pictures(70)).maps[0].shape == (2, WIDTH, 4, 4)


@pytest.mark.parametrize(
    ("name", "image_size", "says"),
    [
        ("bert", None, r"weights '.*bert' are of a model of type 'bert', which has no part that takes images"),
        (
            "vit_mae",
            None,
            r"type 'vit_mae' has no vector and map of .* 64 x 64 .*5 tokens are not one for each of its 4",
        ),
        ("vit", 100, r"image_size 100 is no multiple of the 16 pixels of the model's patches: 96 or 112 would work"),
        ("nothing", None, r"'.*nothing' can't be loaded as a features model: .*Give a folder that save_pretrained"),
    ],
)
def test_fetch_says_what_is_wrong(name: str, image_size: int | None, says: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    if name != "nothing":
        save_backbone(name, tmp_path)
    with pytest.raises(ConfigError, match=says):
        transformers_backbones.fetch(str(folder), "features", image_size)


def test_fetch_refuses_a_model_that_lacks_weights(tmp_path: Path) -> None:
    """But for a pooler, which published classifiers come without."""
    file = save_backbone("vit", tmp_path) / "model.safetensors"
    weights = {key: tensor for key, tensor in load_file(file).items() if not key.startswith("layernorm.")}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"has no weights for layernorm\.bias, layernorm\.weight"):
        transformers_backbones.fetch(str(tmp_path / "vit"), "features", None)
