"""Masks of `jbn.batch_norm`: masking equals filtering, also with one value or none left."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from batch_norm_calls import REORDERED, assert_state, oracle, setting, train
from oracles import (
    F32_GRADIENT,
    F32_VALUE,
    assert_close,
)
from strategies import values

import jbn

# Masks -----------------------------------------------------------------------------------------


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def gradient_of_sums(x, dy, params, state, mask):
    y, new = train(x, params, state, mask=mask)
    return jnp.sum(y * dy) + new.var.sum() + new.mean.sum(), (y, new)


@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_masked_equals_filtered(kind):
    params, state = setting((3,))
    x = np.asarray(values(14, (6, 4, 3)))
    keep = np.random.default_rng(14).random((6, 4)) < 0.6
    mask = keep[..., None].astype(kind)
    dy = np.where(keep[..., None], values(15, x.shape), 0)

    got, (got_y, got_state) = gradient_of_sums(x, dy, params, state, mask)
    want, (want_y, want_state) = gradient_of_sums(x[keep], dy[keep], params, state, None)
    got_y = np.asarray(got_y)
    assert_close(got_y[keep], want_y, REORDERED)
    assert_close(np.asarray(got)[keep], want, F32_GRADIENT)
    np.testing.assert_array_equal(np.asarray(got)[~keep], 0)
    chex.assert_trees_all_close(got_state, want_state, rtol=REORDERED, atol=REORDERED)


def test_y_is_computed_at_masked_positions():
    params, state = setting((3,))
    x = values(16, (6, 3))
    mask = np.arange(6)[:, None] < 4
    y, _ = train(x, params, state, mask=mask)
    mean, var, _ = oracles.moments(x, mask=mask)
    assert_close(y, oracles.normalize(x, mean, var, *params), F32_VALUE)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)
def loss_of_kept(x, params, mean_var, weight, dy):
    keep = weight > 0
    y, new = train(
        x, params, jbn.BatchNormState(*mean_var, jnp.int32(3)), mask=weight, momentum=0.9
    )
    return jnp.sum(jnp.where(keep, y, 0) * dy) + new.mean.sum() + new.var.sum(), new


@pytest.mark.lenient("nan")
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("where", ["first", "last", "all but two"])
def test_garbage_at_masked_positions_reaches_neither_values_nor_gradients(garbage, where):
    params, state = setting((3,))
    keep = {
        "first": np.arange(6) > 0,
        "last": np.arange(6) < 5,
        "all but two": np.isin(np.arange(6), [2, 4]),
    }[where][:, None]
    x = values(17, (6, 3))
    dirty = np.where(keep, x, np.float32(garbage))
    dy = np.where(keep, values(18, x.shape), 0)
    weight = keep.astype(np.float32)
    (_, new), gradient = loss_of_kept(dirty, params, tuple(state[:2]), weight, dy)
    (_, want_new), want = loss_of_kept(x, params, tuple(state[:2]), weight, dy)
    chex.assert_trees_all_close(new, want_new, rtol=REORDERED, atol=REORDERED)
    # The derivative by a weight depends on the value at its position, so it is not compared
    # where the weight is 0.
    chex.assert_trees_all_close(gradient[:3], want[:3], rtol=F32_GRADIENT, atol=F32_GRADIENT)
    assert np.all(np.asarray(gradient[0])[~keep[:, 0]] == 0)
    kept = np.asarray(gradient[3])[keep]
    assert_close(kept, np.asarray(want[3])[keep], F32_GRADIENT)


def test_a_fully_masked_batch_uses_the_running_statistics_and_keeps_the_state():
    params, state = setting((3,))
    x = values(19, (5, 4, 3))
    want = oracles.normalize(x, state.mean, state.var, *params)
    # The weight of the old statistics does not depend on the mask.
    for mask, momenta in (
        (np.zeros((5, 4, 3), bool), (0.9, 0.0)),
        (np.zeros((1, 1, 1), np.float32), (0.9, 0.0)),
        (np.zeros((1, 1, 3), bool), (jbn.cumulative,)),
    ):
        for momentum in momenta:
            y, new = train(x, params, state, momentum=momentum, mask=mask)
            assert_close(y, want, F32_VALUE)
            chex.assert_trees_all_equal(new, state)


def test_a_fully_masked_batch_has_finite_gradients_by_everything():
    params, state = setting((3,))
    x = values(20, (6, 3))
    dy = values(21, x.shape)

    def loss(x, params, mean, var, weight, epsilon):
        y, new = train(
            x,
            params,
            jbn.BatchNormState(mean, var, state.count),
            mask=weight,
            epsilon=epsilon,
            momentum=0.9,
        )
        return jnp.sum(y * dy) + jnp.sum(new.mean) + jnp.sum(new.var)

    arguments = (x, params, *state[:2], np.zeros((6, 1), np.float32), np.float32(1e-5))
    got = jax.jit(jax.grad(loss, argnums=tuple(range(6))))(*arguments)
    chex.assert_tree_all_finite(got)
    p = oracle(x, params, state, momentum=0.9, mask=np.zeros((6, 1)))
    want = p.gradient(oracles.exact(dy), np.ones(3), np.ones(3))
    assert_close(got[0], want["x"], F32_GRADIENT, "x")
    assert_close(got[1].scale, want["scale"], F32_GRADIENT, "scale")
    assert_close(got[1].bias, want["bias"], F32_GRADIENT, "bias")
    assert_close(got[2], want["mean"], F32_GRADIENT, "mean")
    assert_close(got[3], want["var"], F32_GRADIENT, "var")
    tangents = jax.tree.map(np.ones_like, arguments)
    _, tangent = jax.jit(lambda a, t: jax.jvp(loss, a, t))(arguments, tangents)
    assert np.isfinite(tangent)


@pytest.mark.lenient("nan")
def test_one_feature_fully_masked():
    params, state = setting((3,))
    x = values(22, (5, 4, 3))
    mask = jnp.asarray([[[True, False, True]]])
    dirty = np.array(x)
    dirty[..., 1] = np.nan
    y, new = train(x, params, state, mask=mask)
    want_y, want_state = oracle(x, params, state, mask=mask, momentum=0.99).forward()
    assert_close(y, want_y, F32_VALUE)
    assert_state(new, want_state)
    for moved, old in zip(new[:2], state[:2], strict=True):
        assert np.asarray(moved)[1] == np.asarray(old)[1]
    assert int(new.count) == int(state.count) + 1
    chex.assert_trees_all_equal(train(dirty, params, state, mask=mask)[1], new)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(train(x, params, state, mask=mask)[0] ** 2)))(x)
    chex.assert_tree_all_finite(gradient)


# One value -------------------------------------------------------------------------------------


def test_one_unmasked_value_has_variance_zero():
    params, state = setting((3,))
    x = values(23, (6, 3))
    mask = np.arange(6)[:, None] == 2
    y, new = train(x, params, state, mask=mask, momentum=0.0)
    assert_close(np.asarray(y)[2], params.bias, F32_VALUE)
    np.testing.assert_array_equal(new.mean, np.asarray(x)[2])
    np.testing.assert_array_equal(new.var, state.var)
    np.testing.assert_array_equal(jbn.moments(x, mask=mask).var, np.zeros(3))
    gradient = jax.jit(jax.grad(lambda x: train(x, params, state, mask=mask)[0].sum()))(x)
    chex.assert_tree_all_finite(gradient)


def test_a_batch_of_one_with_a_mask_stands():
    params, state = setting((3,))
    x = values(24, (1, 3))
    y, new = train(x, params, state, mask=jnp.ones((1, 1), bool))
    assert_close(y[0], params.bias, F32_VALUE)
    assert int(new.count) == int(state.count) + 1


def test_a_batch_of_one_with_space_stands():
    params, state = setting((3,))
    x = values(25, (1, 4, 3))
    want_y, want_state = oracle(x, params, state, momentum=0.99).forward()
    y, new = train(x, params, state)
    assert_close(y, want_y, F32_VALUE)
    assert_state(new, want_state)


def test_one_value_for_each_device_is_a_batch_over_the_axis():
    params, state = setting((3,))
    x = np.asarray(values(26, (8, 1, 3)))
    pooled = functools.partial(train, params=params, state=state, axis_name="d")
    y, new = jax.jit(jax.vmap(pooled, axis_name="d", out_axes=(0, None)))(x)
    want_y, want_state = train(x[:, 0], params, state)
    assert_close(np.asarray(y)[:, 0], want_y, REORDERED)
    chex.assert_trees_all_close(new, want_state, rtol=REORDERED, atol=REORDERED)


def test_two_values_are_plus_and_minus_one():
    params, state = jbn.init(1)
    y, _ = train(jnp.array([[3.0], [7.0]]), params, state, epsilon=1e-12)
    np.testing.assert_allclose(y, [[-1], [1]], rtol=1e-6)
