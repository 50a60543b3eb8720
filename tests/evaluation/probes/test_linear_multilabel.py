"""The linear probe for several classes per image: its optimum, unknown classes, and the choice of the penalty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluation.probe import PENALTY_GRID, LabelledFeatures, ProbeData
from evaluation.probes import linear_multilabel
from pipeline.data.dataset import ImageDataset
from pipeline.models.initial import random_backbone
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root


def labelled(seed: int, count: int, unknown: float = 0.0) -> LabelledFeatures:
    """Return features of which each of three classes needs another direction, some of its labels unknown."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, generator=rng)
    classes = (features[:, :3] + 0.3 * torch.randn(count, 3, generator=rng) > 0.4).float()
    classes[torch.rand(count, 3, generator=rng) < unknown] = torch.nan
    return LabelledFeatures(features, classes)


def data_of(train: LabelledFeatures, val: LabelledFeatures, folder: Path) -> ProbeData:
    runtime = Runtime(Root.of(folder), "cpu", "32", 1)
    backbone = random_backbone("test_resnet", 32).build()
    return ProbeData(train, val, 3, 0, backbone, ImageDataset([]), folder, runtime)


@pytest.mark.parametrize("c", [1e-2, 1.0])
def test_logistic_regression_is_that_of_scikit_learn_for_each_class_where_known(c: float) -> None:
    train = labelled(1, 80, unknown=0.2)
    weight, bias = linear_multilabel.logistic_regression(train, c)
    for number in range(3):
        known = ~train.classes[:, number].isnan()
        model = LogisticRegression(C=c, solver="newton-cholesky")
        model.fit(train.features[known].numpy(), train.classes[known, number].numpy())
        np.testing.assert_allclose(weight[:, number], model.coef_[0], atol=2e-3)
        np.testing.assert_allclose(bias[number], model.intercept_[0], atol=2e-3)


def test_linear_multilabel_ranks_images_by_class(tmp_path: Path) -> None:
    data, test = data_of(labelled(1, 120, 0.2), labelled(2, 60), tmp_path), labelled(3, 200)
    result = linear_multilabel.fit(data)
    found = result.classify(test.features)
    assert ((found > 0.5).float() == test.classes).float().mean() > 0.85
    assert result.settings["C"] in PENALTY_GRID
    assert result.settings["validation"] > 0.9
    assert torch.equal(found, linear_multilabel.fit(data).classify(test.features))


def test_linear_multilabel_survives_classes_without_positives_and_one_image(tmp_path: Path) -> None:
    train = labelled(1, 1)
    train.classes[:] = torch.tensor([[0.0, torch.nan, 1.0]])
    found = linear_multilabel.fit(data_of(train, train, tmp_path)).classify(labelled(2, 4).features)
    assert found.isfinite().all()
    assert torch.allclose(found[:, 1], torch.tensor(0.5)), "nothing is known of the class"
