"""The one readout of a timm model: what the features of an image are, as one vector and as maps.

The vector is what `timm.create_model(name, num_classes=0)(images)` returns. The last map is what the same layers make
of each cell alone, as if the whole image were this cell: what learns from maps trains what gives the vector. Finer maps
are those of `forward_intermediates`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.data.bands import RGB
from pipeline.errors import ConfigError, first_line
from pipeline.models.gradient_checkpointing import checkpoint_blocks
from pipeline.models.timm_models import create_timm_model
from pipeline.storage.shortage import shortage_of

STRIDES = (8, 16, 32)
EXAMPLES = "resnet50, efficientnet_b0, convnext_tiny, swin_tiny_patch4_window7_224 or vit_small_patch16_224"
"""Models whose readout is defined, for messages."""


class Readout(NamedTuple):
    """The features of B images."""

    vector: Tensor
    """(B, D), what the model returns for the images."""
    maps: list[Tensor]
    """The maps (B, C, S / stride, S / stride), finest first."""


class ReadoutBackbone(Protocol):
    """A backbone that is read as a vector and maps, of any library: an `nn.Module`, as `Backbone` is one of timm's."""

    width: int
    """D, the length of its vectors."""
    channels: tuple[int, ...]
    """Channels of each of its maps."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the vectors (B, D) of uint8 images (B, 3, S, S)."""

    def readout(self, images: Tensor) -> Readout:
        """Return the vectors and maps of uint8 images (B, 3, S, S)."""


class ReadoutInfo(NamedTuple):
    """The vector and the maps that a model gives, for square images of one side."""

    width: int
    """D, the length of the vector."""
    strides: tuple[int, ...]
    """Pixels per cell of each map: 8, 16 and 32, or the one of the last map where a model has no others."""
    channels: tuple[int, ...]
    """Channels of each map."""
    indices: tuple[int, ...]
    """The feature maps of timm that are read: those of the strides, the last one in any case."""


def read(model: Any, images: Tensor, indices: Sequence[int]) -> Readout:
    """Return the vectors and the maps of normalised images (B, C, S, S). The last of `indices` is the model's last map.

    Batch norms of the head take their statistics from the vectors; cells are normalised by the running ones.
    """
    final, maps = model.forward_intermediates(images, indices=list(indices))
    vector = model.forward_head(final)
    return Readout(vector, [*maps[:-1], _read_cells(model, final, tuple(maps[-1].shape[-2:]))])


def _read_cells(model: Any, final: Any, grid: tuple[int, int]) -> Tensor:
    """Return the last map (B, C, h, w): each cell of the last features through the layers that give the vector.

    `final`: (B, C, h, w), (B, h, w, C) or tokens (B, N, C). The pooling of one cell is the cell itself. Tokens are not
    pooled alone: class tokens and attention have no meaning for one. They get the norm that follows the pooling, if
    any. Raises TypeError if there are several last features, ValueError if they are no map.
    """
    height, width = grid
    if not isinstance(final, Tensor):
        raise TypeError(f"it ends in {len(final)} maps")
    if final.ndim == 3:
        if final.shape[1] < height * width:
            raise ValueError(f"its last features are {final.shape[1]} tokens for {height} x {width} cells")
        return norm_tokens(model, final[:, -height * width :]).transpose(1, 2).unflatten(2, grid)
    is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    cells = (final if is_channels_last else final.permute(0, 2, 3, 1)).flatten(0, 2)
    with frozen_statistics(model):
        vectors: Tensor = model.forward_head(cells[:, None, None] if is_channels_last else cells[:, :, None, None])
    return vectors.view(-1, height, width, vectors.shape[1]).permute(0, 3, 1, 2)


def norm_tokens(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return tokens (B, N, D) through the norm that a transformer has after its pooling, if it has one."""
    normed: Tensor = getattr(model, "fc_norm", nn.Identity())(tokens)
    return normed


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms use their running statistics, and not update them."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


@functools.cache
def readout_info(name: str, image_size: int, channels: int = RGB) -> ReadoutInfo:
    """Return what the readout of a timm model gives for images of so many channels, found out without arithmetic.

    Raises ConfigError if it can't be defined: the model gives no maps, or several last ones, or can't take the size.
    """
    with torch.device("meta"):
        model: Any = create_timm_model(name, image_size, channels=channels).eval()
        images = torch.empty(2, channels, image_size, image_size)
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"Backbone {name!r} gives no intermediate feature maps; {EXAMPLES} do.")
    try:
        indices = _indices(model)
        vector, maps = read(model, images, indices)
    except Exception as error:  # models raise errors of any type for a size that they can't take
        raise ConfigError(
            f"Backbone {name!r} has no readout for images of {image_size} x {image_size} pixels "
            f"({first_line(error)}): {EXAMPLES} has one, or, if the reason is the size, it may have one at another "
            "image_size."
        ) from error
    strides = STRIDES if len(maps) == len(STRIDES) else (image_size // maps[-1].shape[-1],)
    return ReadoutInfo(vector.shape[1], strides, tuple(level.shape[1] for level in maps), tuple(indices))


@functools.cache
def try_training_step(name: str, image_size: int, count: int, device: str, checkpointed: bool = False) -> None:
    """Raise ConfigError if a timm model can't be trained: a forward and a backward pass on `count` images fails.

    With `checkpointed`, it is trained with gradient checkpointing.
    """
    indices = readout_info(name, image_size).indices
    model: Any = create_timm_model(name, image_size).to(device).train()
    if checkpointed:
        checkpoint_blocks(model, name)
    try:
        vector, maps = read(model, torch.rand(count, 3, image_size, image_size, device=device), indices)
        torch.stack([tensor.sum() for tensor in (vector, *maps)]).sum().backward()
    except Exception as error:  # models raise errors of any type
        if shortage_of(error):
            raise
        way_out = "Set a larger batch, or another" if count == 1 else "Choose another"
        raise ConfigError(
            f"Backbone {name!r} can't be trained with {count} image{'s' * (count > 1)} of {image_size} x {image_size} "
            f"pixels in a step ({first_line(error)}). {way_out} backbone, such as {EXAMPLES}."
        ) from error


def _indices(model: Any) -> list[int]:
    """Return the numbers of timm's maps to read: the last ones of stride 8, 16 and 32, or the very last alone."""
    stages = getattr(model.feature_info, "info", model.feature_info)
    last = {stage["reduction"]: index for index, stage in enumerate(stages)}
    indices = [last[stride] for stride in STRIDES if stride in last]
    return indices if len(indices) == len(STRIDES) and indices[-1] == len(stages) - 1 else [len(stages) - 1]


def untrained_parameters(name: str, image_size: int, vector: bool, maps: bool) -> list[str]:
    """Return the names of a timm model's parameters that get no gradient from what reads its vector, its maps, or both.

    An attention pooling, for example, is between the tokens and the vector: what reads maps alone does not train it.
    """
    missed = [names for names, is_read in zip(_untrained(name, image_size), (vector, maps), strict=True) if is_read]
    return [parameter for parameter in missed[0] if all(parameter in names for names in missed)]


@functools.cache
def _untrained(name: str, image_size: int) -> tuple[dict[str, None], dict[str, None]]:
    """Return the names of the parameters that get no gradient from the vector, and from the maps, in their order."""
    with torch.device("meta"):
        model = create_timm_model(name, image_size).train()
        images = torch.empty(2, 3, image_size, image_size)
    found = read(model, images, readout_info(name, image_size).indices)

    def missed(tensors: list[Tensor]) -> dict[str, None]:
        model.zero_grad()
        torch.stack([tensor.sum() for tensor in tensors]).sum().backward(retain_graph=True)
        return {parameter: None for parameter, tensor in model.named_parameters() if tensor.grad is None}

    return missed([found.vector]), missed(found.maps)
