"""Random orders that stay as they are whatever comes or goes, and long tails."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.sampling import long_tail, random_order

KEYS = [f"{number:016x}" for number in range(50)]


def test_two_keys_stay_in_their_order_whatever_others_there_are() -> None:
    whole = [KEYS[place] for place in random_order(KEYS, 3)]
    assert sorted(whole) == KEYS
    part = KEYS[10:30]
    assert [part[place] for place in random_order(part, 3)] == [key for key in whole if key in part]
    assert [KEYS[place] for place in random_order(KEYS, 4)] != whole


@pytest.mark.parametrize(("classes", "ratio"), [(10, 0.01), (10, 0.1), (100, 0.02), (2, 0.5)])
def test_a_long_tail_falls_exponentially(classes: int, ratio: float) -> None:
    found = np.array(long_tail([5000] * classes, ratio))
    assert found[0] == 5000
    assert found[-1] == round(5000 * ratio)
    factor = ratio ** (1 / (classes - 1))
    np.testing.assert_allclose(found, 5000 * factor ** np.arange(classes), atol=0.5)


def test_a_long_tail_takes_what_there_is_and_at_least_one() -> None:
    assert long_tail([10, 3, 100, 0, 7], 0.01) == [10, 3, 10, 0, 1]
    assert long_tail([10, 20], 1.0) == [10, 20]
    assert long_tail([7], 0.1) == [7]
    assert long_tail([2, 2], 0.001) == [2, 1]
    assert long_tail([], 0.1) == []
