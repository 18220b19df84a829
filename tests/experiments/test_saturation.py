"""The functions `studies.saturation` measures with, against sampling, sums and known facts."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.studies.saturation import measure as saturation
from experiments.studies.saturation import sigmoid
from jbn import diagnostics


def test_flat_from_is_where_the_slope_is():
    edge = sigmoid.flat_from(0.01)
    s = 1 / (1 + np.exp(-edge))
    assert s * (1 - s) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("sd", [4.0, 10.0])
def test_saturated_share_agrees_with_a_sample(sd):
    # With 100,000 values, the standard error is below .0016.
    x = np.random.default_rng(0).normal(size=100_000) * sd
    s = 1 / (1 + np.exp(-x))
    sampled = np.mean(s * (1 - s) < sigmoid.FLAT)
    assert float(sigmoid.saturated_share(sd)) == pytest.approx(sampled, abs=0.006)


def test_best_line_agrees_with_regression_on_quantiles():
    # Midpoints of 10,001 equal shares of N(0, 1) truncated at 1.96.
    inside = stats.truncnorm(-sigmoid.ZONE, sigmoid.ZONE)
    x = inside.ppf((np.arange(10_001) + 0.5) / 10_001)
    line = stats.linregress(x, 1 / (1 + np.exp(-x)))
    slope, r2 = sigmoid.best_line(sigmoid.ZONE)
    assert slope == pytest.approx(line.slope, rel=1e-5)
    assert r2 == pytest.approx(line.rvalue**2, rel=1e-5)


@pytest.mark.parametrize("size", [2, 60])
def test_largest_normalized_reaches_the_bound(size):
    assert saturation.largest_normalized(size) == pytest.approx(np.sqrt(size - 1), rel=1e-5)


def test_r2_of_each_unit():
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    y = np.stack([3 * x[:, 0] + 1, x[:, 1] ** 3], 1)
    expected = [1, stats.linregress(x[:, 1], y[:, 1]).rvalue ** 2]
    np.testing.assert_allclose(saturation.r2(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-5)


def test_gaussian_share_whatever_the_sign_of_gamma():
    seen = {"scale": np.array([[[2.0, -2.0]]]), "bias": np.array([[[1.0, 1.0]]])}
    x = stats.norm.ppf((np.arange(10_001) + 0.5) / 10_001)
    expected = [np.mean(2 * x + 1 > 0), np.mean(-2 * x + 1 > 0)]
    np.testing.assert_allclose(saturation.gaussian_share(seen)[0], expected, atol=1e-3)


def test_shape_of_a_standard_exponential():
    # Quantiles serve as values: mean 1, deviation 1, skewness 2, excess kurtosis 6.
    x = stats.expon.ppf((np.arange(200_000) + 0.5) / 200_000).astype(np.float32)
    np.testing.assert_allclose(saturation.shape(x[:, None]), [1, 1, 2, 6], rtol=0.01)


def test_side_by_side_in_the_order_of_layers():
    tree = {"norm_1": {"scale": jnp.ones(2)}, "norm_0": {"scale": jnp.zeros(1)}, "output": {}}
    assert saturation.side_by_side(tree, "norm_{}", "scale").tolist() == [0, 1, 1]


def test_sigmoids_are_flat_where_diagnostics_say_so():
    edge = sigmoid.flat_from(sigmoid.FLAT)
    x = jnp.array([edge - 0.01, edge + 0.01])
    share = diagnostics.saturation(x, saturation.ACTIVATIONS["sigmoid"], threshold=sigmoid.FLAT)
    assert float(share) == 0.5
