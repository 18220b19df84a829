"""`jbn.moments` and `jbn.merge_moments` against float64 NumPy."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import F32_STATISTICS, F64_VALUE, assert_close
from strategies import garbage_at, make_mask, problems, values

import jbn

# A few ulps of float32, for two compilations of the same sums.
REORDERED = 5e-7


moments = jax.jit(jbn.moments, static_argnames="axis")
merge_moments = jax.jit(jbn.merge_moments)


def assert_moments(got, want, tolerance=F32_STATISTICS):
    for name, a, b in zip(("mean", "var", "count"), got[:3], want[:3], strict=True):
        assert_close(a, b, tolerance, name)


@pytest.mark.lenient("nan")
@pytest.mark.parametrize("problem", problems(10))
def test_moments_of_any_shape_axis_mask_and_dtype(problem):
    with jax.enable_x64(problem.wide):
        x = problem.make_x()
        mask = problem.make_mask()
        want = oracles.moments(x, axis=problem.axis, mask=mask)
        x, mask = garbage_at(x, mask)
        got = moments(x, mask=mask, axis=problem.axis)
        weighted = mask is not None and mask.dtype != bool
        assert isinstance(got, jbn.WeightedMoments if weighted else jbn.Moments)
        chex.assert_equal_shape(got)
        assert got.mean.shape == oracles.feature_shape(x.shape, problem.axis)
        assert got.mean.dtype == problem.statistics_dtype
        assert got.var.dtype == problem.real_dtype
        assert_moments(got, want, F64_VALUE if problem.wide else F32_STATISTICS)
        assert np.all(np.asarray(got.var) >= 0)


def test_feature_axes_come_in_the_order_of_x():
    x = values(0, (3, 4, 5))
    got = moments(x, axis=(2, 0))
    assert got.mean.shape == (3, 5)
    chex.assert_trees_all_equal(got, moments(x, axis=(0, 2)), moments(x, axis=(-1, -3)))


@pytest.mark.parametrize("kind", ["example", "position"])
def test_masked_equals_filtered(kind):
    x = values(1, (6, 4, 3))
    keep = np.random.default_rng(1).random((6, 1, 1) if kind == "example" else (6, 4, 1)) < 0.6
    filtered = np.asarray(x)[np.broadcast_to(keep, (*x.shape[:2], 1))[..., 0]]
    assert 1 < len(filtered) < 24
    got = moments(x, mask=keep)
    assert_moments(got, moments(filtered), REORDERED)


def test_whole_weights_are_repetitions():
    x = np.asarray(values(2, (4, 3)))
    repeats = np.array([3, 0, 1, 2])
    got = moments(x, mask=np.float32(repeats)[:, None])
    assert_moments(got, moments(np.repeat(x, repeats, axis=0)), REORDERED)


def test_scaled_weights_change_only_the_count():
    x = values(3, (8, 3))
    w = np.random.default_rng(3).uniform(0.1, 1, (8, 1)).astype(np.float32)
    one, ten = moments(x, mask=w), moments(x, mask=10 * w)
    assert_moments(ten, (one.mean, one.var, 10 * np.asarray(one.count)), F32_STATISTICS)


@pytest.mark.lenient("nan")
@pytest.mark.parametrize("dtype", ["bool", "float32"])
def test_nothing_left_is_count_zero_and_finite(dtype):
    x = np.full((4, 3), np.nan, np.float32)
    got = moments(x, mask=np.zeros((4, 1), dtype))
    np.testing.assert_array_equal(got.count, np.zeros(3))
    chex.assert_tree_all_finite(got)


def test_one_feature_out():
    x = values(4, (5, 3))
    mask = np.array([[True, False, True]])
    got = moments(x, mask=mask)
    np.testing.assert_array_equal(got.count, [5, 0, 5])
    chex.assert_tree_all_finite(got)
    want = moments(x)
    for a, b in zip(got, want, strict=True):
        assert_close(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]], REORDERED)


def test_conv_moments_are_those_of_the_dense_reshape():
    """Section 3.2 of the paper: m' = m p q values for each feature map."""
    m, p, q, n = 4, 5, 6, 7
    x = np.asarray(values(5, (m, p, q, n)))
    conv, dense = moments(x), moments(x.reshape(m * p * q, n))
    np.testing.assert_array_equal(conv.count, np.full(n, m * p * q))
    assert_moments(conv, dense, REORDERED)


# Merging ---------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.booleans())
def test_merged_parts_are_the_whole(sizes, weighted):
    total = sum(sizes)
    x = np.asarray(values(6, (max(total, 1), 3)))[:total] + 5
    w = np.random.default_rng(6).uniform(0.1, 2, (total, 1)) if weighted else np.ones((total, 1))
    ends = np.cumsum([0, *sizes])
    parts = []
    for start, end in itertools.pairwise(ends):
        mean, var, count = oracles.moments(x[start:end], mask=w[start:end])
        parts.append(jbn.Moments(*(np.float32(a) for a in (mean, var, count))))
    got = merge_moments(*parts)
    assert isinstance(got, jbn.Moments)
    chex.assert_tree_all_finite(got)
    want = oracles.moments(x, mask=w)
    if total:
        assert_moments(got, want)
    else:
        np.testing.assert_array_equal(got.count, np.zeros(3))


def test_merge_of_moments_with_features_of_unequal_counts():
    x = np.asarray(values(7, (9, 4))) + 1e3
    mask = np.random.default_rng(7).random((9, 4)) < 0.5
    mask[:3, 0] = mask[3:, 1] = mask[:, 2] = False

    @jax.jit
    def merged(x, mask):
        parts = (slice(3), slice(3, 5), slice(5, None))
        return jbn.merge_moments(*(jbn.moments(x[part], mask=mask[part]) for part in parts))

    got = merged(x, mask)
    want = oracles.moments(x, mask=mask)
    chex.assert_tree_all_finite(got)
    some = want[2] > 0
    assert not some.all()
    np.testing.assert_array_equal(got.count, want[2])
    assert_close(np.asarray(got.mean)[some] / 1e3, want[0][some] / 1e3, F32_STATISTICS)
    # The parts' means are float32 numbers near 1e3, so their differences carry 3e-5 of rounding.
    assert_close(np.asarray(got.var)[some], want[1][some], 2e-4)


def test_merge_is_associative_and_commutes():
    a, b, c = (moments(np.asarray(values(8 + i, (3 + i, 2))) + i) for i in range(3))
    whole = merge_moments(a, b, c)
    assert_moments(merge_moments(merge_moments(a, b), c), whole, F32_STATISTICS)
    assert_moments(merge_moments(c, a, b), whole, F32_STATISTICS)
    chex.assert_trees_all_equal(merge_moments(a), a)
    assert_moments(jbn.merge_moments(a, b, c), whole, REORDERED)  # op by op


def test_jit_equals_eager():
    x = values(18, (5, 4, 3))
    mask = jnp.asarray(np.random.default_rng(18).random((5, 4, 1)) < 0.7)
    for m in (None, mask):
        assert_moments(jbn.moments(x, mask=m), moments(x, mask=m), REORDERED)


def test_merge_ignores_the_numbers_of_an_empty_part():
    full = moments(values(12, (4, 2)))
    empty = jbn.Moments(np.full(2, 1e30, "f"), np.full(2, 1e30, "f"), np.zeros(2, "f"))
    merged = merge_moments(empty, full, empty)
    assert_moments(merged, full, REORDERED)
    chex.assert_tree_all_finite(merge_moments(empty, empty))


def test_merge_adds_no_error_at_a_large_mean():
    # Means near 1e5 merge through their differences; E[x^2] - E[x]^2 would be off by 1e3.
    x = np.asarray(values(13, (64, 3))) + 1e5
    got = merge_moments(*(moments(part) for part in np.split(x, 8)))
    want = oracles.moments(x)
    # The parts' means are rounded to multiples of 1/128, and var(rounding) = 1/128^2/12 = 5e-6
    # beside a cross term of 2 * .35 / sqrt(8) * .0023.
    assert_close(got.var, want[1], 5e-3)


def test_moments_are_differentiable():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(14).normal(size=(5, 3)))
        w = jnp.asarray(np.random.default_rng(15).uniform(0.2, 2, (5, 1)))

        def loss(x, w, compute):
            mean, var, count = compute(x, w)[:3]
            return jnp.sum(mean**2 + jnp.sin(var)) + jnp.sum(count**2)

        def plain(x, w):
            n = jnp.broadcast_to(w, x.shape).sum(0)
            mean = (w * x).sum(0) / n
            return mean, (w * (x - mean[None]) ** 2).sum(0) / n, n

        got, want = (
            jax.jit(jax.grad(functools.partial(loss, compute=compute), (0, 1)))(x, w)
            for compute in (lambda x, w: moments(x, mask=w), plain)
        )
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, oracles.F64_GRADIENT)


def test_a_single_value_has_variance_zero():
    """A part may hold a single value: the merged whole is exact."""
    x = np.asarray(values(16, (5, 3)))
    parts = [moments(x[i : i + 1], mask=np.ones((1, 1), bool)) for i in range(5)]
    np.testing.assert_array_equal(parts[0].var, np.zeros(3))
    assert_moments(merge_moments(*parts), moments(x), F32_STATISTICS)


def test_masks_of_every_broadcastable_shape():
    x = values(17, (4, 3, 2))
    full = np.random.default_rng(17).random((4, 3, 2)) < 0.7
    shapes = [(1, 1, 1), (1, 1, 2), (1, 3, 2), (1, 3, 1), (4, 1, 1), (4, 3, 1), (4, 3, 2)]
    masks = [make_mask(full, shape) for shape in shapes]
    each = jax.jit(lambda x, masks: [jbn.moments(x, mask=mask) for mask in masks])
    for mask, got in zip(masks, each(x, masks), strict=True):
        assert_moments(got, oracles.moments(x, mask=mask))
