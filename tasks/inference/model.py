"""`TrainedModel`: a student, a teacher or a file of weights that predicts labels and vectors of any images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError, DataError, require_one_of
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Label, LabelSpace
from tasks.inference.images import ImageInput, ImageLike, PreparedImage, image_inputs, is_image, prepare
from tasks.inference.labels import HeadLabel, ImageLabels
from tasks.inference.phases import overlap_phases
from tasks.prediction import Predictor, VectorNetwork, check_finite_label
from tasks.task import Prediction

Threshold = float | Mapping[str, float] | None
"""The least probability of what is kept: of all heads, by head, or None for each task's own, 0.5 of objects."""
OnError = Callable[[str, str], None]
"""Called with an image's name and the reason why it has no label, or no vector."""
Inferred = TypeVar("Inferred")
Done = TypeVar("Done")
BATCH = 16
"""Images in a batch."""


class ImageVector(NamedTuple):
    """The vector of one image."""

    image: PreparedImage
    vector: NDArray[np.float32]
    """(D,)."""


class TrainedModel:
    """A trained model, ready for any images, which are decoded and resized as the pool's are.

    Example:
        model = must.load("student", root="must-root")
        model.predict("street.jpg")["things"].describe()  # "3 boxes"
        model.embed(["a.jpg", "b.jpg"]).shape  # (2, 512)
    """

    def __init__(self, name: str, predictor: Predictor, labels: Mapping[str, Label], runtime: Runtime) -> None:
        self.name, self.predictor, self.runtime = name, predictor, runtime
        self._labels = {head: labels[head] for head in predictor.heads}

    @property
    def heads(self) -> dict[str, LabelSpace]:
        """Task, classes and, of depth, the scale of each head."""
        return {head: label.space for head, label in self._labels.items()}

    def labels(self, heads: Sequence[str] = ()) -> dict[str, Label]:
        """Return how the labels of these heads, or of all, are read. Raises ConfigError if there is none of a name."""
        return {head: self._labels[require_one_of(head, self._labels, "head")] for head in heads or self._labels}

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        return self.predictor.preprocessing.channels

    def thresholds(self, threshold: Threshold = None, heads: Sequence[str] = ()) -> dict[str, float]:
        """Return the threshold of each head. Raises ConfigError for one of an unknown head, or outside of [0, 1]."""
        labels = self.labels(heads)
        given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(labels, threshold)
        for head, least in given.items():
            require_one_of(head, self._labels, "threshold of head")
            if least is not None and not 0 <= least <= 1:
                raise ConfigError(f"threshold {least!r}: is no probability; a number from 0 to 1 would work.")
        found = {head: given.get(head) for head in labels}
        return {head: labels[head].default_threshold if least is None else least for head, least in found.items()}

    @overload  # a path is a sequence of strings, too: the first form counts
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, threshold: Threshold = None, batch: int = BATCH
    ) -> ImageLabels: ...

    @overload
    def predict(
        self, images: Iterable[ImageLike], threshold: Threshold = None, batch: int = BATCH
    ) -> list[ImageLabels]: ...

    def predict(self, images: Any, threshold: Threshold = None, batch: int = BATCH) -> ImageLabels | list[ImageLabels]:
        """Return the labels of an image as `ImageLabels`, or a list of them for several images.

        `images`: paths or URLs, images of Pillow, or arrays (H, W, 3) uint8 of RGB. Raises DataError, with the image's
        name, if one can't be read, and ConfigError for what is no image.
        """
        single = is_image(images)
        found = list(self.stream([images] if single else images, threshold, batch))
        return found[0] if single else found

    def stream(
        self,
        images: Iterable[ImageLike],
        threshold: Threshold = None,
        batch: int = BATCH,
        heads: Sequence[str] = (),
        on_error: OnError | None = None,
    ) -> Generator[ImageLabels]:
        """Yield the labels of each image, in order, with a few batches of images in memory.

        `heads`: only these; all if empty. An image that can't be read is told to `on_error` and left out; without
        `on_error`, DataError is raised.
        """
        labels = self.labels(heads)
        thresholds = self.thresholds(threshold, heads)

        def finish(done: tuple[list[PreparedImage], dict[str, Prediction]]) -> list[_Finished]:
            return list(self._finish(*done, labels, thresholds))

        for found in self._run(images, batch, lambda loaded: (loaded, self._predict(loaded)), finish):
            for labelled, problems in found:
                for reason in problems:
                    _report(labelled.name, reason, on_error)
                if labelled.heads:
                    yield labelled

    def embed(self, images: ImageLike | Iterable[ImageLike], batch: int = BATCH) -> NDArray[np.float32]:
        """Return the vectors of several images, float32 (N, D), or of one, (D,).

        Of a network that was trained here it is what `timm.create_model(name, num_classes=0, ...)(x)` returns for its
        backbone. Raises ConfigError if the model tells no vectors, DataError if an image can't be read.
        """
        single = is_image(images)
        given = [cast("ImageLike", images)] if single else cast("Iterable[ImageLike]", images)
        vectors = [found.vector for found in self.stream_vectors(given, batch)]
        if not vectors:
            return np.zeros((0, self.width), np.float32)
        return vectors[0] if single else np.stack(vectors)

    def stream_vectors(
        self, images: Iterable[ImageLike], batch: int = BATCH, on_error: OnError | None = None
    ) -> Generator[ImageVector]:
        """Yield the vector of each image, in order, with a few batches in memory; errors as `stream` tells them."""
        self._check_vectors()

        def infer(loaded: list[PreparedImage]) -> list[ImageVector]:
            found = self.predictor.embed(self._tensor(loaded))
            if found is None:
                raise ConfigError(self._no_vectors())
            return [ImageVector(image, vector) for image, vector in zip(loaded, found, strict=True)]

        for found in self._run(images, batch, infer, lambda done: done):
            for image, vector in found:
                reason = image.reason
                if not reason and not np.isfinite(vector).all():
                    reason = "its vector is not finite"
                if reason:
                    _report(image.source.name, reason, on_error)
                else:
                    yield ImageVector(image, vector)

    @property
    def width(self) -> int:
        """D, the length of a vector. Raises ConfigError if the model tells no vectors."""
        self._check_vectors()
        found = self.predictor.embed(torch.from_numpy(self.predictor.preprocessing.blank(1)).permute(0, 3, 1, 2))
        if found is None:
            raise ConfigError(self._no_vectors())
        return found.shape[1]

    def _check_vectors(self) -> None:
        if not isinstance(self.predictor.network, VectorNetwork):
            raise ConfigError(self._no_vectors())

    def _no_vectors(self) -> str:
        return f"model {self.name!r} tells no vectors of images; a student, or a teacher that was trained here, does."

    def _run(
        self,
        images: Iterable[ImageLike],
        batch: int,
        infer: Callable[[list[PreparedImage]], Inferred],
        finish: Callable[[Inferred], Done],
    ) -> Generator[Done]:
        if batch < 1:
            raise ConfigError(f"batch {batch}: is no number of images; 1 or more would work.")
        chunks = _chunks(image_inputs(images), batch)
        return overlap_phases(self._load, infer, finish, chunks, self.runtime)

    def _load(self, sources: Sequence[ImageInput]) -> list[PreparedImage]:
        return [prepare(source, self.predictor.preprocessing) for source in sources]

    def _tensor(self, images: Sequence[PreparedImage]) -> Tensor:
        """Return the inputs (B, C, S, S); black for images that can't be read."""
        pixels = self.predictor.preprocessing.blank(len(images))
        for position, image in enumerate(images):
            if image.pixels is not None:
                pixels[position] = image.pixels
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _predict(self, images: list[PreparedImage]) -> dict[str, Prediction]:
        return self.predictor.predict(self._tensor(images), [image.size for image in images])

    def _finish(
        self,
        images: Sequence[PreparedImage],
        predictions: dict[str, Prediction],
        labels: Mapping[str, Label],
        thresholds: Mapping[str, float],
    ) -> Iterator[_Finished]:
        for position, image in enumerate(images):
            if image.reason:
                yield _Finished(ImageLabels(image, {}), [image.reason])
                continue
            values, found, problems = self.predictor.values(predictions, position, image.size), {}, []
            for head, label in labels.items():
                try:
                    check_finite_label(values[head])
                    value = label.decode(label.encode(values[head]), thresholds[head])  # as a stored label is read
                    found[head] = HeadLabel(head, label, value, image.source)
                except DataError as error:
                    problems.append(f"{head}: {error}")
            yield _Finished(ImageLabels(image, found), problems)


class _Finished(NamedTuple):
    """The labels of an image, and why some or all of them are missing."""

    labelled: ImageLabels
    problems: list[str]


def _chunks(sources: Iterator[ImageInput], size: int) -> Iterator[list[ImageInput]]:
    while chunk := list(itertools.islice(sources, size)):
        yield chunk


def _report(name: str, reason: str, on_error: OnError | None) -> None:
    if on_error is None:
        raise DataError(f"{name}: {reason}")
    on_error(name, reason)
