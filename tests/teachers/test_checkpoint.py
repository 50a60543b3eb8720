"""Teachers from checkpoints: damaged ones are refused before a run's first step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError, DataError
from pipeline.models.weights import NETWORK
from pipeline.steps.artifact import write_json
from pipeline.stores.labels import LabelSpace
from teachers.checkpoint import Config


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a network with one head."""
    space = LabelSpace("classification", ("a", "b"))
    write_json(tmp_path / "model.json", {"format": NETWORK, "heads": {"kinds": space.to_json()}})
    save_file({"weight": torch.ones(100)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def check(weights: Path) -> None:
    Config(kind="checkpoint", task="classification", weights=str(weights)).check()


def test_check_takes_a_whole_checkpoint(weights: Path) -> None:
    check(weights)


def test_check_names_truncated_weights(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{weights}: not readable as safetensors"):
        check(weights)


def test_check_names_weights_that_are_not_finite(weights: Path) -> None:
    save_file({"weight": torch.ones(100), "bias": torch.tensor([0.0, math.nan])}, weights)
    with pytest.raises(DataError, match=f"{weights}: not finite: 1 of 2 tensors, first 'bias'"):
        check(weights)


@pytest.mark.parametrize("about", [[], "network", {}])
def test_check_names_the_format_of_what_is_no_network(about: Any, weights: Path) -> None:
    write_json(weights.with_suffix(".json"), about)
    with pytest.raises(ConfigError, match=r"is of format .*; a network of this version, of format"):
        check(weights)
