"""Damaged folders of Hugging Face models: whatever the kind of teacher, the message names the folder and the value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError, Shortage
from teachers.models import transformers_backbones, transformers_models, zeroshot_models
from teachers.zeroshot import Config as ZeroshotConfig
from tests.teachers.small_backbones import save_backbone
from tests.teachers.small_zeroshot import SHAPES, random_model, save

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

WEIGHTS, SETTINGS, MODEL = "model.safetensors", "preprocessor_config.json", "config.json"


def fetch_transformers(folder: Path) -> None:
    asked = {"task": "classification", "weights": str(folder), "scale": "relative", "resize": "stretch"}
    transformers_models.folder_space(str(folder), "classification", "relative")
    model, processor = transformers_models.fetch(str(folder), "classification")
    transformers_models.describe(model, processor, {**asked, "head": "mine", "image_size": None})


def fetch_zeroshot(folder: Path) -> None:
    teacher = ZeroshotConfig(task="classification", weights=str(folder), prompts=list(SHAPES))
    teacher.check()
    model, processor = zeroshot_models.fetch(teacher.about())
    zeroshot_models.describe(model, processor, teacher.about())


def fetch_backbone(folder: Path) -> None:
    transformers_backbones.fetch(str(folder), "features", None)


FETCH: dict[str, Callable[[Path], None]] = {
    "transformers": fetch_transformers,
    "zeroshot": fetch_zeroshot,
    "backbone": fetch_backbone,
}


@pytest.fixture(params=FETCH)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[Path], None], Path]:
    """What a kind of teacher does with a folder, and a folder with a whole model for it."""
    if request.param == "zeroshot":
        folder = save(tmp_path, *random_model("clip"))
    else:
        folder = save_backbone({"transformers": "vit_classifier", "backbone": "dinov2"}[request.param], tmp_path)
    FETCH[request.param](folder)
    return FETCH[request.param], folder


def set_key(file: Path, key: str, value: object) -> None:
    """Change a setting of a JSON file, also where the part for images has it."""
    settings = json.loads(file.read_text())
    (settings["vision_config"] if key in settings.get("vision_config", ()) else settings)[key] = value
    file.write_text(json.dumps(settings))


def reshape_a_tensor(file: Path) -> None:
    weights = load_file(file)
    name = min(name for name, tensor in weights.items() if tensor.ndim == 2)
    save_file({**weights, name: weights[name][:-1].clone()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:5000]), "can't be loaded as a .* model: .*header"),
        (lambda file: file.write_bytes(b""), "can't be loaded as a .* model: .*Give a folder that save_pretrained"),
        (lambda file: file.write_bytes(b"\xff" * 500), "can't be loaded as a .* model: .*Give a folder"),
        (reshape_a_tensor, r"its weights .* are \(\d+, \d+\), and config\.json makes them \(\d+, \d+\)"),
    ],
)
def test_load_network_refuses_damaged_weights(
    damage: Callable[[Path], None], says: str, published: tuple[Callable[[Path], None], Path]
) -> None:
    fetch, folder = published
    damage(folder / WEIGHTS)
    with pytest.raises(ConfigError, match=rf"{folder.name}'.*{says}"):
        fetch(folder)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("image_mean", "x", "3 finite numbers"),
        ("image_mean", [0.5, 0.5], "3 finite numbers"),
        ("image_mean", [0.5, 0.5, None], "3 finite numbers"),
        ("image_mean", [0.5, 0.5, math.nan], "3 finite numbers"),
        ("image_std", "x", "3 finite numbers above 0"),
        ("image_std", [0, 0, 0], "3 finite numbers above 0"),
        ("image_std", [0.5, 0.5, math.inf], "3 finite numbers above 0"),
        ("rescale_factor", 0, "a finite number above 0"),
        ("rescale_factor", "x", "a finite number above 0"),
        ("size", {"height": -3, "width": 64}, "a finite number above 0"),
        ("size", {"height": "x", "width": 64}, "a finite number above 0"),
        ("crop_size", {"height": 0, "width": 64}, "a finite number above 0"),
    ],
)
def test_describe_input_refuses_settings_that_prepare_no_image(
    key: str, value: object, wanted: str, tmp_path: Path
) -> None:
    settings = {"do_center_crop": True} if key == "crop_size" else {}
    transformers.ViTImageProcessor(**settings).save_pretrained(tmp_path)
    set_key(tmp_path / SETTINGS, key, value)
    processor = transformers_models.load_part(str(tmp_path), "AutoImageProcessor", "depth")
    with pytest.raises(ConfigError, match=rf"{tmp_path.name}'.*{key} .*: {wanted} would work"):
        transformers_models.describe_input(
            processor, {"weights": str(tmp_path), "task": "classification", "image_size": None}
        )


@pytest.mark.parametrize("value", [0, -8, "x"])
def test_load_config_refuses_a_patch_size_that_is_none(
    value: object, published: tuple[Callable[[Path], None], Path]
) -> None:
    fetch, folder = published
    set_key(folder / MODEL, "patch_size", value)
    with pytest.raises(ConfigError, match=rf"{folder.name}'.*patch_size.*{value}"):
        fetch(folder)


def test_load_part_tells_a_shortage_and_no_damage(
    published: tuple[Callable[[Path], None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> object:
        raise MemoryError

    fetch, folder = published
    for part in ("AutoImageProcessor", "AutoConfig"):
        monkeypatch.setattr(getattr(transformers, part), "from_pretrained", fail)
    with pytest.raises(Shortage, match="memory"):
        fetch(folder)
