"""Logistic regression on frozen features, by L-BFGS: the quick linear probe."""

from __future__ import annotations

from typing import Any

from evaluation.probe import MAX_ITERATIONS, PENALTY_GRID, ProbeData, ProbeResult
from tasks.classification.label import TaskLabel

VERSION = 1
READS = "vector"
LABEL = TaskLabel
ABOUT = (
    "logistic regression on standardised features of whole images, its L2 penalty out of "
    f"{len(PENALTY_GRID)} (C = {PENALTY_GRID[0]:g} to {PENALTY_GRID[-1]:g}) by accuracy on validation images, "
    f"at most {MAX_ITERATIONS} iterations"
)
RANDOM = False


def fit(data: ProbeData) -> ProbeResult:
    """Return the classifier with the penalty that is best on validation images, the strongest one on a tie.

    If all training images have one class, the classifier always answers it.
    """
    import warnings

    import torch
    import torch.nn.functional as F
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    train, classes = data.train.features, data.train.classes.numpy()
    if len(set(classes)) == 1:
        constant = F.one_hot(data.train.classes[:1], data.classes).float()
        return ProbeResult(lambda features: constant.expand(len(features), -1), {})
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)

    def standardize(features: torch.Tensor) -> Any:
        return ((features - mean) / std).numpy()

    inputs = standardize(train)
    with threadpool_limits(1), warnings.catch_warnings():  # a second thread makes products as small as these slower
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iteration is as good as any: see `ABOUT`
        models = [LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(inputs, classes) for c in PENALTY_GRID]
    val = standardize(data.val.features), data.val.classes.numpy()
    accuracies = [float(model.score(*val)) for model in models]
    best = max(range(len(PENALTY_GRID)), key=accuracies.__getitem__)

    def classify(features: torch.Tensor) -> torch.Tensor:
        predicted = models[best].predict_proba(standardize(features))
        probabilities = torch.zeros(len(features), data.classes)
        probabilities[:, models[best].classes_] = torch.from_numpy(predicted).float()
        return probabilities

    return ProbeResult(classify, {"C": PENALTY_GRID[best], "validation": accuracies[best]})
