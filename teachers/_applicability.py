"""Fit a teacher's applicability: how far held-out images of its domain lie from the others. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.steps.artifact import Inputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ingest.dataset import IngestedSet
    from pipeline.data.dataset import ImageDataset
    from pipeline.steps.runtime import Runtime
    from tasks.prediction import Predictor

DOMAIN = "domain"
"""Key of a teacher's step: the set of images of the kind that the teacher knows; missing if none is named."""
NO_DOMAIN = "no set of images of its kind is named under its key 'domain'"


def fit_applicability(data: str | None, inputs: Inputs, out: Path, predictor: Predictor) -> dict[str, Any]:
    """Fit the applicability on the images of the set `data`, labelled or not, and write it to `out`.

    Return what the manifest says of it: the set and the numbers of its images, or `why` there is none.
    """
    from ingest.dataset import IngestedSet
    from tasks.applicability import MAX_HELD_OUT, MAX_TRAINING, MIN_HELD_OUT, Applicability

    if data is None:
        return {"why": NO_DOMAIN}
    ingested = IngestedSet(inputs[f"data.{data}"])
    split = ingested.held_out_split("val")
    held_out = None if split is None else _images(ingested, split)
    if held_out is None or len(held_out) < MIN_HELD_OUT:
        count = len(held_out) if held_out else 0
        return {"why": f"the set {data!r} has {count} held-out images, and it takes {MIN_HELD_OUT}"}
    training = _vectors(predictor, _images(ingested, "train"), MAX_TRAINING, inputs.runtime)
    if training is None:
        return {"why": "its model tells no vector of an image"}
    beyond = _vectors(predictor, held_out, MAX_HELD_OUT, inputs.runtime)
    assert beyond is not None
    Applicability.fit(training, beyond).save(out)
    return {"dataset": data, "training": len(training), "held_out": len(beyond)}


def sample_vectors(data: str, inputs: Inputs, predictor: Predictor, most: int) -> NDArray[np.float32]:
    """Return what the model tells as vectors, (N, D), of up to `most` images to train on of a set, drawn at random."""
    from ingest.dataset import IngestedSet

    vectors = _vectors(predictor, _images(IngestedSet(inputs[f"data.{data}"]), "train"), most, inputs.runtime)
    assert vectors is not None, "the model tells no vectors"
    return vectors


def _images(ingested: IngestedSet, split: str) -> ImageDataset:
    """Return all images of a split; of those to train on, without the ones that are held out as well."""
    from ingest.true_labels import dataset_shards, held_out_keys
    from pipeline.data.dataset import ImageDataset

    without = held_out_keys(ingested) if split == "train" else frozenset()
    return ImageDataset(dataset_shards(ingested, split, lambda shard: {}, without))


def _vectors(predictor: Predictor, images: ImageDataset, most: int, runtime: Runtime) -> NDArray[np.float32] | None:
    """Return the vectors of up to `most` images, drawn at random; None if the model tells none."""
    from pipeline.data.sampling import random_order
    from tasks.scoring import embed_all

    drawn = images if len(images) <= most else images.subset(random_order(images.keys(), 0)[:most])
    return embed_all(predictor, drawn, runtime)
