"""Random orders that other images don't disturb, and long tails."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.sampling import long_tailed_counts, random_order

KEYS = [f"{number:016x}" for number in range(50)]


def test_random_order_of_two_keys_does_not_depend_on_others() -> None:
    whole = [KEYS[place] for place in random_order(KEYS, 3)]
    assert sorted(whole) == KEYS
    part = KEYS[10:30]
    assert [part[place] for place in random_order(part, 3)] == [key for key in whole if key in part]
    assert [KEYS[place] for place in random_order(KEYS, 4)] != whole


@pytest.mark.parametrize(("classes", "ratio"), [(10, 0.01), (10, 0.1), (100, 0.02), (2, 0.5)])
def test_long_tailed_counts_fall_exponentially(classes: int, ratio: float) -> None:
    found = np.array(long_tailed_counts([5000] * classes, ratio))
    assert found[0] == 5000
    assert found[-1] == round(5000 * ratio)
    factor = ratio ** (1 / (classes - 1))
    np.testing.assert_allclose(found, 5000 * factor ** np.arange(classes), atol=0.5)


def test_long_tailed_counts_are_at_least_one_and_no_more_than_there_are() -> None:
    assert long_tailed_counts([10, 3, 100, 0, 7], 0.01) == [10, 3, 10, 0, 1]
    assert long_tailed_counts([10, 20], 1.0) == [10, 20]
    assert long_tailed_counts([7], 0.1) == [7]
    assert long_tailed_counts([2, 2], 0.001) == [2, 1]
    assert long_tailed_counts([], 0.1) == []
