"""Principal components of features, and their rotation to equal variances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from tasks.components import PrincipalComponents, spread


def stretched_vectors() -> torch.Tensor:
    """Return vectors (500, 8) of unequal, correlated coordinates."""
    rng = torch.Generator().manual_seed(3)
    return torch.randn(500, 8, generator=rng) @ torch.randn(8, 8, generator=rng) * 5 + 11


def test_principal_components_keep_angles_and_distances() -> None:
    vectors = stretched_vectors()
    components = PrincipalComponents.fit(vectors, 8)(vectors)
    np.testing.assert_allclose(components.mean(dim=0), np.zeros(8), atol=1e-4)
    assert float(components.var(dim=0, correction=0).mean()) == pytest.approx(1, rel=1e-4)
    assert (components.var(dim=0).diff() <= 0).all()
    np.testing.assert_allclose(np.cov(components.T), np.diag(np.diag(np.cov(components.T))), atol=1e-3)
    ratio = torch.pdist(components) / torch.pdist(vectors)
    np.testing.assert_allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3)


def test_principal_components_fit_the_largest_first() -> None:
    vectors = stretched_vectors()
    whole, few = PrincipalComponents.fit(vectors, 8), PrincipalComponents.fit(vectors, 3)
    np.testing.assert_allclose(few(vectors), whole(vectors)[:, :3], rtol=1e-5)
    variances = whole(vectors).var(dim=0)
    assert float(few.share) == pytest.approx(float(variances[:3].sum() / variances.sum()), rel=1e-4)
    assert float(whole.share) == pytest.approx(1)


def test_principal_components_do_not_depend_on_the_order_of_images() -> None:
    vectors = stretched_vectors()
    one, other = (PrincipalComponents.fit(each, 8)(vectors) for each in (vectors, vectors.flip(0)))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_principal_components_do_not_depend_on_scale_and_origin() -> None:
    vectors = stretched_vectors()
    one, other = (PrincipalComponents.fit(each, 8)(each) for each in (vectors, 0.01 * vectors - 3))
    np.testing.assert_allclose(one, other, atol=2e-3)


def test_principal_components_refuse_vectors_that_are_all_the_same() -> None:
    with pytest.raises(ValueError, match="all vectors are the same"):
        PrincipalComponents.fit(torch.ones(20, 4), 2)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8, 300])
def test_spread_is_the_product_with_hadamards_matrix(count: int) -> None:
    components = torch.randn(5, count, generator=torch.Generator().manual_seed(count))
    size = 1 << (count - 1).bit_length()
    matrix = torch.from_numpy(hadamard(size)[:count] / count**0.5).float()
    np.testing.assert_allclose(spread(components), components @ matrix, atol=1e-4)


def test_spread_gives_all_coordinates_the_mean_variance() -> None:
    vectors = stretched_vectors()
    components = PrincipalComponents.fit(vectors, 8)(vectors)
    assert float(components.var(dim=0).max() / components.var(dim=0).min()) > 10
    np.testing.assert_allclose(spread(components).var(dim=0, correction=0), np.ones(8), rtol=1e-3)
