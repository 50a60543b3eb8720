"""Frozen teacher: the features that a teacher's model makes of images on the device, without gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.readout import Readout
from pipeline.stores.labels import LabelSpace
from tasks.prediction import Predictor, VectorNetwork


@runtime_checkable
class ReadoutNetwork(Protocol):
    """A network that tells maps of its images as well as vectors."""

    def readout(self, images: Tensor) -> Readout:
        """Return the vectors and maps of uint8 images (B, 3, S, S)."""


class TeacherFeatures(NamedTuple):
    """The features that a teacher's model makes of B images."""

    vector: Tensor
    """(B, D) float32."""
    map: Tensor | None
    """(B, C, h, w) float32, its last map; None if it was not asked for."""


class FrozenTeacher(nn.Module):
    """A teacher's model: images (B, 3, S, S) of any side, uint8 or float32 in [0, 1], -> its `TeacherFeatures`.

    It follows its parent module from device to device, and is otherwise no part of it: neither trained nor saved, and
    in eval mode always.

    Raises ConfigError if the model tells no vectors, or with `with_map` no maps; DataError if weights are not finite.
    """

    def __init__(self, predictor: Predictor, with_map: bool = False, with_vector: bool = True) -> None:
        """Without `with_vector` it has its `output` alone."""
        super().__init__()
        predictor.check_weights()
        self._network: tuple[Any, ...] = (
            predictor.network.requires_grad_(False).eval(),
        )  # in a tuple, torch does not find it
        self.size, self.with_map = predictor.preprocessing.size, with_map
        heads, [self._task] = ", ".join(predictor.heads), predictor.heads.values()
        if with_map and not isinstance(predictor.network, ReadoutNetwork):
            raise ConfigError(
                f"the model of teacher {heads!r} tells no map of an image: set maps to 0, or take a teacher of kind "
                "backbone, supervised or checkpoint."
            )
        if not with_vector:
            return
        if not isinstance(predictor.network, VectorNetwork) or (features := self._look()) is None:
            raise ConfigError(
                f"the model of teacher {heads!r} tells no vector of an image: take a teacher of kind backbone, "
                "supervised or checkpoint, or a classifier."
            )
        self.width = features.vector.shape[1]
        """Length of its vectors."""

    def forward(self, images: Tensor) -> TeacherFeatures:
        features = self._read(images)
        assert features is not None, "it told vectors when it was loaded"
        return features

    @torch.no_grad()
    def output(self, images: Tensor) -> Any:
        """Return the raw output of its head for the images."""
        [network] = self._network
        [output] = network(self._resize(images)).values()
        return output

    @property
    def space(self) -> LabelSpace:
        """The label space of its head."""
        return self._task.space

    def probs(self, images: Tensor) -> Tensor:
        """Return the probabilities (B, K) of the classes of the images, if its task is classification."""
        probs: Tensor = self._task.predict(self.output(images))["probs"]
        return probs

    def _resize(self, images: Tensor) -> Tensor:
        """Return the images as uint8 of the side that the model takes."""
        if images.dtype == torch.uint8 and images.shape[-1] == self.size:
            return images
        scaled = images if images.is_floating_point() else images / 255
        sized = F.interpolate(scaled, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)
        return (sized * 255).round().byte()

    @torch.no_grad()
    def _read(self, images: Tensor) -> TeacherFeatures | None:
        [network] = self._network
        pixels = self._resize(images)
        if self.with_map:
            vector, maps = network.readout(pixels)
            return TeacherFeatures(vector.float(), maps[-1].float())
        vector = network.vector(pixels)
        return None if vector is None else TeacherFeatures(vector.float(), None)

    def _look(self) -> TeacherFeatures | None:
        """Return what it makes of a gray image."""
        return self._read(torch.full((1, 3, self.size, self.size), 0.5))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: copies of a module that learns share the teacher, which never changes."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._network[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
