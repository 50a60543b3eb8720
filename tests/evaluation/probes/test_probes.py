"""Test each probe against an independent implementation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from evaluation.probe import LabelledFeatures, ProbeData
from evaluation.probes import knn, linear, linear_hpt, soft_nn
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training.optimizer import lr_factor
from selfsup.components.losses import suncet

CLASSES, WIDTH = 4, 6


def known(seed: int, count: int, classes: int = CLASSES - 1) -> LabelledFeatures:
    """Return features of overlapping classes; the last class does not occur."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, classes, count)
    features = rng.normal(size=(count, WIDTH)) * np.arange(1, WIDTH + 1) + 2 * np.eye(classes, WIDTH)[numbers] + 3
    return LabelledFeatures(torch.from_numpy(features).float(), torch.from_numpy(numbers))


def probe_data(train: LabelledFeatures, val: LabelledFeatures, tmp_path: Path) -> ProbeData:
    """Return data for probes that only use the features."""
    nothing = cast("Any", None)
    return ProbeData(train, val, CLASSES, 0, nothing, nothing, tmp_path, Runtime(Root.of(tmp_path)))


def neighbours(
    train: LabelledFeatures, features: NDArray[np.float64], count: int, temperature: float
) -> NDArray[np.float64]:
    """Return the votes of weighted nearest neighbours, image by image, in float64 (Wu et al., 2018)."""
    there = train.features.double().numpy()
    found = np.zeros((len(features), CLASSES))
    for row, one in enumerate(features):
        cosines = [float(one @ each / np.linalg.norm(one) / np.linalg.norm(each)) for each in there]
        for near in sorted(range(len(there)), key=lambda index: -cosines[index])[:count]:
            found[row, int(train.classes[near])] += np.exp(cosines[near] / temperature)
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("count", [50, 7])
def test_knn_agrees_with_a_simple_count(count: int, tmp_path: Path) -> None:
    """This holds with fewer images than neighbours, too."""
    train, test = known(1, count), known(2, 30).features
    solution = knn.fit(probe_data(train, known(3, 5), tmp_path))
    wanted = neighbours(train, test.double().numpy(), 20, 0.07)
    np.testing.assert_allclose(solution.classify(test).numpy(), wanted, atol=1e-4)
    assert solution.settings == {"neighbours": min(20, count)}


def test_knn_does_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solution, test = knn.fit(probe_data(known(1, 50), known(3, 5), tmp_path)), known(2, 30).features
    whole = solution.classify(test)
    monkeypatch.setattr("pipeline.models.neighbors.CHUNK", 7)
    torch.testing.assert_close(solution.classify(test), whole)


def test_soft_nn_uses_all_neighbors(tmp_path: Path) -> None:
    train, test = known(1, 50), known(2, 30).features
    found = soft_nn.fit(probe_data(train, known(3, 5), tmp_path)).classify(test).numpy()
    np.testing.assert_allclose(found, neighbours(train, test.double().numpy(), 50, soft_nn.TEMPERATURE), atol=1e-4)


def test_soft_nn_probability_of_the_right_class_is_suncets_objective(tmp_path: Path) -> None:
    """With one image left out, its probability is what the loss takes the logarithm of."""
    everything = known(1, 40)
    features, classes = everything
    told = []
    for number in range(40):
        others = np.delete(np.arange(40), number)
        train = LabelledFeatures(features[others], classes[others])
        told.append(soft_nn.fit(probe_data(train, everything, tmp_path)).classify(features[number : number + 1])[0])
    own = torch.stack(told)[torch.arange(40), classes]
    torch.testing.assert_close(suncet(features, classes, soft_nn.TEMPERATURE), -own.log().mean(), rtol=1e-4, atol=1e-5)
    z = (features.double() / features.double().norm(dim=1, keepdim=True)).numpy()
    weights = np.exp(z @ z.T / soft_nn.TEMPERATURE) * (1 - np.eye(40))
    votes = weights @ np.eye(CLASSES)[classes.numpy()]
    assert [int(one.argmax()) for one in told] == votes.argmax(1).tolist()


def test_linear_is_logistic_regression_with_the_best_penalty_on_validation(tmp_path: Path) -> None:
    train, val, test = known(1, 60), known(2, 40), known(3, 30).features
    solution = linear.fit(probe_data(train, val, tmp_path))
    mean, std = train.features.mean(0).numpy(), train.features.std(0).numpy()
    scores = {}
    for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
        fitted = LogisticRegression(C=c, max_iter=500).fit((train.features.numpy() - mean) / std, train.classes)
        scores[c] = fitted.score((val.features.numpy() - mean) / std, val.classes), fitted
    best = max(score for score, _ in scores.values())
    strongest = min(c for c, (score, _) in scores.items() if score == best)
    assert solution.settings == {"C": strongest, "validation": best}
    wanted = scores[strongest][1].predict_proba((test.numpy() - mean) / std)
    np.testing.assert_allclose(solution.classify(test)[:, :3].numpy(), wanted, atol=1e-5)


def test_linear_takes_the_strongest_of_equal_penalties(tmp_path: Path) -> None:
    """The classes are so easy that all penalties give perfect accuracy."""
    classes = torch.tensor([0, 1] * 10)
    apart = LabelledFeatures(
        torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0)) + 100 * classes[:, None], classes
    )
    assert linear.fit(probe_data(apart, apart, tmp_path)).settings == {"C": 1e-4, "validation": 1.0}


def test_linear_is_silent_where_iterations_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 <= linear.fit(probe_data(known(1, 40), known(2, 20), tmp_path)).settings["validation"] <= 1


@pytest.mark.parametrize("probe", [knn, linear], ids=["knn", "linear"])
def test_linear_gives_no_probability_to_an_absent_class(probe: Any, tmp_path: Path) -> None:
    solution = probe.fit(probe_data(known(1, 40), known(2, 20), tmp_path))
    assert (solution.classify(known(3, 10).features)[:, CLASSES - 1] == 0).all()


def test_linear_keeps_class_positions_with_an_absent_class_in_the_middle(tmp_path: Path) -> None:
    train, val = (known(seed, 40, 2) for seed in (1, 2))
    apart = LabelledFeatures(train.features, train.classes * 2), LabelledFeatures(val.features, val.classes * 2)
    test = known(3, 10).features
    together = linear.fit(probe_data(train, val, tmp_path)).classify(test)
    assert torch.equal(linear.fit(probe_data(*apart, tmp_path)).classify(test)[:, [0, 2]], together[:, :2])


def test_linear_handles_a_constant_feature(tmp_path: Path) -> None:
    train, val = known(1, 40), known(2, 20)
    still = [
        LabelledFeatures(torch.cat([each.features, torch.ones(len(each.features), 1)], 1), each.classes)
        for each in (train, val)
    ]
    test = known(3, 10).features
    found = linear.fit(probe_data(still[0], still[1], tmp_path)).classify(torch.cat([test, torch.ones(10, 1)], 1))
    torch.testing.assert_close(found, linear.fit(probe_data(train, val, tmp_path)).classify(test), atol=1e-3, rtol=1e-3)


def test_linear_hpt_learning_rate_drops_as_published() -> None:
    """30, 3 and 0.3, from steps 1,651 and 3,333 of 5,000 on; SGD without weight decay, batches of 512."""
    config = linear_hpt.SETTINGS
    rates = [config.lr * lr_factor(step, 5000, config.warmup, config.drops) for step in range(5000)]
    wanted = [30.0] * 1651 + [3.0] * (3333 - 1651) + [0.3] * (5000 - 3333)
    assert rates == pytest.approx(wanted)
    assert config.total_steps(100) == 5000
    assert (config.optimizer, config.batch, config.momentum, config.weight_decay) == ("sgd", 512, 0.9, 0.0)
    assert (config.clip, config.ema, config.nesterov) == (None, None, False)
