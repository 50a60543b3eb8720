"""Teachers of kind `checkpoint`: a network that is damaged or another's is refused before it becomes an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, DataError, MustError
from pipeline.models.checkpoint import load_model, save_model
from pipeline.steps.artifact import Inputs, write_json
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from tasks.network import Network, NetworkConfig
from teachers.checkpoint import Config, make


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a whole network of one head."""
    space = LabelSpace("classification", ("cat", "dog"))
    Network(NetworkConfig(backbone="test_resnet", image_size=32, heads={"kinds": space.to_json()})).save(tmp_path)
    return tmp_path / "model.safetensors"


def config(weights: Path | str) -> Config:
    return Config(task="classification", weights=str(weights))


def truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def replace(weights: Path, change: Mapping[str, Any]) -> None:
    about, tensors = load_model(weights.parent)
    save_model(weights.parent, {**tensors, **change}, about)


DAMAGES: list[tuple[Any, type[MustError], str]] = [
    (truncate, DataError, "not readable as safetensors"),
    (
        lambda path: replace(path, {"backbone.mean": torch.full((1, 3, 1, 1), torch.nan)}),
        ConfigError,
        "NaN or infinite",
    ),
    (lambda path: replace(path, {"backbone.mean": torch.ones(1, 3, 1, 1).int()}), ConfigError, r"is of torch\.int32"),
    (lambda path: replace(path, {"backbone.mean": torch.ones(3)}), DataError, r"backbone\.mean is \(3,\), the model"),
    (lambda path: replace(path, {"more": torch.ones(3)}), DataError, "1 tensors are only in one .* 'more'"),
]


@pytest.mark.parametrize(("damage", "error", "says"), DAMAGES)
def test_checkpoint_check_and_make_refuse_damaged_weights(
    damage: Any, error: type[MustError], says: str, weights: Path, tmp_path: Path
) -> None:
    config(weights).check()
    damage(weights)
    with pytest.raises(error, match=rf"{weights}: .*{says}"):
        config(weights).check()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=rf"{weights}: .*{says}"):
        make({"name": "kinds", "teacher": config(weights).model_dump()}, Inputs({}, Runtime(Root.of(tmp_path))), out)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ([], r"model\.json holds \[\], not the settings of a trained network"),
        ("text", r"model\.json holds 'text', not the settings"),
        (None, r"model\.json holds None, not the settings"),
        ({"format": "network-2"}, r"model\.json names no backbone or no heads"),
        ({"format": "network-2", "backbone": "test_resnet", "heads": []}, "names no backbone or no heads"),
    ],
)
def test_checkpoint_label_space_and_backbone_name_refuse_another_model_json(
    about: Any, says: str, weights: Path
) -> None:
    write_json(weights.with_suffix(".json"), about)
    for asked in (config(weights).label_space, config(weights).backbone_name, config(weights).check):
        with pytest.raises(ConfigError, match=says):
            asked()


def test_checkpoint_check_names_a_wrong_setting_of_a_model_json(weights: Path) -> None:
    about, _ = load_model(weights.parent)
    write_json(weights.with_suffix(".json"), {**about, "image_size": 33})
    with pytest.raises(DataError, match=r"model\.json: image_size: "):
        config(weights).check()


@pytest.mark.parametrize("where", ["~no_such_user_here/model.safetensors", "none.safetensors"])
def test_checkpoint_check_names_missing_weights(where: str) -> None:
    with pytest.raises(ConfigError, match=rf"weights '{where}': "):
        config(where).check()
