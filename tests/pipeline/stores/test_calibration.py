"""Calibrations on their own: what their maps do to scores, and how reliability is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.stores.calibration import Calibration, Isotonic, Reliability, ReliabilityCurve, Temperature

CURVE = ReliabilityCurve.of(np.array([0.05, 0.95]), np.array([0.0, 1.0]), np.ones(2))


def test_temperature_divides_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7))
    np.testing.assert_allclose(Temperature(2.5)(softmax(logits, axis=1)), softmax(logits / 2.5, axis=1))
    np.testing.assert_allclose(Temperature(1.0)(softmax(logits, axis=1)), softmax(logits, axis=1))


def test_temperature_keeps_the_unknown_and_the_certain() -> None:
    probs = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    scaled = Temperature(3.0)(probs)
    np.testing.assert_array_equal(scaled, probs)
    assert scaled.dtype == np.float32


def test_isotonic_is_linear_between_knots_and_keeps_the_dtype() -> None:
    curve = Isotonic((0.0, 0.5, 1.0), (0.1, 0.2, 0.9))
    found = curve(np.array([[0.0, 0.25], [0.75, 1.0]], np.float32))
    np.testing.assert_allclose(found, [[0.1, 0.15], [0.55, 0.9]], rtol=1e-6)
    assert found.dtype == np.float32


def test_reliability_curve_counts_in_tenths() -> None:
    confidence = np.array([0.0, 0.09, 0.95, 1.0, 0.55])
    right = np.array([0.0, 1.0, 1.0, 0.0, 0.5])
    curve = ReliabilityCurve.of(confidence, right, np.array([1.0, 1.0, 2.0, 2.0, 4.0]))
    assert [each.size for each in curve.bins] == [2, 4, 4]
    assert [each.right for each in curve.bins] == [0.5, 0.5, 0.5]
    assert [each.confidence for each in curve.bins] == pytest.approx([0.045, 0.55, 0.975])
    assert curve.ece == pytest.approx((2 * 0.455 + 4 * 0.05 + 4 * 0.475) / 10)


@pytest.mark.parametrize("score_map", [Temperature(1.5), Isotonic((0.0, 1.0), (0.25, 0.5))])
@pytest.mark.parametrize("reliability", [None, Reliability("things", "val", 20, 300, CURVE, CURVE)])
def test_calibration_survives_json(score_map: Temperature | Isotonic, reliability: Reliability | None) -> None:
    calibration = Calibration(score_map, reliability)
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json(), sort_keys=True))) == calibration
    assert Calibration.from_json(None) is None
