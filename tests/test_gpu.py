"""On a CUDA device: the whole way through, and the same answers as on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import must
from pipeline.labels import LabelSpace
from pipeline.machine import Choice
from tasks.learning import network_predictor
from tasks.network import Network, NetworkConfig
from tests.flows.tiny import RECIPE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
SPACES = {
    "kinds": LabelSpace("classification", ("a", "b", "c")),
    "masks": LabelSpace("segmentation", ("road", "sky")),
    "depth": LabelSpace("depth"),
    "normals": LabelSpace("normals"),
}


def test_a_run_goes_its_whole_way_on_the_gpu_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    overrides = ["runtime.device=cuda", "runtime.precision=auto"]
    outcome = must.run(recipe, tmp_path / "root", overrides)
    chosen = outcome.artifacts["student"].counts["choice"]
    assert chosen["device"] == "cuda"
    assert set(chosen["measured_ms"]) == {"32", "32 channels_last", "bf16", "bf16 channels_last"}
    assert {record["model"] for record in outcome.metrics} == {"student", "teacher:masks", "baseline"}
    assert must.run(recipe, tmp_path / "root", overrides).ran == 0


def test_the_gpu_says_what_the_cpu_says() -> None:
    heads = {name: space.to_json() for name, space in SPACES.items()}
    network = Network(NetworkConfig(backbone="test_resnet", image_size=64, width=16, heads=heads))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8))
    predictor = network_predictor(network)
    answers = []
    for device in ("cpu", "cuda"):
        predictor.choice = Choice(device, "32", True, {})
        predictor.choice.place(predictor.network)
        answers.append(predictor.predict(images))
    for name in ("kinds", "depth", "normals"):
        for key, expected in answers[0][name].items():
            np.testing.assert_allclose(answers[1][name][key], expected, rtol=2e-2, atol=2e-3)
