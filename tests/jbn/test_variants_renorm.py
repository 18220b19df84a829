"""`jbn.batch_renorm` against the formula in float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from oracles import F32_GRADIENT, F32_VALUE, F64_GRADIENT, assert_close
from strategies import values
from variant_calls import LIMITS, REORDERED, SHAPE, infer, renorm, setting, train

import jbn


def renorm_oracle(x, params, state, r_max, d_max, mask=None, axis=-1, epsilon=1e-5):
    """Return y, r, d by the formulas of the paper's Algorithm 1, in float64."""
    mean, var, n = oracles.moments(x, axis=axis, mask=mask)
    old_mean, old_var = oracles.exact(state.mean), oracles.exact(state.var)
    mean, var = np.where(n > 0, mean, old_mean), np.where(n > 0, var, old_var)
    sigma_batch, sigma = np.sqrt(var + epsilon), np.sqrt(old_var + epsilon)
    r = np.clip(sigma_batch / sigma, 1 / r_max, r_max)
    d = np.clip((mean - old_mean) / sigma, -d_max, d_max)
    scale, bias = (oracles.exact(p) for p in params)
    table = (oracles.rows(x, axis) - mean.ravel()) / sigma_batch.ravel()
    table = (table * r.ravel() + d.ravel()) * scale.ravel() + bias.ravel()
    return oracles.unrows(table, np.shape(x), axis), r, d


@pytest.mark.parametrize(
    ("axis", "dtype", "masked"),
    [
        (-1, "float32", False),
        (-1, "float32", True),
        ((1, 2), "float32", True),
        (2, "float16", False),
    ],
)
def test_renorm_is_the_formula(axis, dtype, masked):
    x = values(20, SHAPE, dtype, mean=0.5)
    params, state = setting(oracles.feature_shape(SHAPE, axis))
    mask = np.random.default_rng(21).random(SHAPE) < 0.6 if masked else None
    y, new = renorm(x, params, state, axis=axis, mask=mask, **LIMITS)
    want, _, _ = renorm_oracle(x, params, state, **LIMITS, mask=mask, axis=axis)
    assert y.dtype == dtype
    assert_close(y, want, oracles.output_tolerance(dtype))
    chex.assert_trees_all_equal(new, train(x, params, state, axis=axis, mask=mask)[1])


def test_renorm_clips_on_both_sides():
    x = values(20, SHAPE, mean=0.5)
    mean, var, _ = oracles.moments(x)
    shift, ratio = np.array([1.0, 0.01, -1.0]), np.array([4.0, 1.05, 0.25])
    params, state = setting((3,))
    state = state._replace(
        mean=(mean + shift).astype(np.float32), var=(var * ratio).astype(np.float32)
    )
    want, r, d = renorm_oracle(x, params, state, **LIMITS)
    np.testing.assert_allclose(r, [1 / 1.1, 1.05**-0.5, 1.1], rtol=1e-5)
    np.testing.assert_allclose(d[[0, 2]], [-0.3, 0.3])
    assert -0.3 < d[1] < 0
    assert_close(renorm(x, params, state, **LIMITS)[0], want, F32_VALUE)


def test_renorm_without_room_is_batch_norm_bit_for_bit():
    params, state = setting((3,))
    x = values(22, SHAPE, mean=0.5)
    ones, no_count = np.ones(3, np.float32), np.zeros((), jax.dtypes.float0)
    cotangents = values(23, SHAPE), jbn.BatchNormState(2 * ones, 3 * ones, no_count)

    def with_gradient(function):
        out, pull = jax.vjp(lambda x, params: function(x, params, state), x, params)
        return out, pull(cotangents)

    chex.assert_trees_all_equal(
        with_gradient(train), with_gradient(functools.partial(renorm, r_max=1, d_max=0))
    )
    for used in (jbn.BatchNormParams(None, None), jbn.BatchNormParams(params.scale, None)):
        chex.assert_trees_all_equal(renorm(x, used, state, r_max=1, d_max=0), train(x, used, state))


@pytest.mark.parametrize("ratio", [0.0, 1e4, 1e5])
def test_renorm_without_limits_is_inference_by_the_old_state(ratio):
    """With settled statistics at a large mean, d is small and keeps all its digits."""
    params, state = setting((3,))
    x = np.asarray(values(24, (40, 4, 3), mean=ratio))
    state = state._replace(mean=x.mean((0, 1)) + np.float32(0.3))
    y, _ = renorm(x, params, state, r_max=np.inf, d_max=np.inf)
    want = oracles.normalize(x, state.mean, state.var, *params)
    assert_close(y, want, F32_VALUE)
    want, _, _ = renorm_oracle(x, params, state, **LIMITS)
    assert_close(renorm(x, params, state, **LIMITS)[0], want, F32_VALUE)
    cold = state._replace(mean=jnp.zeros(3))
    want, _, _ = renorm_oracle(x, params, cold, **LIMITS)
    assert_close(renorm(x, params, cold, **LIMITS)[0], want, F32_VALUE)


def test_renorm_passes_no_gradient_through_r_and_d():
    with jax.enable_x64(True):
        params, state = setting((3,), "float64")
        x, dy = values(25, SHAPE, "float64", mean=0.5), values(26, SHAPE, "float64")
        _, r, d = renorm_oracle(x, params, state, **LIMITS)

        def ours(x, params, mean, var, r_max, d_max):
            state_ = jbn.BatchNormState(mean, var, state.count)
            y, _ = jbn.batch_renorm(x, params, state_, training=True, r_max=r_max, d_max=d_max)
            return jnp.sum(y * dy)

        none = jbn.BatchNormParams(None, None)

        def constant(x, params):
            xhat = jbn.batch_norm(x, none, state, training=True)[0]
            y = (xhat * r[None, None] + d[None, None]) * params.scale[None, None]
            return jnp.sum((y + params.bias[None, None]) * dy)

        got = jax.jit(jax.grad(ours, range(6)))(x, params, *state[:2], 1.1, 0.3)
        want = jax.jit(jax.grad(constant, (0, 1)))(x, params)
        chex.assert_trees_all_close(got[:2], want, rtol=F64_GRADIENT, atol=F64_GRADIENT)
        chex.assert_trees_all_equal(got[2:], jax.tree.map(jnp.zeros_like, got[2:]))


def test_renorm_schedules_read_the_count():
    def r_max(count):
        return jnp.interp(count, jnp.array([5.0, 10.0]), jnp.array([1.0, 1.1]))

    def d_max(count):
        return jnp.where(count < 10, 0.0, 0.3)

    x = values(27, SHAPE, mean=0.5)
    params, state = setting((3,), count=5)
    got = renorm(x, params, state, r_max=r_max, d_max=d_max)
    chex.assert_trees_all_close(got, train(x, params, state), rtol=REORDERED)
    state = state._replace(count=jnp.int32(10))
    want, _, _ = renorm_oracle(x, params, state, **LIMITS)
    assert_close(renorm(x, params, state, r_max=r_max, d_max=d_max)[0], want, F32_VALUE)


def test_renorm_without_weight_uses_the_running_statistics():
    params, state = setting((3,))
    x = values(28, SHAPE)
    y, new = renorm(x, params, state, mask=np.zeros((10, 1, 1), bool), **LIMITS)
    assert_close(y, infer(x, *state[:2], params), REORDERED)
    chex.assert_trees_all_equal(new, state)


def test_renorm_in_inference_is_batch_norm():
    params, state = setting((3,))
    x = values(29, SHAPE)
    got = jbn.batch_renorm(x, params, state, training=False, **LIMITS)
    chex.assert_trees_all_equal(got, jbn.batch_norm(x, params, state, training=False))


@pytest.mark.parametrize("how", ["shard_map", "groups of vmap"])
def test_renorm_over_devices_is_one_device(how):
    params, state = setting((3,))
    x, dy = (np.asarray(values(seed, (8, 2, 2, 3), mean=0.5)) for seed in (30, 31))
    index_groups = [[0, 3, 5, 6], [1, 2, 4, 7]] if how != "shard_map" else None

    def step(x, dy):
        def loss(x):
            y, new = jbn.batch_renorm(
                x, params, state, training=True, axis_name="d", axis_index_groups=index_groups,
                **LIMITS,
            )  # fmt: skip
            return jnp.sum(y * dy), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    @jax.jit
    def one(x, dy):
        def loss(x):
            y, new = jbn.batch_renorm(x, params, state, training=True, **LIMITS)
            return jnp.sum(y * dy), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    if how == "shard_map":
        mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        step = jax.shard_map(step, mesh=mesh, in_specs=P("d"), out_specs=(P("d"), (P("d"), P())))
        dx, (y, new) = jax.device_get(jax.jit(step)(x, dy))
        new = jax.tree.map(lambda v: np.stack([v] * 8), new)
    else:
        dx, (y, new) = jax.device_get(jax.jit(jax.vmap(step, axis_name="d"))(x, dy))

    for members in index_groups or [list(range(8))]:
        want_dx, (want_y, want_new) = one(x[members], dy[members])
        assert_close(y[members], want_y, F32_VALUE)
        assert_close(dx[members], want_dx, F32_GRADIENT)
        chex.assert_trees_all_close(
            jax.tree.map(lambda v, i=members[0]: v[i], new), want_new, rtol=REORDERED
        )


def test_renorm_derivatives_against_finite_differences():
    """By x, scale and bias, with r and d clipped at their limits, where they are constant."""
    with jax.enable_x64(True):
        params, state = setting((2,), "float64")
        x = values(33, (5, 2, 2), "float64", mean=9.0, std=3.0)

        def step(x, params):
            return jbn.batch_renorm(x, params, state, training=True, **LIMITS)[0]

        check_grads(jax.jit(step), (x, params), order=1, rtol=1e-6, atol=1e-6)


def test_renorm_that_corrects_nothing_is_batch_norm_over_a_broken_state():
    x, (params, state) = jnp.array([[1.0], [2.0], [10.0], [4.0]]), jbn.init(1)
    nan = np.full(1, np.nan, np.float32)
    broken = state._replace(mean=nan, var=nan)
    options = {"training": True, "momentum": 0.0}
    want, mended = jbn.batch_norm(x, params, broken, **options)
    got, moved = jbn.batch_renorm(x, params, broken, r_max=1.0, d_max=0.0, **options)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(moved, mended, strict=True):
        np.testing.assert_array_equal(a, b)
