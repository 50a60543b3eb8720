"""`Network`: a backbone, a feature pyramid and a head per teacher.

A supervised teacher has one head, the student one per teacher. As in MuST: classification from the backbone's vector,
globally pooled C5, detection from P3 to P7, and every dense task from the sum of all pyramid levels at stride 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import tasks
from pipeline.data.bands import MOST_CHANNELS, RGB
from pipeline.data.statistics import Statistics
from pipeline.errors import ConfigError, DataError
from pipeline.models.backbone import Backbone, register_statistics
from pipeline.models.checkpoint import load_model, read_tensors, save_model
from pipeline.models.readout import Readout, untrained_parameters
from pipeline.models.timm_models import statistics
from pipeline.models.weight_loading import load_weights
from pipeline.models.weights import NETWORK, network_settings_file
from pipeline.recipe.augment import Resize
from pipeline.recipe.base import GrowingModel
from pipeline.recipe.teacher import ImageSize, TrainingConfig, Width
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rasters import DENSE_STRIDE
from tasks.task import PYRAMID_STRIDES, FeatureInfo, Features, Task


class NetworkConfig(GrowingModel):
    """Everything that `Network` is built from; saved beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    later_keys = frozenset({"channels"})

    backbone: str
    image_size: ImageSize
    resize: Resize = "stretch"
    """How images become square."""
    width: Width = 128
    """Channels of the pyramid."""
    proposals: int | None = Field(default=None, ge=8)
    """Region proposals per image; None for as many as suit the image size."""
    heads: dict[str, dict[str, Any]]
    """Label spaces by head, as JSON."""
    seed: int = Field(default=0, ge=0)
    channels: int = Field(default=RGB, ge=1, le=MOST_CHANNELS)
    """Of the images."""

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], origin: str) -> NetworkConfig:
        """Return what a `model.json` holds. Raises DataError, beginning with `origin`, if a value of it is wrong."""
        try:
            return cls(**{name: value for name, value in settings.items() if name != "format"})
        except ValidationError as error:
            wrong = error.errors()[0]
            raise DataError(f"{origin}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}.") from error

    def architecture(self) -> dict[str, Any]:
        """Return what speed depends on, as JSON: all but the seed and how images become square."""
        return self.model_dump(exclude={"seed", "resize"})

    def spaces(self) -> dict[str, LabelSpace]:
        return {name: LabelSpace.from_json(space) for name, space in self.heads.items()}


class CoarseLevels(LastLevelP6P7):  # type: ignore[misc]  # torchvision is untyped
    """P6 and P7, in float32 whatever the precision.

    Their maps may be single cells. On the CPU, the weight gradient of a strided bfloat16 convolution on a 1x1 map is
    uninitialized memory (torch 2.15).
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        with torch.autocast(p[0].device.type, enabled=False):
            levels, extra = super().forward([p[-1].float()], [c[-1].float()], names)
        return [*p, *levels[1:]], extra


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., ECCV 2022): P3 to P7 from the one map of a plain transformer.

    The map, of any stride, is resized to strides 8, 16 and 32 by a 2x2 deconvolution or pooling, and projected.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = nn.ModuleList(nn.Conv2d(inputs, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.finer = nn.ConvTranspose2d(inputs, inputs, 2, stride=2)
        self.extra = CoarseLevels(width, width)

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (feature_map,) = maps.values()
        size = [side * self.stride for side in feature_map.shape[-2:]]
        levels = []
        for project, smooth, stride in zip(self.project, self.smooth, PYRAMID_STRIDES, strict=False):
            source = self.finer(feature_map) if stride < self.stride else feature_map
            height, width = (max(side // stride, 1) for side in size)
            if source.shape[-2:] != (height, width):
                source = F.adaptive_avg_pool2d(source, (height, width))
            levels.append(smooth(project(source)))
        all_levels, _ = self.extra(levels, levels, [])
        return {f"p{number}": level for number, level in enumerate(all_levels, start=3)}


class Network(nn.Module):
    """Map uint8 images to a raw output per head.

    Example:
        network = Network(NetworkConfig(backbone="resnet50", image_size=512, heads={"depth": space.to_json()}))
        network(images)["depth"]  # uint8 (B, 3, 512, 512) -> float32 (B, 1, 128, 128)
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        seed_part(config.seed, "backbone")
        self.backbone = Backbone(config.backbone, config.image_size, statistics(config.backbone, config.channels))
        self.tasks = {name: tasks.model(space) for name, space in config.spaces().items()}
        self.pyramid = self._build_pyramid() if any(task.reads != "vector" for task in self.tasks.values()) else None
        info = FeatureInfo(self.backbone.width, config.width, config.image_size, config.proposals)
        self.heads = nn.ModuleDict()
        for name, task in self.tasks.items():
            seed_part(config.seed, name)
            self.heads[name] = task.head(info)
        seed_part(config.seed, "training")

    def _build_pyramid(self) -> nn.Module:
        seed_part(self.config.seed, "pyramid")
        return build_pyramid(self.backbone.strides, self.backbone.channels, self.config.width)

    def features(self, images: Tensor) -> Features:
        """Return the features of images (B, C, S, S)."""
        if self.pyramid is None:
            return Features(self.backbone(images))
        vector, maps = self.backbone.readout(images)
        fused = any(task.reads == "fused" for task in self.tasks.values())
        return Features(vector, *pyramid_levels(self.pyramid, maps, self.config.image_size if fused else None))

    def forward(self, images: Tensor, heads: Sequence[str] | None = None) -> dict[str, Any]:
        """Return raw outputs by head, of all heads or those named, for images (B, C, S, S)."""
        return self._outputs(self.features(images), self.tasks if heads is None else heads)

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        """Return raw outputs by head, and the backbone's vectors (B, D)."""
        features = self.features(images)
        return self._outputs(features, self.tasks), features.vector

    def vector(self, images: Tensor) -> Tensor:
        """Return the backbone's vectors (B, D) of images (B, C, S, S)."""
        vector: Tensor = self.backbone(images)
        return vector

    def readout(self, images: Tensor) -> Readout:
        """Return the backbone's vectors and maps of images (B, C, S, S)."""
        return self.backbone.readout(images)

    def _outputs(self, features: Features, heads: Iterable[str]) -> dict[str, Any]:
        return {name: self.heads[name](features) for name in heads}

    def losses(self, images: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the loss of every head that has a target in the batch, a scalar each.

        `targets` by head: `rows`, int64 (N,), positions in the batch of the images that have a label for the head, and
        `target`, what the task's `collate` made of these labels.
        """
        features = self.features(images)
        losses = {}
        for name, entry in targets.items():
            rows = entry["rows"]
            selected = features if len(rows) == len(images) else features.select(rows)
            losses[name] = self.tasks[name].loss(self.heads[name](selected), entry["target"])
        return losses

    def untrained_parameters(self) -> list[str]:
        """Return timm's names of the backbone's parameters that no head gives a gradient to; all of a frozen one."""
        if self.backbone.frozen:
            return [name for name, _ in self.backbone.model.named_parameters()]
        read = {task.reads for task in self.tasks.values()}
        return untrained_parameters(
            self.backbone.name, self.backbone.size, vector="vector" in read, maps=bool(read - {"vector"})
        )

    def save(self, folder: Path) -> None:
        save_model(folder, self.state_dict(), {"format": NETWORK, **self.config.model_dump()})

    @classmethod
    def load(cls, folder: Path) -> Network:
        """Load the network saved in `folder`, in eval mode. Raises DataError if an older version saved it."""
        config, weights = load_model(folder)
        if (saved := config["format"]) != NETWORK:
            raise DataError(f"{folder}: a network of format {saved!r}; {NETWORK!r} can be read: train it again.")
        return cls._restore(NetworkConfig.of_settings(config, str(folder)), weights)

    @classmethod
    def load_file(cls, file: Path, config: Mapping[str, Any]) -> Network:
        """Load the network whose weights are in `file`, in eval mode, given its `model.json`."""
        origin = str(network_settings_file(file))
        return cls._restore(NetworkConfig.of_settings(config, origin), read_tensors(file)[1])

    @classmethod
    def _restore(cls, config: NetworkConfig, weights: Mapping[str, Tensor]) -> Network:
        network = cls(config)
        network.load_state_dict(weights)
        return network.eval()


def build_pyramid(strides: Sequence[int], channels: Sequence[int], width: int) -> nn.Module:
    """Build the pyramid P3 to P7, of `width` channels, on maps of these strides and channels: several, or one."""
    if len(channels) == 1:
        return SimplePyramid(channels[0], width, strides[0])
    return FeaturePyramidNetwork(list(channels), width, CoarseLevels(width, width))


def pyramid_levels(
    pyramid: nn.Module, maps: Sequence[Tensor], image_size: int | None
) -> tuple[list[Tensor], Tensor | None]:
    """Return P3 to P7 and their fused map, given a backbone's maps of images of this side; None to leave that out."""
    levels = list(pyramid({f"map{number}": level for number, level in enumerate(maps)}).values())
    return levels, None if image_size is None else fuse(levels, image_size // DENSE_STRIDE)


class PyramidHead(nn.Module):
    """A pyramid and the head of a task on the maps of a backbone, which is elsewhere: maps -> the task's raw output."""

    def __init__(self, task: Task, strides: Sequence[int], channels: Sequence[int], info: FeatureInfo) -> None:
        super().__init__()
        self.size = info.image_size if task.reads == "fused" else None
        self.pyramid = build_pyramid(strides, channels, info.pyramid_channels)
        self.head = task.head(info)

    def forward(self, maps: list[Tensor]) -> Any:
        """Return the raw output for maps (B, C, h, w), finest first."""
        return self.head(Features(None, *pyramid_levels(self.pyramid, maps, self.size)))


def check_head_name(name: str) -> None:
    """Raise ConfigError if a head can't have this name: heads are entries of a `ModuleDict`, which reserves some."""
    if hasattr(nn.ModuleDict, name):
        raise ConfigError(f"teachers.{name}: torch needs the name {name!r} for itself; call the teacher another.")


def seed_part(seed: int, name: str) -> None:
    """Seed torch for the part `name` of a network, so that its initial weights don't depend on the other parts."""
    mixed = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))


def fuse(levels: Sequence[Tensor], side: int) -> Tensor:
    """Resize pyramid levels (B, W, ., .) bilinearly to (B, W, side, side) and sum them: MuST's map for dense tasks."""
    resized = [F.interpolate(level, size=(side, side), mode="bilinear") for level in levels]
    return torch.stack(resized).sum(dim=0)


def build_network(
    config: TrainingConfig, spaces: Mapping[str, LabelSpace], seed: int, own: Statistics | None = None
) -> Network:
    """Build a network with a new head for each of `spaces`; load the backbone's `config.weights`, if any.

    `own`: statistics of images of other channels than RGB, see `pipeline.data.statistics`.
    """
    shared = config.model_dump(include={"backbone", "image_size", "resize", "width", "proposals"})
    heads = {name: space.to_json() for name, space in spaces.items()}
    network = Network(NetworkConfig(**shared, heads=heads, seed=seed, channels=len(own[0]) if own else RGB))
    if own:
        register_statistics(network.backbone, own)
    for task in network.tasks.values():
        task.label_smoothing = config.label_smoothing
    if config.weights:
        load_weights(network.backbone.model, config.backbone, config.weights)
    return network
