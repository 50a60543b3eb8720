"""Linear classifier on frozen features with HPT's linear evaluation schedule (Reed et al., 2021): for a GPU."""

from __future__ import annotations

from evaluation.probe import ProbeData, ProbeResult
from evaluation.schedules import CROP_AND_FLIP
from pipeline.recipe.base import FitConfig
from tasks.classification.label import TaskLabel

VERSION = 2
READS = "vector"
LABEL = TaskLabel
ABOUT = (
    "one linear layer, SGD with momentum 0.9, batch 512, 5,000 steps, learning rate 30, a tenth from steps 1,651 and "
    "3,333 on, no weight decay, random crops and flips to learn from, whole images to test on, the last step's weights"
)
RANDOM = True
SETTINGS = FitConfig(
    optimizer="sgd",
    batch=512,
    steps=5000,
    lr=30.0,
    momentum=0.9,
    weight_decay=0.0,
    warmup=0.0,
    drops=(1651 / 5000, 3333 / 5000),
    clip=None,
)


def fit(data: ProbeData) -> ProbeResult:
    """Train the layer and return it as it is after the last step."""
    import torch

    from evaluation.linear_layer import FrozenLinear
    from ingest.true_labels import CLASSIFICATION
    from pipeline.data.loader import BatchLoader, LoaderConfig
    from pipeline.training.autotune import ComputeConfig
    from pipeline.training.device import find_device
    from pipeline.training.fit import fit as train
    from pipeline.training.objective import TrainingJob
    from pipeline.training.process_group import ProcessGroup
    from tasks.task import stack

    torch.manual_seed(data.seed)
    runtime, size = data.runtime, data.backbone.size
    config = LoaderConfig(size, "stretch", SETTINGS.batch, data.seed, CROP_AND_FLIP, runtime.threads)
    loader = BatchLoader(data.images, {CLASSIFICATION: lambda values, valid: {"probs": stack(values, "probs")}}, config)
    layer, steps = FrozenLinear(data.backbone, data.classes), SETTINGS.total_steps(len(data.images))
    job = TrainingJob("linear_hpt", layer, loader, steps, data.scratch, SETTINGS, data.seed)
    device = find_device(runtime.device)
    with ProcessGroup(device) as group:
        train(job, ComputeConfig(device, "32", False, {}), group, runtime)
    linear = layer.linear.cpu()

    @torch.inference_mode()
    def classify(features: torch.Tensor) -> torch.Tensor:
        return linear(features).softmax(dim=1)

    return ProbeResult(classify, {})
