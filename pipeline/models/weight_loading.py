"""Pretrained weights for timm models: read from a file, matched to the model by name and shape, or refused."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.data.bands import RGB
from pipeline.errors import ConfigError, DataError, first_line
from pipeline.models.checkpoint import read_tensors
from pipeline.models.readout import readout_info
from pipeline.models.timm_models import check_model_name, create_timm_classifier, create_timm_model
from pipeline.models.weights import find_weights
from pipeline.recipe.stage import PUBLISHED
from pipeline.storage.shortage import raise_shortage

WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
"""Keys of a checkpoint that training code keeps a network's tensors under; averaged weights come first."""


def check_backbone(name: str, image_size: int, weights: str | None) -> None:
    """Raise ConfigError if there is no such backbone with a readout, or its weights are missing or another's."""
    readout_info(name, image_size)
    if weights and weights != PUBLISHED:
        with torch.device("meta"):  # no memory, no arithmetic
            model = create_timm_model(name, image_size)
        read_matching_weights(model, name, weights)


def check_classifier(name: str, classes: int, weights: str, image_size: int | None = None) -> None:
    """Raise ConfigError if there is no such timm classifier, its weights are missing or another model's, or it can't
    take images of `image_size` x `image_size` pixels; None stands for its own size.
    """
    check_model_name(name)
    with torch.device("meta"):
        try:
            model = create_timm_classifier(name, classes, image_size).eval()
            if image_size:
                model(torch.empty(1, 3, image_size, image_size))
        except Exception as error:  # models raise errors of any type for a size that they can't take
            raise ConfigError(
                f"image_size: {name!r} can't take images of {image_size} x {image_size} pixels "
                f"({first_line(error)}): leave it out for the model's own."
            ) from error
    if weights != PUBLISHED:
        read_matching_weights(model, name, weights)


def load_weights(model: nn.Module, name: str, weights: str, num_classes: int = 0) -> None:
    """Load weights into the timm model called `name`: a file's, or with "timm" those that timm publishes for it.

    Position embeddings are resampled to the model's own grid. Raises ConfigError if the weights are another model's.
    """
    if weights == PUBLISHED:
        published = timm.create_model(name, pretrained=True, num_classes=num_classes).state_dict()
        model.load_state_dict(adapt_weights(model, published, f"{weights}, for a {name!r}"))
    else:
        model.load_state_dict(read_matching_weights(model, name, weights))


def read_matching_weights(model: nn.Module, name: str, weights: str) -> dict[str, Tensor]:
    """Return the weights of a file (see `find_weights`) as a state dict of the model called `name`.

    On a model on the meta device, they are only compared and checked. Raises ConfigError if they are another model's,
    or none that `match_weights` takes.
    """
    tensors = read_weights(find_weights(weights))
    try:
        return adapt_weights(model, tensors, f"{weights}, for a {name!r}")
    except DataError as error:
        raise ConfigError(f"{error} Name weights of a {name!r}, or the model that these are of.") from error


def adapt_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Match the weights as `match_weights` does, with position embeddings resampled to the model's own grid."""
    weights = _adapt_first_convolutions(model, weights)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None and set(model.state_dict()) <= set(weights):
        try:
            weights = adapt(weights, model)
        except Exception as error:  # timm's filters assume that the weights are the model's
            raise DataError(f"{source}: not weights of this model, timm can't use them ({error}).") from error
    return match_weights(model, weights, source)


def _adapt_first_convolutions(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a model for RGB as those of one for the model's channels, as timm makes them of its own."""
    named = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    own, adapted = model.state_dict(), dict(weights)
    for name in [named] if isinstance(named, str) else named:
        key = f"{name}.weight"
        channels = own[key].shape[1] if key in own and own[key].ndim == 4 else RGB
        if channels != RGB and key in weights and weights[key].shape[1:2] == (RGB,):
            adapted[key] = timm.models.adapt_input_conv(channels, weights[key])
    return adapted


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or of a PyTorch checkpoint; nothing in the file is executed.

    A checkpoint's are those under the first of WRAPPERS that it has, or its own.
    Of tensors that are not used, only the shape is read, unless the checkpoint is of PyTorch's old format.
    """
    if not path.exists():
        raise DataError(f"{path}: no such weights file.")
    if path.suffix == ".safetensors":
        return read_tensors(path)[1]
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or harmful file makes torch raise nearly anything
        raise_shortage(error, path)
        raise DataError(f"{path}: not readable as weights alone ({_why_unreadable(error)}).") from error
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise DataError(f"{path}: holds a {type(loaded).__name__}; tensors by name, as in a state dict, would work.")
    named = {name: tensor for name, tensor in loaded.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    return {name.removeprefix("module."): tensor for name, tensor in named.items()}


def _why_unreadable(error: Exception) -> str:
    """Return why torch could not load a file; on one that is not its own it stumbles over some byte, and says which.

    torch's own advice, to let the file run code, is left out.
    """
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it would call {code[1]}, which is no tensor; save the state dict alone, best as .safetensors"
    if str(error).startswith("Weights only"):
        return "it is no file of tensors that torch.save wrote"
    return f"it is not a whole file that torch.save wrote: {type(error).__name__} {error}".splitlines()[0].rstrip()


def match_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the weights under the model's names: by name, or in order if the file names its tensors otherwise.

    In order, shapes have to agree one by one from the first tensor on. A classifier in the file that the model does not
    have is left out. Raises DataError with the first tensor that does not fit, or that the model lacks in one of its
    blocks: a deeper model's weights are not cut short. Raises ConfigError if they fit, but are quantized, NaN or
    infinite.
    """
    own = model.state_dict()
    matched = {name: weights[theirs] for name, theirs in _pair_names(own, weights, source).items()}
    _check_kinds(own, matched, source)
    check_finite_weights(matched, source)
    return {**own, **matched}


def _pair_names(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Return the file's name for each of the model's, whose shapes agree. Raises DataError as `match_weights` does."""
    pairs = {name: name for name in own} if set(own) <= set(weights) else _pair_in_order(own, weights, source)
    for name, theirs in pairs.items():
        if weights[theirs].shape != own[name].shape:
            shapes = f"{tuple(weights[theirs].shape)}, the model needs {tuple(own[name].shape)}"
            raise DataError(f"{source}: {name} is {shapes}.")
    used, blocks = set(pairs.values()), {_without_numbers(theirs) for theirs in pairs.values()}
    missing = [name for name in weights if name not in used and _without_numbers(name) in blocks]
    if missing:
        raise DataError(
            f"{source}: not weights of this model: its blocks lack {len(missing)} tensors, first {missing[0]!r}."
        )
    return pairs


def _check_kinds(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Raise ConfigError if integers stand for a floating-point tensor of the model, or the reverse, or one has no data.

    Counters are exempt: files that were converted as a whole to half precision have them as floats.
    """
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "a meta tensor, without numbers" if tensor.is_meta else f"of the layout {tensor.layout}"
            raise ConfigError(f"{source}: {name} is {kind}: dense tensors, saved with their numbers, would work.")
        if tensor.is_floating_point() != own[name].is_floating_point() and not _is_counter(name, own[name]):
            raise ConfigError(
                f"{source}: {name} is of {tensor.dtype}, and the model's of {own[name].dtype}: weights that are not "
                "quantized would work, in any floating-point precision."
            )


def non_finite_weights(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinite numbers."""
    return [name for name, tensor in weights if not bool(tensor.float().isfinite().all())]  # float8 has no isfinite


def check_finite_weights(weights: Mapping[str, Tensor], source: str) -> None:
    """Raise ConfigError, with the first such tensor, if weights are NaN or infinite."""
    bad = non_finite_weights(weights.items())
    if bad:
        raise ConfigError(
            f"{source}: {len(bad)} of {len(weights)} tensors hold NaN or infinite numbers, first {bad[0]!r}: their "
            "training diverged, or the file is damaged. Finite weights would work."
        )


def check_state(model: nn.Module, path: Path) -> None:
    """Raise DataError or ConfigError, naming the file, unless it holds the model's tensors and no others, finite.

    Example:
        check_state(Network(config), Path("model.safetensors"))
    """
    own, weights = model.state_dict(), read_tensors(path)[1]
    unmatched = sorted(own.keys() ^ weights.keys())
    if unmatched:
        raise DataError(
            f"{path}: not weights of this model: {len(unmatched)} tensors are only in one of the two, first "
            f"{unmatched[0]!r}."
        )
    match_weights(model, weights, str(path))


def _pair_in_order(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Return the file's name for each of the model's, by their order. Raises DataError if the file has too few."""
    names, theirs = ([name for name in state if not _is_counter(name, state[name])] for state in (own, weights))
    if len(theirs) < len(names):
        missing = sorted(set(own) - set(weights))
        raise DataError(f"{source}: not weights of this model: {len(missing)} tensors missing, first {missing[0]!r}.")
    return dict(zip(names, theirs, strict=False))


def _without_numbers(name: str) -> str:
    """Return a tensor's name without the numbers of its blocks: the same in all blocks that are built alike."""
    return re.sub(r"\.\d+(?=\.)", "", name)


def _is_counter(name: str, tensor: Tensor) -> bool:
    """Return True for a batch norm's count of batches, which some files hold, also as floats, and others don't."""
    return tensor.ndim == 0 and (name.endswith("num_batches_tracked") or not tensor.is_floating_point())
