"""Forward and reverse mode, second order, vmap, scan, checkpoint: all equal the plain formula."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import F32_GRADIENT, F64_GRADIENT, assert_close
from strategies import values

import jbn

# Second derivatives divide by the variance once more; values are of order 10 in float64.
F64_HESSIAN = 1e-8
# Two float32 programs for one function.
REORDERED = 5e-6


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def case(dtype="float64", shape=(5, 2, 3), masked=True):
    """Return the differentiable arguments of a small problem."""
    features = shape[-1:]
    rng = np.random.default_rng(0)
    arguments = {
        "x": values(1, shape, dtype, mean=0.3),
        "scale": values(2, features, dtype, mean=1.0, std=0.3),
        "bias": values(3, features, dtype),
        "mean": values(4, features, dtype),
        "var": rng.uniform(0.5, 2, features).astype(dtype),
        "epsilon": np.asarray(0.1, dtype),
        "momentum": np.asarray(0.7, dtype),
    }
    if masked:
        arguments["mask"] = rng.uniform(0.3, 2, (*shape[:-1], 1)).astype(dtype)
    return arguments


def ours(x, scale, bias, mean, var, epsilon, momentum, mask=None):
    y, new = jbn.batch_norm(
        x,
        jbn.BatchNormParams(scale, bias),
        jbn.BatchNormState(mean, var, jnp.int32(2)),
        training=True,
        momentum=momentum,
        epsilon=epsilon,
        mask=mask,
    )
    return y, new.mean, new.var


def plain(x, scale, bias, mean, var, epsilon, momentum, mask=None):
    """Return the textbook formula in jax, for autodiff."""
    rows = x.reshape(-1, x.shape[-1])
    w = jnp.ones_like(rows[:, :1]) if mask is None else mask.reshape(-1, 1)
    n = w.sum()
    batch_mean = (w * rows).sum(0, keepdims=True) / n
    batch_var = (w * (rows - batch_mean) ** 2).sum(0, keepdims=True) / n
    y = (rows - batch_mean) / jnp.sqrt(batch_var + epsilon) * scale[None] + bias[None]
    new_mean = momentum * mean + (1 - momentum) * batch_mean[0]
    effective = w.shape[0] if mask is None else n**2 / (w**2).sum()
    bessel = effective / (effective - 1)
    new_var = momentum * var + (1 - momentum) * batch_var[0] * bessel
    return y.reshape(x.shape), new_mean, new_var


def scalar(function):
    """Return a curved scalar of all outputs, so that no derivative vanishes by symmetry."""

    def loss(arguments):
        y, mean, var = function(**arguments)
        r = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(jnp.tanh(y) * r) + jnp.sum(y**2 * r) + jnp.sum(mean**2) + jnp.sum(var**2)

    return loss


def tangents(arguments, seed=7):
    return {
        name: values(seed + i, np.shape(a), a.dtype)
        for i, (name, a) in enumerate(arguments.items())
    }


def assert_trees(got, want, tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert_close(a, b, tolerance, jax.tree_util.keystr(path))


def by_differences(loss, arguments, name):
    """Return central differences of a loss by the entries of one argument."""
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
    """A value at a masked position is one like any other: whoever uses it gets its derivative."""
    arguments = case() | {"mask": np.arange(10).reshape(5, 2, 1) % 3 > 0}
    mask = arguments.pop("mask")  # Boolean, so that there is no derivative by it.
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


# Second order ----------------------------------------------------------------------------------


# One program of the formula for the tests of this section.
hessian_of_plain = jax.jit(jax.hessian(scalar(plain)))


@pytest.mark.parametrize("masked", [True, False])
def test_hessian_by_everything_is_that_of_the_plain_formula(x64, masked):
    arguments = case(shape=(4, 2), masked=masked)
    got = jax.jit(jax.hessian(scalar(ours)))(arguments)
    assert_trees(got, hessian_of_plain(arguments), F64_HESSIAN)


@pytest.mark.parametrize(
    "second", ["forward over forward", "reverse over reverse", "reverse over forward"]
)
def test_second_order_in_every_order_of_modes(x64, second):
    outer, inner = {
        "forward over forward": (jax.jacfwd, jax.jacfwd),
        "reverse over reverse": (jax.jacrev, jax.jacrev),
        "reverse over forward": (jax.jacrev, jax.jacfwd),
    }[second]
    arguments = case(shape=(4, 2))

    def loss(part):
        return scalar(ours)(arguments | part)

    got = jax.jit(outer(inner(loss)))({name: arguments[name] for name in ("mask", "x")})
    want = hessian_of_plain(arguments)
    want = {i: {j: want[i][j] for j in ("mask", "x")} for i in ("mask", "x")}
    assert_trees(got, want, F64_HESSIAN)


def test_third_order(x64):
    arguments = case(shape=(4, 2), masked=False)

    def third(function):
        def along(t):
            return scalar(function)(arguments | {"x": arguments["x"] * (1 + t) + t**2})

        return jax.jit(jax.grad(jax.grad(jax.grad(along))))(jnp.float64(0.3))

    assert_close(third(ours), third(plain), 1e3 * F64_HESSIAN)


def test_gradient_penalty_in_float32():
    """A gradient inside a loss, as WGAN-GP has it: reverse over reverse through two layers."""
    params, state = jbn.init(3)
    x, w = values(0, (6, 3)), values(1, (3, 3))

    def network(x, w, norm):
        return jnp.sum(jnp.tanh(norm(jnp.tanh(norm(x)) @ w)))

    def norm(x):
        return jbn.batch_norm(x, params, state, training=True)[0]

    def formula(x):
        mean = x.mean(0, keepdims=True)
        return (x - mean) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)

    def penalty(norm):
        def loss(w):
            return jnp.sum(jax.grad(lambda x: network(x, w, norm))(x) ** 2)

        return jax.jit(jax.value_and_grad(loss))(w)

    assert_trees(penalty(norm), penalty(formula), 10 * F32_GRADIENT)


# vmap ------------------------------------------------------------------------------------------

# Arguments that are mapped together, one `vmap` in another.
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
    """A recomputed forward pass is pure: same gradient, and the state moved once."""
    x, w = values(6, (5, 3)), values(7, (3, 3))
    policy = {
        "everything": None,
        "nothing": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_saveable,
    }[policy]
    got = gradient_of_two(w, x, layer=jax.checkpoint(layer_for_checkpoint, policy=policy))
    assert_trees(got, gradient_of_two(w, x, layer=layer_for_checkpoint), F32_GRADIENT)
    assert [int(s.count) for s in got[1]] == [1, 1]


def test_gradient_of_gradient_under_checkpoint_and_vmap_together(x64):
    """All of them at once, since each alone can be right by luck."""
    arguments = case(shape=(4, 2), masked=False)

    def hvp(function):
        wrapped = jax.checkpoint(scalar(function))

        def one(v):
            return jax.jvp(
                jax.grad(lambda x: wrapped(arguments | {"x": x})), (arguments["x"],), (v,)
            )[1]

        return jax.jit(jax.vmap(one))(
            np.stack([np.asarray(arguments["x"]) * i for i in (1.0, 2.0)])
        )

    assert_trees(hvp(ours), hvp(plain), F64_HESSIAN)
