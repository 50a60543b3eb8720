"""Checkpoints: tensors, models and states come back whole, and equal content makes equal bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import DataError
from pipeline.models.checkpoint import load_model, load_state, read_tensors, save_model, save_state, write_tensors

TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
}


def test_read_tensors_returns_what_write_tensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, {"step": 3, "names": ["a"]})
    about, tensors = read_tensors(path)
    assert about == {"step": 3, "names": ["a"]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert torch.equal(load_file(path)["weight"], TENSORS["weight"])  # plain safetensors
    assert [found.name for found in tmp_path.iterdir()] == ["t.safetensors"]


def test_write_tensors_writes_views_and_parameters(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "t", {"turned": base.T, "part": base[1:, 1:], "learned": torch.nn.Parameter(base + 1)})
    tensors = read_tensors(tmp_path / "t")[1]
    assert torch.equal(tensors["turned"], base.T)
    assert torch.equal(tensors["part"], base[1:, 1:])
    assert torch.equal(tensors["learned"], base + 1)


def test_write_tensors_writes_a_tensor_with_two_names_twice(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    write_tensors(tmp_path / "t", {"encoder": shared, "decoder": shared, "head": shared[:2]})
    tensors = read_tensors(tmp_path / "t")[1]
    assert torch.equal(tensors["encoder"], tensors["decoder"])
    assert torch.equal(tensors["head"], shared[:2])


def test_write_tensors_makes_equal_bytes_of_equal_tensors(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tensors(tmp_path / name, {key: tensor.clone() for key, tensor in TENSORS.items()}, {"x": 1, "y": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_read_tensors_names_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"t\.safetensors: not readable as safetensors"):
        read_tensors(path)
    path.unlink()
    with pytest.raises(DataError, match=r"t\.safetensors"):
        read_tensors(path)


def test_load_model_returns_what_save_model_saved(tmp_path: Path) -> None:
    save_model(tmp_path, TENSORS, {"format": "network", "heads": {}})
    assert json.loads((tmp_path / "model.json").read_text()) == {"format": "network", "heads": {}}
    about, weights = load_model(tmp_path)
    assert about["format"] == "network"
    assert torch.equal(weights["weight"], TENSORS["weight"])
    (tmp_path / "model.json").unlink()
    with pytest.raises(DataError, match=r"model\.json"):
        load_model(tmp_path)


def test_load_state_resumes_an_optimizer_as_if_never_stopped(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        model(torch.full((4, 3), float(number))).square().mean().backward()
        optimizer.step()

    model, optimizer = fresh()
    for number in range(3):
        step(model, optimizer, number)
    save_state(tmp_path / "s", {"step": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": {}})
    state = load_state(tmp_path / "s")
    again, resumed = fresh()
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    assert (state["step"], state["ema"]) == (3, {})
    for number in range(3, 6):
        step(model, optimizer, number)
        step(again, resumed, number)
    assert torch.equal(model.weight, again.weight)


def test_load_state_returns_any_nested_state(tmp_path: Path) -> None:
    state = {"a": [1, 2.5, None, True, "x"], "b": {3: torch.ones(2), "c": {}}, "d": [], "e": (1, torch.zeros(1))}
    save_state(tmp_path / "s", state)
    back = load_state(tmp_path / "s")
    assert back["a"] == [1, 2.5, None, True, "x"]
    assert list(back["b"]) == [3, "c"]
    assert torch.equal(back["b"][3], torch.ones(2))
    assert back["d"] == []
    assert back["e"][0] == 1


def test_write_tensors_leaves_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(2)})
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
