"""Predict labels with a model: `Preprocessing` makes its input of an image, `Predictor` runs it on batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.data.augment import AugmentParams, Placement, full_image_box, transform_image, valid_size
from pipeline.data.bands import RGB, Pixels, decode_pixels
from pipeline.errors import ConfigError, DataError
from pipeline.models.weight_loading import non_finite_weights
from pipeline.recipe.augment import Resize
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Value
from pipeline.stores.rasters import Box
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import allocation_failures, find_device
from pipeline.training.transfer import HostCopy
from tasks.network import Network
from tasks.task import Prediction, Task

AUTOTUNE_IMAGES, GPU_AUTOTUNE_IMAGES = 16, 64
"""Images of the forward pass that is timed."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize an image to a model's input. Hashable: teachers with equal preprocessing share its result.

    Example:
        image = Image.open(path).convert("RGB")
        Preprocessing(224, crop_pct=0.875, bicubic=True)(image, image.size)  # (224, 224, 3) uint8
    """

    size: int
    """Side of the input in pixels."""
    resize: Resize = "stretch"
    """How whole images become square."""
    crop_pct: float | None = None
    """Resize the central square whose side is this share of the shorter side, as timm does; None: the whole image."""
    bicubic: bool = False
    """Bicubic filtering instead of bilinear, of crops and of whole images that are stretched."""
    channels: int = RGB
    """Of the images."""

    @property
    def dtype(self) -> type[np.uint8 | np.float32]:
        """The type of the numbers of the input."""
        return np.uint8 if self.channels == RGB else np.float32

    def decode(self, data: bytes, size: tuple[int, int]) -> Pixels:
        """Decode an image file, whose upright image is of `size`, with all the detail that the input has."""
        return decode_pixels(data, self.channels, self.min_decode_size(size))

    def blank(self, count: int) -> NDArray[Any]:
        """Return inputs (count, S, S, C) of zeros."""
        return np.zeros((count, self.size, self.size, self.channels), self.dtype)

    def __call__(self, image: Pixels, size: tuple[int, int]) -> NDArray[Any]:
        """Return the image as uint8 (S, S, 3), or as float32 (S, S, C) of other channels than RGB.

        It may have been decoded at a reduced size; `size` is (width, height) of the file's image, pixels.
        """
        plain = self.crop_pct is None and not (self.bicubic and self.resize == "stretch")
        if plain or isinstance(image, np.ndarray):
            return transform_image(image, AugmentParams(self._box(size)), self.size)
        filtering = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        box = self._crop(image.size)
        return np.asarray(image.resize((self.size, self.size), filtering, box=box, reducing_gap=3.0))

    def _crop(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the corners, in pixels, of the central crop of an image of `size`, or of all of it without a crop."""
        width, height = size
        if self.crop_pct is None:
            return 0, 0, width, height
        side = self.crop_pct * min(size)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def _box(self, size: tuple[int, int]) -> Box:
        return full_image_box(self.resize, size, self.size)

    def valid_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the valid region, (width, height) in input pixels, of an image of `size` = (width, height)."""
        return (self.size, self.size) if self.crop_pct else valid_size(self._box(size), self.size)

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the least (width, height) that a reduced decode of an image of `size` may have with all its detail."""
        if self.crop_pct is None:
            return self.valid_size(size)
        side = round(self.size / self.crop_pct)
        return side, side


@runtime_checkable
class VectorNetwork(Protocol):
    """A network that tells a vector of each image beside its outputs."""

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        """Return raw outputs by head, and vectors (B, D) of images (B, C, S, S); None if the model has none."""

    def vector(self, images: Tensor) -> Tensor | None:
        """Return the vectors (B, D) alone."""


class Predictor:
    """A model in eval mode with a task per head. On the CPU in float32 until `setup`.

    Example:
        predictor = load_teacher(artifact, runtime)
        sizes = [(640, 480)]
        label = predictor.values(predictor.predict(images, sizes), index=0, size=sizes[0])["depth"]

    Args:
        network: from images (B, C, S, S) to a dict of raw outputs by head.
        heads: the task that reads each head's output.
        preprocessing: how images are resized to S x S.
    """

    def __init__(self, network: nn.Module, heads: Mapping[str, Task], preprocessing: Preprocessing) -> None:
        self.network, self.heads, self.preprocessing = network.eval(), dict(heads), preprocessing
        self.compute = ComputeConfig("cpu", "32", False, {})
        self._max_batch: int | None = None
        """Images that the device's memory holds at once, once it was known to hold no more."""

    def setup(self, runtime: Runtime, model_id: Any) -> Predictor:
        """Move to the device, precision and layout that are measured to be fastest; return self.

        The measurement is cached under `model_id`: JSON that identifies the model, such as its `model.json`. Raises
        DataError if weights are not finite: detectors drop boxes without a finite score, and would find nothing.
        """
        self.check_weights()
        size = self.preprocessing.size
        count = autotune.timed_images(find_device(runtime.device), AUTOTUNE_IMAGES, GPU_AUTOTUNE_IMAGES)
        channels, dtype = self.preprocessing.channels, torch.from_numpy(self.preprocessing.blank(0)).dtype
        images = torch.randint(0, 256, (count, channels, size, size), dtype=dtype)
        self.compute = autotune.autotune_inference(runtime, [model_id, "predict"], self.network, images)
        self.compute.place(self.network)
        return self

    def check_weights(self) -> None:
        """Raise DataError if a weight is not finite."""
        damaged = non_finite_weights(self.network.named_parameters())
        if damaged:
            raise DataError(
                f"the model of {', '.join(self.heads)} has weights that are not finite, in {damaged[0]} and "
                f"{len(damaged) - 1} more tensors: train it anew, or take another file of weights."
            )

    def predict(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> dict[str, Prediction]:
        """Return predictions by head, as NumPy arrays, of preprocessed images (B, C, S, S).

        `sizes`: (width, height) of the images before preprocessing, in pixels. Halves the batch for as long as the
        device's memory does not hold it. Raises ConfigError if one image is too much.
        """
        return self.start(images, sizes).read()[0]

    def predict_with_vectors(
        self, images: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, Prediction], NDArray[np.float32] | None]:
        """Return predictions as `predict` does, and the images' vectors (B, D); None if the model tells none."""
        return self.start(images, sizes, with_vectors=True).read()

    def upload(self, images: Tensor) -> Tensor:
        """Return preprocessed images on the device, for several calls; where they were if its memory holds no more.

        `start` and `embed` take both, and move no more of them to the device at once than it holds.
        """
        try:
            return images.to(self.compute.device, non_blocking=True)
        except torch.OutOfMemoryError:
            return images

    def start(self, images: Tensor, sizes: Sequence[tuple[int, int]], with_vectors: bool = False) -> StartedPrediction:
        """Give the device the work of `predict`, or of `predict_with_vectors`, and return without waiting for it."""
        with_vectors = with_vectors and isinstance(self.network, VectorNetwork)
        return StartedPrediction(
            self._in_batches(lambda rows: self._predict_batch(images[rows], sizes[rows], with_vectors), len(images))
        )

    def embed(self, images: Tensor) -> NDArray[np.float32] | None:
        """Return the vectors (B, D) of preprocessed images (B, C, S, S); None if the model tells none."""
        network = self.network
        if not isinstance(network, VectorNetwork):
            return None
        parts = self._in_batches(lambda rows: self._embed_batch(network, images[rows]), len(images))
        vectors: NDArray[np.float32] | None = join_predictions([to_numpy(part.read()) for part in parts])
        return vectors

    @torch.inference_mode()
    def _in_batches(self, compute: Callable[[slice], Any], count: int) -> list[HostCopy]:
        """Return copies of `compute(rows)` of all rows, in as many parts as the device's memory asks for."""
        while True:
            batch = max(1, min(self._max_batch or count, count))
            try:
                with allocation_failures():
                    return [HostCopy(compute(slice(at, at + batch))) for at in range(0, max(1, count), batch)]
            except torch.OutOfMemoryError as error:
                if batch == 1:
                    message = "The device's memory does not hold one image's prediction: set a smaller image_size."
                    raise ConfigError(message) from error
                self._max_batch = -(-batch // 2)

    def _predict_batch(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], with_vectors: bool
    ) -> tuple[dict[str, Prediction], Tensor | None]:
        valid = [self.preprocessing.valid_size(size) for size in sizes]
        network: Any = self.network
        with self.compute.autocast():
            inputs = self._to_device(images)
            outputs, vectors = network.forward_with_vector(inputs) if with_vectors else (network(inputs), None)
            predictions = {name: head.predict(outputs[name], valid) for name, head in self.heads.items()}
        return predictions, None if vectors is None else vectors.float()

    def _embed_batch(self, network: VectorNetwork, images: Tensor) -> Tensor | None:
        with self.compute.autocast():
            vectors = network.vector(self._to_device(images))
        return None if vectors is None else vectors.float()

    def _to_device(self, images: Tensor) -> Tensor:
        moved = images.to(self.compute.device, non_blocking=True)
        return moved.contiguous(memory_format=self.compute.memory_format)

    def values(self, predictions: Mapping[str, Prediction], index: int, size: tuple[int, int]) -> dict[str, Value]:
        """Return the labels, by head, of image `index` of the batch, an image of `size` = (width, height) pixels."""
        placement = Placement(size, self.preprocessing.valid_size(size))
        return {name: head.value(predictions[name], index, placement) for name, head in self.heads.items()}


class StartedPrediction:
    """Predictions that the device may still be computing."""

    def __init__(self, parts: Sequence[HostCopy]) -> None:
        self._parts = parts

    def read(self) -> tuple[dict[str, Prediction], NDArray[np.float32] | None]:
        """Return the predictions by head, and the vectors (B, D) if there are any, as NumPy arrays."""
        found: tuple[dict[str, Prediction], NDArray[np.float32] | None]
        found = join_predictions([tuple(map(to_numpy, part.read())) for part in self._parts])
        return found


def check_finite_label(value: Value) -> None:
    """Raise DataError, naming the array, if a predicted label is not finite: models have no NaN for unknown."""
    for name, array in value.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            share = f"{np.count_nonzero(~np.isfinite(array)):,} of {array.size:,} numbers"
            raise DataError(f"the model's {name} are not finite: NaN or infinite in {share}")


def network_predictor(network: Network) -> Predictor:
    """Return a predictor of all heads of a network."""
    made = network.config
    return Predictor(network, network.tasks, Preprocessing(made.image_size, made.resize, channels=made.channels))


def load_network(artifact: Artifact, runtime: Runtime) -> Predictor:
    """Load an artifact's `Network` as a predictor of all its heads, set up for this machine."""
    return network_predictor(artifact.load_all(Network.load)).setup(runtime, artifact.load("model.json", read_json))


def to_numpy(tree: Any) -> Any:
    """Turn the tensors in nested dicts and lists into NumPy arrays; bfloat16 becomes float32."""
    if isinstance(tree, Tensor):
        return (tree.float() if tree.dtype == torch.bfloat16 else tree).cpu().numpy()
    if isinstance(tree, Mapping):
        return {name: to_numpy(branch) for name, branch in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [to_numpy(branch) for branch in tree]
    return tree


def join_predictions(parts: Sequence[Any]) -> Any:
    """Concatenate the predictions of parts of a batch: arrays and lists with an entry per image, in nested dicts and
    tuples; None where all are.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: join_predictions([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(join_predictions(each) for each in zip(*parts, strict=True))
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    return [entry for part in parts for entry in part] if isinstance(first, list) else first
