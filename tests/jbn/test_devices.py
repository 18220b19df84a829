"""Eight devices equal one: output, gradients of all arguments and new state, in every mode."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import DEVICES, MAPPED, MODES, compiled, one_of, shard, spread
from oracles import F32_GRADIENT, F32_STATISTICS, F32_VALUE, assert_close
from sharded_batches import (
    EPSILON,
    FEATURES,
    MOMENTUM,
    PER_DEVICE,
    SHAPE,
    assert_state,
    inputs,
    make_mask,
    problem,
)

import jbn

# Names of masks by kind. Boolean masks share a shape, and so a compiled program.
KINDS = {
    "none": ("none",),
    "boolean": ("unequal", "one shard empty", "one value", "nothing left", "one feature out"),
    "weights": ("weights", "weights and an empty shard"),
}
GROUPS = {
    "pairs": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "halves, shuffled": [[6, 0, 3, 5], [1, 2, 4, 7]],
    "singles": [[i] for i in range(8)],
    "all": [[7, 6, 5, 4, 3, 2, 1, 0]],
}


def shard_function(groups):
    def function(sharded, whole):
        x, mask = sharded
        return jbn.batch_norm(
            x,
            *whole,
            training=True,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            mask=mask,
            axis_name="d",
            axis_index_groups=groups,
        )

    return function


@jax.jit  # Also after pmap.
def product(y, new, cotangents, firsts):
    """Return the sum of the outputs times their cotangents."""
    dy, dmean, dvar = cotangents
    if new.mean.ndim > len(FEATURES):
        new = jax.tree.map(lambda a: a[firsts], new)
    total = jnp.sum(y * dy) + jnp.sum(new.mean * jnp.broadcast_to(dmean, new.mean.shape))
    return total + jnp.sum(new.var * jnp.broadcast_to(dvar, new.var.shape))


@functools.cache
def program(mode, kind, groups=None):
    """Return `(x, mask, params, state, cotangents) -> (y, new state, gradients)`."""
    named = GROUPS[groups] if groups else None
    whole_axis = named is None or len(named) == 1
    replicated = named is None  # only without groups can JAX prove that devices agree
    if mode == "jit":

        def forward(x, mask, params, state):
            return jbn.batch_norm(
                x,
                params,
                state,
                training=True,
                momentum=MOMENTUM,
                epsilon=EPSILON,
                mask=mask,
            )
    else:
        mapped = spread(shard_function(named), mode, replicated=replicated)

        def forward(x, mask, params, state):
            return mapped((x, mask), (params, state))

    def loss(x, mask, params, mean, var, count, cotangents):
        y, new = forward(x, mask, params, jbn.BatchNormState(mean, var, count))
        # If each device has a copy of the state: count it once per group, from its first device.
        firsts = [0] if whole_axis else [g[0] for g in named]
        return product(y, new, cotangents, np.array(firsts)), (y, new)

    numbers = (0, 1, 2, 3, 4) if kind == "weights" else (0, 2, 3, 4)
    function = compiled(jax.value_and_grad(loss, numbers, has_aux=True), mode)

    def run(x, mask, params, state, cotangents):
        if dmean_rank_differs(mode, replicated):
            cotangents = (cotangents[0], *(c[None] for c in cotangents[1:]))
        (_, (y, new)), gradient = jax.device_get(function(x, mask, params, *state, cotangents))
        names = ("x", "mask", "params", "mean", "var")
        return y, new, dict(zip((names[i] for i in numbers), gradient, strict=True))

    return run


def dmean_rank_differs(mode, replicated):
    """Whether the new state has a leading axis of devices."""
    return mode in ("pmap", "vmap") or not (replicated or mode == "jit")


# Gradients are sums over up to 96 values times the feature's cotangents, of size about 10.
SUMMED = 4 * F32_GRADIENT


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_equal_one(mode, kind):
    x, params, state, cotangents = inputs()
    run = program(mode, kind)
    for name in KINDS[kind]:
        mask = make_mask(name)
        placed = (x, mask), (params, state)
        if mode == "jit":
            placed = shard(placed[0]), shard(placed[1], replicate=True)
        y, new, gradient = run(*placed[0], *placed[1], cotangents)
        new = one_of(new, mode, replicated=True)

        p = problem(x, mask, params, state)
        want_y, want_state = p.forward()
        want = p.gradient(*(oracles.exact(c) for c in cotangents))
        assert_close(y, want_y, F32_VALUE, f"y, {name}")
        assert_state(new, want_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        assert_close(gradient["x"], want["x"], F32_GRADIENT, f"x, {name}")
        assert_close(gradient["params"].scale, want["scale"], SUMMED, f"scale, {name}")
        assert_close(gradient["params"].bias, want["bias"], SUMMED, f"bias, {name}")
        assert_close(gradient["mean"], want["mean"], SUMMED, f"mean, {name}")
        assert_close(gradient["var"], want["var"], SUMMED, f"var, {name}")
        if kind == "weights":
            inside = np.asarray(mask) > 0
            assert_close(
                np.asarray(gradient["mask"])[inside], want["mask"][inside], F32_GRADIENT, "mask"
            )
        if name == "nothing left":
            chex.assert_trees_all_equal(jax.device_get(new), jax.device_get(state))


@pytest.mark.parametrize(
    ("groups", "kind"),
    [("halves, shuffled", kind) for kind in KINDS]
    + [("pairs", "boolean"), ("singles", "weights"), ("all", "weights")],
)
@pytest.mark.parametrize("mode", MAPPED)
def test_groups_equal_one_device_for_each(mode, groups, kind):
    x, params, state, cotangents = inputs()
    run = program(mode, kind, groups)
    for name in KINDS[kind]:
        mask = make_mask(name)
        y, new, gradient = run(x, mask, params, state, cotangents)
        params_gradient = {"scale": 0, "bias": 0, "mean": 0, "var": 0}
        for members in GROUPS[groups]:
            rows = np.concatenate(
                [np.arange(i * PER_DEVICE, (i + 1) * PER_DEVICE) for i in members]
            )
            p = problem(x[rows], None if mask is None else mask[rows], params, state)
            want_y, want_state = p.forward()
            want = p.gradient(
                oracles.exact(cotangents[0])[rows], *map(oracles.exact, cotangents[1:])
            )
            assert_close(y[rows], want_y, F32_VALUE, f"y, {name}")
            for i in members:
                assert_state(jax.tree.map(lambda a, i=i: a[i], new), want_state)
            assert_close(gradient["x"][rows], want["x"], F32_GRADIENT, f"x, {name}")
            if kind == "weights":
                inside = np.asarray(mask[rows]) > 0
                got = np.asarray(gradient["mask"])[rows]
                assert_close(got[inside], want["mask"][inside], F32_GRADIENT, f"mask, {name}")
            for key in params_gradient:
                params_gradient[key] = params_gradient[key] + want[key]
        got = {**gradient["params"]._asdict(), "mean": gradient["mean"], "var": gradient["var"]}
        for key, want_sum in params_gradient.items():
            assert_close(got[key], want_sum, SUMMED, f"{key}, {name}")


@pytest.mark.parametrize("mode", MAPPED)
def test_gradient_taken_inside_the_mapped_function(mode):
    """In the usual training step, each device differentiates its own loss, then sums gradients."""
    x, params, state, (dy, _, _) = inputs()
    mask = make_mask("unequal")

    def function(sharded, whole):
        x, mask, dy = sharded
        params, state = whole

        def loss(x, params):
            y, new = jbn.batch_norm(
                x,
                params,
                state,
                training=True,
                momentum=MOMENTUM,
                epsilon=EPSILON,
                mask=mask,
                axis_name="d",
            )
            return jnp.sum(y * dy), new

        (dx, dparams), new = jax.grad(loss, (0, 1), has_aux=True)(x, params)
        if mode != "shard_map":  # with check_vma, JAX sums gradients of replicated values
            dparams = jax.lax.psum(dparams, "d")
        return dx, (dparams, new)

    run = spread(function, mode, replicated=True)
    dx, rest = jax.device_get(compiled(run, mode)((x, mask, dy), (params, state)))
    dparams, new = one_of(rest, mode, replicated=True)
    p = problem(x, mask, params, state)
    want = p.gradient(oracles.exact(dy))
    assert_close(dx, want["x"], F32_GRADIENT, "x")
    assert_close(dparams.scale, want["scale"], SUMMED, "scale")
    assert_close(dparams.bias, want["bias"], SUMMED, "bias")
    assert_state(new, p.forward()[1])


def tangent_product(f):
    """Return the product of the Hessian of sum(tanh(f)) with a tangent."""

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.tanh(f(x))))(x)

    return lambda x, tangent: jax.jvp(gradient, (x,), (tangent,))[1]


@functools.cache
def of_formula():
    """Return (value, tangent) and the second-order product of the formula in plain JAX."""
    x, params, _, (tangent, _, _) = inputs()
    scale, bias = (p[None, None] for p in params)

    def y(x):
        mean = x.mean((0, 1), keepdims=True)
        var = x.var((0, 1), keepdims=True)
        return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias

    @jax.jit
    def both(x, tangent):
        return jax.jvp(y, (x,), (tangent,)), tangent_product(y)(x, tangent)

    return jax.device_get(both(x, tangent))


@pytest.mark.parametrize("mode", MAPPED)
def test_forward_mode_through_the_axis(mode):
    x, params, state, (tangent, _, _) = inputs()
    run = spread(shard_function(None), mode, replicated=True)

    def y(x):
        return run((x, None), (params, state))[0]

    got = compiled(lambda x, t: jax.jvp(y, (x,), (t,)), mode)(x, tangent)
    for a, b in zip(got, of_formula()[0], strict=True):
        assert_close(a, b, F32_GRADIENT)


@pytest.mark.parametrize("mode", MAPPED)
def test_second_order_through_the_axis(mode):
    x, params, state, (tangent, _, _) = inputs()
    run = spread(shard_function(None), mode, replicated=True)

    def ours(x):
        return run((x, None), (params, state))[0]

    got = compiled(tangent_product(ours), mode)(x, tangent)
    assert_close(got, of_formula()[1], 10 * F32_GRADIENT)


@pytest.mark.parametrize("mode", MAPPED)
def test_moments_over_an_axis(mode):
    x, *_ = inputs()
    mask = make_mask("one shard empty")

    def function(sharded, _):
        x, mask = sharded
        return x, jbn.moments(x, mask=mask, axis_name="d")

    run = spread(function, mode, replicated=True)
    run = compiled(run, mode)
    # The second argument must have leaves: otherwise pmap splits only the first array.
    got = one_of(jax.device_get(run((x, mask), (x,))[1]), mode, replicated=True)
    for a, b in zip(got, oracles.moments(x, mask=mask), strict=True):
        assert_close(a, b, F32_STATISTICS)


def over_vmap(x, params, state):
    return jax.vmap(
        lambda x: jbn.batch_norm(x, params, state, training=True, axis_name="d")[0], axis_name="d"
    )(x)


def over_two_vmaps(x, params, state):
    def one(x):
        return jbn.batch_norm(x, params, state, training=True, axis_name=("a", "b"))[0]

    return jax.vmap(jax.vmap(one, axis_name="b"), axis_name="a")(x)


@pytest.mark.parametrize("wrap", ["jit", "checkpoint", "scan", "vmap of jit"])
@pytest.mark.parametrize("axes", [1, 2])
def test_differentiated_after_the_axis_is_gone(wrap, axes):
    """Apply jax.grad outside of a jit, scan or checkpoint around the vmap that binds the name.

    The outer jit only makes everything one program: jax.grad is still applied after the vmap.
    """
    x, params, state, (dy, _, _) = inputs()
    state = state._replace(mean=jnp.zeros(FEATURES), var=jnp.ones(FEATURES))
    run = functools.partial(over_devices, axes, params=params, state=state)
    wrapped = {
        "jit": jax.jit(run),
        "checkpoint": jax.checkpoint(run),
        "scan": lambda x: jax.lax.scan(lambda c, _: (c, run(x)), 0, None, length=1)[1][0],
        "vmap of jit": lambda x: jax.vmap(jax.jit(run))(x[None])[0],
    }[wrap]
    want = problem(x, None, params, state)
    want.epsilon = 1e-5

    @jax.jit
    def derivatives(x, dy):
        tangent = jax.jvp(wrapped, (x,), (dy,))[1]
        return jax.grad(lambda x: jnp.sum(wrapped(x) * dy))(x), jnp.sum(tangent * dy)

    gradient, along = derivatives(x, dy)
    assert_close(gradient, want.gradient(oracles.exact(dy))["x"], F32_GRADIENT)
    assert_close(along, tangent_inside(axes, x, dy, params, state), SUMMED * 10)


def over_devices(axes, x, params, state):
    lead, function = ((DEVICES,), over_vmap) if axes == 1 else ((4, 2), over_two_vmaps)
    return function(x.reshape(*lead, PER_DEVICE, *SHAPE[1:]), params, state).reshape(SHAPE)


@functools.partial(jax.jit, static_argnums=0)
def tangent_inside(axes, x, dy, params, state):
    """Return dy times the tangent of the function without a jit, scan or checkpoint."""
    return jnp.sum(jax.jvp(lambda x: over_devices(axes, x, params, state), (x,), (dy,))[1] * dy)


def test_scan_and_checkpoint_inside_shard_map():
    x, params, state, (dy, _, _) = inputs()

    def function(sharded, whole, wrap):
        x, dy = sharded
        params, state = whole

        def step(carry, i):
            y, new = jbn.batch_norm(x + i, params, carry, training=True, axis_name="d")
            return new, jnp.sum(y * dy)

        new, losses = jax.lax.scan(wrap(step), state, jnp.arange(3.0))
        return losses[None], new

    def loss(x, wrap):
        run = spread(functools.partial(function, wrap=wrap), "shard_map", replicated=True)
        losses, new = run((x, dy), (params, state))
        return losses.sum(), new

    got, new = jax.jit(lambda x: jax.grad(loss, has_aux=True)(x, jax.checkpoint))(x)
    want = problem(x, None, params, state)
    want.epsilon = 1e-5
    # The gradient is the same in all three steps: batch norm ignores the shift.
    assert_close(got, 3 * want.gradient(oracles.exact(dy))["x"], 3 * F32_GRADIENT)
    assert int(new.count) == int(state.count) + 3
