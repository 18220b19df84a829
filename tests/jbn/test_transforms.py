"""Forward and reverse mode, vmap, scan, checkpoint: all equal the plain formula."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import F32_GRADIENT, F64_GRADIENT, assert_close
from strategies import values
from transformed import assert_trees, case, ours, plain, scalar

import jbn

# Two float32 programs for one function.
REORDERED = 5e-6


def tangents(arguments, seed=7):
    return {
        name: values(seed + i, np.shape(a), a.dtype)
        for i, (name, a) in enumerate(arguments.items())
    }


def by_differences(loss, arguments, name):
    """Return central differences of a loss with respect to the entries of one argument."""
    step, want = 1e-5, np.zeros(arguments[name].shape)
    for index in np.ndindex(*want.shape):
        for sign in (1, -1):
            moved = np.array(arguments[name])
            moved[index] += sign * step
            want[index] += sign * float(loss(arguments | {name: jnp.asarray(moved)})) / (2 * step)
    return want


# First order -----------------------------------------------------------------------------------


with_gradient = jax.jit(jax.value_and_grad(scalar(ours)))


@pytest.mark.parametrize("masked", [True, False])
def test_grad_is_that_of_the_plain_formula(x64, masked):
    arguments = case(masked=masked)
    _, got = with_gradient(arguments)
    want = jax.jit(jax.grad(scalar(plain)))(arguments)
    assert_trees(got, want, F64_GRADIENT)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(want)), "nothing to compare"


@pytest.mark.parametrize("masked", [True, False])
def test_jvp_is_that_of_the_plain_formula(x64, masked):
    arguments = case(masked=masked)
    got, want = (
        jax.jit(lambda a, t, f=f: jax.jvp(lambda a: f(**a), (a,), (t,)))(
            arguments, tangents(arguments)
        )
        for f in (ours, plain)
    )
    assert_trees(got, want, F64_GRADIENT)


def test_gradient_of_weights_is_finite_differences(x64):
    arguments = case()
    got = with_gradient(arguments)[1]["mask"]
    want = by_differences(lambda a: with_gradient(a)[0], arguments, "mask")
    # Central differences: truncation step^2 = 1e-10, rounding 1e-16 * 30 / step = 3e-10.
    assert_close(got, want, 1e-8)
    assert np.abs(want).min() > 1e-4


def test_derivative_is_the_true_one_at_masked_positions(x64):
    """The output at a masked position is a value like any other, with its true derivative."""
    arguments = case() | {"mask": np.arange(10).reshape(5, 2, 1) % 3 > 0}
    mask = arguments.pop("mask")  # Boolean, so it has no derivative.
    loss = jax.jit(jax.value_and_grad(lambda a: scalar(functools.partial(ours, mask=mask))(a)))
    got = loss(arguments)[1]["x"]
    assert_close(got, by_differences(lambda a: loss(a)[0], arguments, "x"), 1e-8)


def test_jacfwd_is_jacrev(x64):
    arguments = case(shape=(4, 3))
    forward, reverse = (
        jax.jit(mode(lambda a: ours(**a)))(arguments) for mode in (jax.jacfwd, jax.jacrev)
    )
    assert_trees(forward, reverse, F64_GRADIENT)


def test_jacfwd_is_jacrev_with_a_boolean_mask_and_an_empty_feature(x64):
    arguments = case(shape=(4, 3), masked=False)
    mask = np.asarray([[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
    forward, reverse = (
        jax.jit(mode(lambda a: ours(**a, mask=mask)))(arguments)
        for mode in (jax.jacfwd, jax.jacrev)
    )
    chex.assert_tree_all_finite(forward)
    assert_trees(forward, reverse, F64_GRADIENT)


def test_linearize_is_jvp_and_its_transpose_is_vjp():
    @jax.jit
    def both_ways(arguments, tangents):
        function = jax.jit(lambda a: ours(**a))
        out, linear = jax.linearize(function, arguments)
        forward = linear(tangents), jax.jvp(function, (arguments,), (tangents,))[1]
        cotangent = jax.tree.map(jnp.cos, out)
        transposed = jax.linear_transpose(linear, arguments)(cotangent)
        want, pullback = jax.vjp(function, arguments)
        return (out, want), forward, (transposed, pullback(cotangent))

    arguments = case("float32")
    value, forward, reverse = both_ways(arguments, tangents(arguments))
    assert_trees(*value, REORDERED)
    assert_trees(*forward, F32_GRADIENT)
    assert_trees(*reverse, F32_GRADIENT)


def test_inference_has_both_modes(x64):
    arguments = case(shape=(4, 3), masked=False)
    del arguments["momentum"]

    def infer(x, scale, bias, mean, var, epsilon):
        state = jbn.BatchNormState(mean, var, jnp.int32(2))
        y, _ = jbn.batch_norm(
            x, jbn.BatchNormParams(scale, bias), state, training=False, epsilon=epsilon
        )
        return y

    def formula(x, scale, bias, mean, var, epsilon):
        return (x - mean[None]) / jnp.sqrt(var[None] + epsilon) * scale[None] + bias[None]

    want = jax.jit(jax.jacfwd(lambda a: formula(**a)))(arguments)
    for mode in (jax.jacfwd, jax.jacrev):
        assert_trees(jax.jit(mode(lambda a: infer(**a)))(arguments), want, F64_GRADIENT)


# vmap ------------------------------------------------------------------------------------------


# Groups of arguments that are mapped together; each group has its own, nested `vmap`.
MAPPED = {
    "each": [("x",), ("scale", "bias"), ("mean", "var"), ("mask",), ("momentum",), ("epsilon",)],
    "x, mask": [("x", "mask")],
    "all": [("x", "scale", "bias", "mean", "var", "epsilon", "momentum", "mask")],
}


@jax.jit
def value_and_gradient(arguments):
    return ours(**arguments), jax.grad(scalar(ours))(arguments)


@pytest.mark.parametrize("mapped", list(MAPPED))
def test_vmap_is_a_loop(mapped):
    arguments, groups = jax.device_get(case("float32")), MAPPED[mapped]
    factors = np.float32([1, 0.5])
    stacked, function = dict(arguments), value_and_gradient
    for names in groups:
        axes = {name: 0 if name in names else None for name in arguments}
        function = jax.vmap(function, in_axes=(axes,))
        for name in names:
            stacked[name] = np.stack([arguments[name] * factor for factor in factors])
    got = jax.tree.map(np.asarray, jax.jit(function)(stacked))
    # The last `vmap` is the outermost.
    for index in np.ndindex(*[2] * len(groups)):
        each = dict(arguments)
        for i, names in zip(index, reversed(groups), strict=True):
            each |= {name: arguments[name] * factors[i] for name in names}
        part = jax.tree.map(lambda leaf, index=index: leaf[index], got)
        assert_trees(part, value_and_gradient(each), F32_GRADIENT)


def test_vmap_at_another_axis_with_boolean_masks():
    params, state = jbn.init(3)
    x = np.asarray(values(1, (5, 2, 3)))  # the second axis is mapped
    masks = np.asarray([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)

    def train(x, mask):
        return jbn.batch_norm(x, params, state, training=True, mask=mask[:, None])

    mapped = jax.jit(jax.vmap(train, in_axes=(1, 0), out_axes=(1, 0)))
    y, new = jax.device_get(mapped(x, masks))
    one = jax.jit(train)
    for i in range(2):
        want_y, want = one(x[:, i], masks[i])
        assert_close(y[:, i], want_y, REORDERED)
        assert_trees(jax.tree.map(lambda leaf, i=i: leaf[i], new), want, REORDERED)
    np.testing.assert_array_equal(new.count, [1, 0])


# scan, loops, checkpoint -----------------------------------------------------------------------


def test_scan_is_a_loop():
    params, state = jbn.init(3)
    batches = values(2, (6, 5, 3), mean=1.0)

    @jax.jit
    def step(state, x):
        y, state = jbn.batch_norm(x, params, state, training=True, momentum=0.9)
        return state, y

    got_state, got = jax.lax.scan(step, state, batches)
    for x, y in zip(batches, got, strict=True):
        state, want = step(state, x)
        assert_close(y, want, REORDERED)
    assert_trees(got_state, state, REORDERED)
    assert int(got_state.count) == 6


def test_gradient_through_scan():
    _, state = jbn.init(3)
    w = values(3, (3, 3))
    batches = values(4, (3, 5, 3))

    def loss(w, unroll):
        params = jbn.BatchNormParams(w[0], w[1])

        def step(carry, x):
            state, total = carry
            y, state = jbn.batch_norm(x @ w, params, state, training=True, momentum=0.9)
            return (state, total + jnp.sum(jnp.sin(y))), None

        if unroll:
            carry = (state, 0.0)
            for x in batches:
                carry, _ = step(carry, x)
        else:
            carry, _ = jax.lax.scan(step, (state, jnp.float32(0)), batches)
        return carry[1] + jnp.sum(carry[0].mean ** 2) + jnp.sum(carry[0].var)

    got, want = (jax.jit(jax.grad(loss), static_argnums=1)(w, u) for u in (False, True))
    assert_close(got, want, F32_GRADIENT)


def test_while_cond_and_switch():
    params, state = jbn.init(3)
    x = values(5, (5, 3))

    @jax.jit
    def body(i, state):
        return jbn.batch_norm(x + i, params, state, training=True, momentum=0.5)[1]

    looped = jax.lax.fori_loop(0, 3, body, state)
    want = state
    for i in range(3):
        want = body(i, want)
    assert_trees(looped, want, REORDERED)

    @jax.jit
    def either(training):
        branches = [functools.partial(jbn.batch_norm, training=mode) for mode in (False, True)]
        return jax.lax.cond(training, branches[1], branches[0], x, params, state)

    for mode in (False, True):
        assert_trees(either(mode), jbn.batch_norm(x, params, state, training=mode), REORDERED)


def layer_for_checkpoint(x, w, state):
    y, state = jbn.batch_norm(x @ w, jbn.init(3)[0], state, training=True)
    return jnp.tanh(y), state


@functools.partial(jax.jit, static_argnames="layer")
@functools.partial(jax.grad, has_aux=True)
def gradient_of_two(w, x, layer):
    h, first = layer(x, w, jbn.init(3)[1])
    h, second = layer(h, w, jbn.init(3)[1])
    return jnp.sum(h**2), (first, second)


@pytest.mark.parametrize("policy", ["everything", "nothing", "dots"])
def test_checkpoint_moves_the_statistics_once(policy):
    """A recomputed forward pass is pure: same gradient, and the state is updated once."""
    x, w = values(6, (5, 3)), values(7, (3, 3))
    policy = {
        "everything": None,
        "nothing": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_saveable,
    }[policy]
    got = gradient_of_two(w, x, layer=jax.checkpoint(layer_for_checkpoint, policy=policy))
    assert_trees(got, gradient_of_two(w, x, layer=layer_for_checkpoint), F32_GRADIENT)
    assert [int(s.count) for s in got[1]] == [1, 1]
