"""Exact for any mean: the normalized output against float64, for the same float32 x."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from large_means import (
    ADVERSARIES,
    DX,
    DY,
    MEAN,
    OUTPUT,
    RATIOS,
    adversary,
    check,
    check_state,
    draw,
    make_mask,
    step,
    train,
)
from strategies import values

import jbn

SHAPES = {"1024x64": (1024, 64), "8192x256": (8192, 256), "64x28x28x32": (64, 28, 28, 32)}


def test_the_textbook_formulas_miss_the_bound():
    """The bound is not trivial: E[x^2] - E[x]^2 and the two-pass mean both exceed it."""

    @jax.jit
    def textbook(x):
        mean = jnp.mean(x, 0, keepdims=True)
        two_pass = jnp.mean((x - mean) ** 2, 0, keepdims=True)
        of_squares = jnp.abs(jnp.mean(x * x, 0, keepdims=True) - mean**2)
        return [(x - mean) / jnp.sqrt(var + 1e-5) for var in (two_pass, of_squares)]

    x = draw((1024, 64), 1e3)
    for y in textbook(x):
        with pytest.raises(AssertionError, match="is above"):
            check(y, x)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_one_device_from_the_first_step_on(shape, ratio):
    x = draw(SHAPES[shape], ratio)
    y, state = train(x)
    check(y, x)
    check_state(state, x)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("std", [1e-2, 30.0])
def test_other_scales(std, sign):
    for ratio in RATIOS:
        x = sign * draw((1024, 64), ratio, std=std)
        y, state = train(x)
        check(y, x)
        check_state(state, x)


def test_a_warm_state_changes_nothing():
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        for mean in (ratio, -ratio, 1e6):
            means, ones = np.full(64, mean, np.float32), np.ones(64, np.float32)
            state = jbn.BatchNormState(means, ones, np.int32(1000))
            check(train(x, state=state)[0], x)


def test_under_vmap():
    """Several problems at once, each with its own mean."""
    x = np.stack([draw((512, 16), ratio, seed=i) for i, ratio in enumerate(RATIOS)])
    y, state = jax.device_get(jax.jit(jax.vmap(step))(x))
    for i in range(len(RATIOS)):
        check(y[i], x[i])
        check_state(jax.tree.map(lambda leaf, i=i: leaf[i], state), x[i])


@pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan])
@pytest.mark.parametrize("kind", ["boolean", "weights"])
def test_masks(kind, garbage):
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        for shape in ((1024, 1), (1024, 64)):
            mask = make_mask(shape, kind)
            dirty = np.where(mask > 0, x, np.float32(garbage))
            y, state = train(dirty, mask)
            check(y, x, mask)
            check_state(state, x, mask)


def assert_no_variance(var, size):
    """Assert that var is 0 up to the square of a float32 rounding of the values themselves."""
    assert np.all((np.asarray(var) >= 0) & (np.asarray(var) <= (6e-8 * size) ** 2 * 1e-3))


def test_a_single_row_left_is_its_own_mean():
    x = draw((1024, 64), 1e5)
    mask = np.arange(1024)[:, None] == 40
    y, state = train(x, mask)
    np.testing.assert_allclose(np.asarray(y)[40], np.zeros(64), atol=OUTPUT)
    np.testing.assert_allclose(state.mean, x[40], rtol=MEAN)
    np.testing.assert_array_equal(state.var, np.ones(64))  # A single value has no variance.
    assert_no_variance(jbn.moments(x, mask=mask).var, 1e5)


# Adversaries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries(name):
    for ratio in RATIOS:
        x = adversary(name, ratio)
        y, _ = train(x)
        check(y, x)


@pytest.mark.parametrize("rows", [2, 96, 1000, 4096])
def test_a_constant_feature_is_bias(rows):
    """Only epsilon limits how much its rounding is magnified: rsqrt(1e-5) = 316."""
    bias = np.array([1.0, -2.0, 0.5], np.float32)
    params = jbn.BatchNormParams(np.full(3, 0.7, np.float32), bias)
    _, state = jbn.init(3)

    @jax.jit
    def run(x):
        def loss(x):
            y, new = jbn.batch_norm(x, params, state, training=True, momentum=0.0)
            return jnp.sum(y**2), (y, new)

        gradient, (y, new) = jax.grad(loss, has_aux=True)(x)
        return y, new, gradient

    for value in (0.0, 1e-30, 0.1, -300.3, 12345.678, 1e5, 1e15):
        x = np.full((rows, 3), value, np.float32)
        y, new, gradient = run(x)
        assert np.isfinite(np.asarray(gradient)).all()
        assert np.isfinite(np.asarray(y)).all()
        assert np.isfinite(np.asarray(new.var)).all()
        np.testing.assert_allclose(new.mean, x[0], rtol=MEAN)
        if value <= 1e5:
            assert oracles.error(y, np.broadcast_to(bias, x.shape)) <= OUTPUT
            assert_no_variance(new.var, value)


def test_inference_at_a_large_running_mean():
    """The mean is subtracted first: y = x a + b would be off by 4e-3 at 1e5."""
    for ratio in RATIOS:
        x = draw((256, 16), ratio)
        mean = np.full(16, ratio, np.float32) + np.linspace(0, 1, 16, dtype=np.float32)
        var = np.linspace(0.5, 2, 16, dtype=np.float32)
        y = jax.jit(jbn.normalize)(x, mean, var)
        assert oracles.error(y, oracles.normalize(x, mean, var)) <= OUTPUT


# The gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_at_large_means(masked):
    mask = make_mask((1024, 1), "weights") if masked else None

    @jax.jit
    def pull(x, scale):
        params, state = jbn.init(64)
        _, pullback = jax.vjp(
            lambda x, scale: jbn.batch_norm(
                x, params._replace(scale=scale), state, training=True, mask=mask
            )[0],
            x,
            scale,
        )
        return pullback(DY)

    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        dx, dscale = pull(x, scale)
        want = oracles.Problem(
            x=oracles.exact(x),
            scale=oracles.exact(scale),
            bias=None,
            mean=np.zeros(64),
            var=np.ones(64),
            mask=mask,
        ).gradient(oracles.exact(DY))
        assert oracles.error(dx, want["x"]) <= DX
        # A sum over 1024 rows of O(1): its size is 32, and its relative error that of the terms.
        assert np.abs(np.asarray(dscale) - want["scale"]).max() <= 32 * DX


def test_half_precision_statistics_at_a_large_mean():
    """float16 at mean 300 and bfloat16 at mean 100: statistics are exact for the rounded input."""
    for dtype, mean in (("float16", 300.0), ("bfloat16", 100.0)):
        x = values(6, (4096, 8), dtype, mean=mean)
        y, state = train(x)
        check_state(state, oracles.exact(x))
        assert y.dtype == dtype
        want_mean, want_var, _ = oracles.moments(x)
        want = oracles.normalize(x, want_mean, want_var)
        assert oracles.error(y, want) <= oracles.output_tolerance(dtype)


def test_float64_keeps_its_precision():
    with jax.enable_x64(True):
        x = np.random.default_rng(7).normal(1e8, 1, (256, 4))
        params, state = jbn.init(4)
        y, _ = jbn.batch_norm(x, params, state, training=True)
        assert y.dtype == jnp.float64
        mean = x.mean(0) + (x - x.mean(0)).mean(0)
        want = (x - mean) / np.sqrt(((x - mean) ** 2).mean(0) + 1e-5)
        # The oracle rounds a mean of 1e8 to 1.5e-8 as well, so y is known no better.
        assert oracles.error(y, want) <= 3e-8


def test_sums_do_not_overflow():
    """Squares of 1e19 are at the end of float32's range; sums of squares of 1e15 are not."""
    x = draw((1024, 64), 1.0) * np.float32(1e15)
    y, state = train(x)
    check(y, x)
    assert np.isfinite(np.asarray(state.var)).all()
