"""On a CUDA device: the whole way through, and the same answers as on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import must
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from pipeline.training.autotune import ComputeConfig
from tasks.network import Network, NetworkConfig
from tasks.prediction import network_predictor
from tests.flows.tiny import RECIPE
from tests.pipeline.training.tiny_jobs import Batch, Linears, log, train_with_result
from tests.processes import Launcher

if TYPE_CHECKING:
    from tests.conftest import World

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


class Large(Linears):
    """Needs a third of the device's memory for each image."""

    def mean(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        whole = torch.cuda.get_device_properties(0).total_memory
        taken = torch.empty(len(batch.keys) * (whole // 3), dtype=torch.uint8, device="cuda")
        loss, parts = super().mean(batch)
        del taken
        return loss, parts


def test_a_device_that_is_full_takes_the_batch_in_pieces(tmp_path: Path) -> None:
    compute = ComputeConfig("cuda", "32", False, {})
    fitted = train_with_result(tmp_path / "large", Large(), compute=compute, batch=8)
    assert [limit.step for limit in fitted.limits] == [1]
    train_with_result(tmp_path / "small", Linears(), compute=compute, batch=8)
    for one, other in zip(log(tmp_path / "large"), log(tmp_path / "small"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two processes need two CUDA devices")
def test_two_processes_train_the_student_on_two_devices(world: World, launcher: Launcher, tmp_path: Path) -> None:
    step, artifacts = world.steps["student"], dict(world.inputs("student").artifacts)
    counts, nothing = launcher.call(2, run_on_cuda, step, artifacts, world.runtime.root, tmp_path)
    assert (counts["processes"], counts["choice"]["device"], nothing) == (2, "cuda", {})
    assert all(bool(tensor.isfinite().all()) for tensor in Network.load(tmp_path).state_dict().values())


def run_on_cuda(step: Step, artifacts: Mapping[str, Artifact], root: Path, out: Path) -> Mapping[str, Any]:
    """A step as a process that torchrun started calls it."""
    return step.function()(step.config, Inputs(artifacts, Runtime(Root.of(root), "cuda", "32", 1)), out)


def test_the_gpu_says_what_the_cpu_says() -> None:
    heads = {name: space.to_json() for name, space in SPACES.items()}
    network = Network(NetworkConfig(backbone="test_resnet", image_size=64, width=16, heads=heads))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8))
    predictor = network_predictor(network)
    answers = []
    for device in ("cpu", "cuda"):
        predictor.compute = ComputeConfig(device, "32", True, {})
        predictor.compute.place(predictor.network)
        answers.append(predictor.predict(images, [(64, 64)] * 3))
    for name in ("kinds", "depth", "normals"):
        for key, expected in answers[0][name].items():
            np.testing.assert_allclose(answers[1][name][key], expected, rtol=2e-2, atol=2e-3)
