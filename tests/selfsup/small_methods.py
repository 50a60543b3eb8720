"""Every method with small networks, and random views for it."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

import tasks
from pipeline.models.backbone import Backbone, Classifier
from pipeline.recipe.plugins import modules
from pipeline.recipe.stage import CROSS_ENTROPY
from pipeline.stores.labels import LabelSpace
from selfsup.components.config import MethodConfig
from selfsup.components.method import Method, StageSetting, Views
from tasks.features.model import FeatureNetwork
from tasks.frozen_teacher import FrozenTeacher
from tasks.network import Network, NetworkConfig
from tasks.prediction import Predictor, Preprocessing, network_predictor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
METHODS = sorted(modules("selfsup"))
SMALL: dict[str, dict[str, Any]] = {
    "byol": {"hidden": 32, "dim": 16},
    "swav": {"local_views": 2, "hidden": 32, "dim": 16, "prototypes": 8, "freeze_prototypes": 0.1},
    "deepclusterv2": {"hidden": 32, "dim": 16, "clusters": 4, "clusterings": 2},
    "dino": {"local_views": 2, "hidden": 32, "dim": 16, "outputs": 24},
    "mae": {"width": 32, "depth": 1},
    "distill": {"teacher": "things"},
    "comatch": {"labels": {"images": 4}, "dim": 16},
    "depthcontrast": {"teacher": "depth", "dim": 16, "queue": 16},
    "startup": {"teacher": "kinds", "dim": 16},
}
SETTING = StageSetting(size=32, images=16, batch=8)
LARGE = StageSetting(size=64, images=16, batch=8)
"""Here local views are smaller than global ones."""
STEPS = 10


def config(name: str, **more: Any) -> MethodConfig:
    settings = {"name": "stage", "method": name, "data": ["pool"], "batch": 8, **SMALL.get(name, {}), **more}
    found: MethodConfig = importlib.import_module(f"selfsup.{name}").Config.model_validate(settings)
    return found


def backbone(method: str = "simclr", size: int = SETTING.size) -> Backbone:
    torch.manual_seed(0)
    name = "test_vit" if method == "mae" else "test_resnet"
    return Backbone(name, size, IMAGENET)


def frozen_teacher(size: int = 48) -> FrozenTeacher:
    """Return the features of a small transformer, for images of a side of its own."""
    torch.manual_seed(1)
    network = FeatureNetwork(Backbone("test_vit", size, IMAGENET), "things", 4)
    return FrozenTeacher(Predictor(network, {"things": tasks.model(LabelSpace("features"))}, Preprocessing(size)), True)


def classifier() -> Predictor:
    """Return a classifier of five classes."""
    torch.manual_seed(1)
    network = Classifier("test_resnet", "kinds", 5, 32, IMAGENET)
    return Predictor(network, {"kinds": tasks.model(LabelSpace("classification", tuple("abcde")))}, Preprocessing(32))


def depth_predictor() -> Predictor:
    """Return a small network for depth, of images of 64 x 64 pixels."""
    heads = {"depth": LabelSpace("depth").to_json()}
    return network_predictor(
        Network(NetworkConfig(backbone="test_resnet", image_size=64, width=16, heads=heads, seed=1)).eval()
    )


def with_teacher(stage: MethodConfig, setting: StageSetting) -> StageSetting:
    """Return the setting, with a teacher if the stage learns from one."""
    if not stage.taught_by:
        return setting
    taught = {"classification": classifier, "depth": depth_predictor}
    return setting._replace(
        teacher=FrozenTeacher(taught[stage.taught_task]()) if stage.taught_task else frozen_teacher()
    )


def make(name: str, setting: StageSetting = SETTING, **more: Any) -> Method:
    stage = config(name, **more)
    complete = with_teacher(stage, setting._replace(class_names=("a", "b") if stage.labels else ()))
    torch.manual_seed(0)
    return stage.build_for_stage(backbone(name, setting.size), complete).train()


def views(method: Method, step: int = 0, labelled: int | None = None, index: Tensor | None = None) -> Views:
    """Return random views of eight images, or of those in `index`, and of four images of each of `labelled` classes.

    By default of two for a method that has a loss of its own for them, and of none for others.
    """
    if labelled is None:
        labelled = 2 if method.labels and method.labelled_loss == CROSS_ENTROPY else 0
    generator = torch.Generator().manual_seed(step)
    chosen = torch.arange(8) if index is None else index
    unlabelled = [torch.rand(len(chosen), 3, kind.size, kind.size, generator=generator) for kind in method.view_kinds()]
    classes = torch.arange(labelled).repeat(4) if labelled else None
    shown = torch.rand(4 * labelled, 3, 32, 32, generator=generator) if labelled else None
    keys = [str(number) for number in chosen.tolist()]
    return Views(keys, unlabelled, chosen, shown, classes, step, STEPS, step // 2)


def initialized(name: str, setting: StageSetting = SETTING, **more: Any) -> Method:
    """Make a method that has seen every image once."""
    method = make(name, setting, **more)
    images = [torch.rand(8, 3, kind.size, kind.size) for kind in method.view_kinds()]
    with torch.no_grad():
        method.initialize((torch.arange(start, start + 8), images) for start in (0, 8))
    return method
