"""`jbn.init`, `jbn.batch_norm` and `jbn.normalize` on one device, against float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import (
    F32_GRADIENT,
    F32_STATISTICS,
    F32_VALUE,
    F64_GRADIENT,
    F64_VALUE,
    Problem,
    assert_close,
    output_tolerance,
)
from strategies import garbage_at, problems, values

import jbn

# The same function compiled in two ways: the order of sums and fused multiply-adds differ.
REORDERED = 2e-6
# torch and Flax in float32: their own errors at mean 0.5, std 1, added to ours.
PEER = 1e-5


def train(x, params, state, **options):
    return call(x, params, state, training=True, **options)


def infer(x, params, state, **options):
    return call(x, params, state, training=False, **options)


def call(x, params, state, **options):
    """Call jitted, with one compilation for all tests, whatever momentum and epsilon."""
    options = {"momentum": 0.99, "epsilon": 1e-5} | options
    arrays = {k: v for k, v in options.items() if isinstance(v, jax.Array | np.ndarray | float)}
    static = tuple((k, v) for k, v in options.items() if k not in arrays)
    return jitted(static)(x, params, state, **arrays)


@functools.cache
def jitted(static):
    return jax.jit(functools.partial(jbn.batch_norm, **dict(static)))


def setting(features, seed=0, dtype="float32", statistics="float32", count=3):
    """Return params and a state that are neither ones nor zeros."""
    real = "float64" if statistics == "float64" else "float32"
    params = jbn.BatchNormParams(
        values(seed, features, dtype, mean=1.0, std=0.3), values(seed + 1, features, dtype)
    )
    rng = np.random.default_rng(seed + 2)
    state = jbn.BatchNormState(
        values(seed + 3, features, statistics),
        jax.device_put(rng.uniform(0.5, 2, features).astype(real)),
        jax.device_put(np.int32(count)),
    )
    return params, state


def oracle(x, params, state, **options):
    return Problem(
        x=oracles.exact(x),
        scale=None if params.scale is None else oracles.exact(params.scale),
        bias=None if params.bias is None else oracles.exact(params.bias),
        mean=oracles.exact(state.mean),
        var=oracles.exact(state.var),
        count=int(state.count),
        **options,
    )


def assert_state(got, want, tolerance=F32_STATISTICS):
    for name, a, b in zip(("mean", "var", "count"), got, want, strict=True):
        assert_close(a, b, tolerance, name)


# init ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 7, (3, 5)])
def test_init(features):
    shape = features if isinstance(features, tuple) else (features,)
    params, state = jbn.init(features)
    assert isinstance(params, jbn.BatchNormParams)
    assert isinstance(state, jbn.BatchNormState)
    np.testing.assert_array_equal(params.scale, np.ones(shape))
    np.testing.assert_array_equal(params.bias, np.zeros(shape))
    np.testing.assert_array_equal(state.mean, np.zeros(shape))
    np.testing.assert_array_equal(state.var, np.ones(shape))
    assert int(state.count) == 0
    assert state.count.shape == ()
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((params, state))]
    assert dtypes == ["float32"] * 4 + ["int32"]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((params, state)))


def test_init_without_scale_or_bias():
    assert jbn.init(3, use_scale=False)[0].scale is None
    assert jbn.init(3, use_bias=False)[0].bias is None
    assert jax.tree.leaves(jbn.init(3, use_scale=False, use_bias=False)[0]) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_init_keeps_statistics_in_float32(dtype):
    params, state = jbn.init(3, param_dtype=dtype)
    assert params.scale.dtype == params.bias.dtype == dtype
    assert state.mean.dtype == state.var.dtype == jnp.float32


def test_init_for_complex_values():
    params, state = jbn.init(3, param_dtype=jnp.complex64)
    assert params.scale.dtype == params.bias.dtype == state.mean.dtype == jnp.complex64
    assert state.var.dtype == jnp.float32


def test_init_takes_numpy_integers_and_runs_under_jit():
    chex.assert_trees_all_equal(jbn.init(np.int64(3)), jbn.init(3), jax.jit(lambda: jbn.init(3))())


# Values ----------------------------------------------------------------------------------------


@pytest.mark.lenient("nan")
@pytest.mark.parametrize("problem", problems(12))
def test_training_on_any_shape_axis_mask_and_dtype(problem):
    unbiased, momentum, epsilon = (
        problem.rng(i).choice(values).item()
        for i, values in enumerate(([True, False], [0.0, 0.9, 1.0], [1e-5, 1e-2]), 2)
    )
    with jax.enable_x64(problem.wide):
        x, mask = problem.make_x(), problem.make_mask()
        params, state = setting(
            problem.features, dtype=problem.real_dtype, statistics=problem.statistics_dtype
        )
        options = {
            "axis": problem.axis,
            "momentum": momentum,
            "epsilon": epsilon,
            "unbiased": unbiased,
        }
        want_y, want_state = oracle(x, params, state, mask=mask, **options).forward()
        given_x, given_mask = garbage_at(x, mask)
        y, new = jax.jit(functools.partial(jbn.batch_norm, training=True, **options))(
            given_x, params, state, mask=given_mask
        )
        assert y.dtype == x.dtype
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        there = np.broadcast_to(True if mask is None else mask > 0, x.shape)
        tolerance = output_tolerance(problem.dtype)
        assert_close(np.asarray(y)[there], want_y[there], tolerance, "y")
        assert_state(new, want_state, F64_VALUE if problem.wide else F32_STATISTICS)


@pytest.mark.parametrize("problem", problems(10))
def test_inference_on_any_shape_axis_and_dtype(problem):
    scaled, biased = problem.rng(2).random(2) < 0.5
    with jax.enable_x64(problem.wide):
        x, mask = problem.make_x(), problem.make_mask()
        params, state = setting(
            problem.features, dtype=problem.real_dtype, statistics=problem.statistics_dtype
        )
        params = jbn.BatchNormParams(
            params.scale if scaled else None, params.bias if biased else None
        )
        mask = None if mask is None else jnp.asarray(mask)
        y, new = jax.jit(functools.partial(infer, axis=problem.axis))(x, params, state, mask=mask)
        want = oracles.normalize(x, state.mean, state.var, *params, axis=problem.axis)
        assert y.dtype == x.dtype
        assert_close(y, want, output_tolerance(problem.dtype), "y")
        chex.assert_trees_all_equal(new, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_inference_returns_state_as_it_came():
    params, state = setting((3,))
    x = values(0, (4, 3))
    for options in ({}, {"momentum": 0.5}, {"momentum": jbn.cumulative}, {"axis_name": "unused"}):
        if "axis_name" in options:
            _, new = jax.vmap(
                lambda x: infer(x, params, state, axis_name="unused"),
                axis_name="unused",
                out_axes=(0, None),
            )(x[None])
        else:
            _, new = infer(x, params, state, **options)
        chex.assert_trees_all_equal(new, state)


def test_inference_is_deterministic_and_a_batch_of_one_is_a_row_of_the_batch():
    params, state = setting((3,))
    x = np.asarray(values(1, (6, 3)))
    whole, _ = infer(x, params, state)
    for i in range(6):
        one, _ = infer(x[i : i + 1], params, state)
        assert_close(np.asarray(one)[0], np.asarray(whole)[i], REORDERED)
    other, _ = infer(np.concatenate([x[:2], 5 + x[2:]]), params, state)
    np.testing.assert_array_equal(np.asarray(other)[:2], np.asarray(whole)[:2])


def test_training_is_stochastic():
    params, state = setting((3,))
    x = np.asarray(values(2, (6, 3)))
    one, _ = train(x, params, state)
    two, _ = train(np.concatenate([x[:2], 5 + x[2:]]), params, state)
    assert np.abs(np.asarray(one)[:2] - np.asarray(two)[:2]).max() > 0.1


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_without_scale_or_bias(use_scale, use_bias):
    params, state = setting((3,))
    params = jbn.BatchNormParams(
        params.scale if use_scale else None, params.bias if use_bias else None
    )
    x, dy = values(3, (6, 3)), values(4, (6, 3))

    def loss(params):
        y, new = train(x, params, state)
        return jnp.sum(y * dy), (y, new)

    gradient, (y, new) = jax.jit(jax.grad(loss, has_aux=True))(params)
    want_y, want_state = oracle(x, params, state, momentum=0.99).forward()
    assert_close(y, want_y, F32_VALUE)
    assert_state(new, want_state)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    want = oracle(x, params, state, momentum=0.99).gradient(oracles.exact(dy))
    for name in gradient._fields:
        if getattr(gradient, name) is not None:
            assert_close(getattr(gradient, name), want[name], F32_GRADIENT, name)


def test_defaults_are_momentum_99_epsilon_1e_5_unbiased_last_axis():
    params, state = setting((3,))
    x = values(5, (5, 4, 3))
    default = functools.partial(jbn.batch_norm, x, params, state, training=True)
    explicit = default(axis=-1, momentum=0.99, epsilon=1e-5, unbiased=True, mask=None)
    chex.assert_trees_all_equal(default(), explicit)
    want_y, want_state = oracle(x, params, state, momentum=0.99, epsilon=1e-5).forward()
    assert_close(explicit[0], want_y, F32_VALUE)
    assert_state(explicit[1], want_state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_half_precision_has_float32_statistics(dtype, param_dtype):
    """The peers that keep statistics in x's dtype are off by .025 at mean 100, or NaN at 300."""
    x = values(6, (64, 3), dtype, mean=300.0 if dtype == "float16" else 20.0)
    params, state = setting((3,), dtype=param_dtype)
    # Half is a momentum that float32 holds exactly, so that only the statistics are compared.
    y, new = train(x, params, state, momentum=0.5)
    want_y, want_state = oracle(x, params, state, momentum=0.5).forward()
    assert y.dtype == dtype
    assert new.mean.dtype == new.var.dtype == jnp.float32
    assert_close(y, want_y, output_tolerance(dtype))
    assert_state(new, want_state)


def test_params_of_higher_precision_do_not_widen_y():
    with jax.enable_x64(True):
        x = values(7, (6, 3), "float32")
        params, state = setting((3,), dtype="float64", statistics="float64")
        for y, new in (train(x, params, state), infer(x, params, state)):
            assert y.dtype == jnp.float32
            chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_complex_input_has_a_complex_mean_and_a_real_variance():
    x = values(8, (16, 3), "complex64", mean=1.0)
    params, state = setting((3,), statistics="complex64")
    y, new = train(x, params, state, unbiased=False, momentum=0.0)
    exact = oracles.exact(x)
    assert y.dtype == jnp.complex64
    assert new.mean.dtype == jnp.complex64
    assert new.var.dtype == jnp.float32
    assert_close(new.mean, exact.mean(0), F32_STATISTICS)
    assert_close(new.var, (np.abs(exact - exact.mean(0)) ** 2).mean(0), F32_STATISTICS)


# The state -------------------------------------------------------------------------------------


def test_pure():
    params, state = setting((3,))
    x = values(9, (6, 3))
    before = jax.tree.map(np.array, (x, params, state))
    first, second = (jbn.batch_norm(x, params, state, training=True) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal((x, params, state), before)
    assert int(first[1].count) == 4


@pytest.mark.parametrize("momentum", [0.9, jbn.cumulative, jbn.debiased(0.9)])
def test_one_trace_for_many_steps(momentum):
    params, state = jbn.init(3)

    chex.clear_trace_counter()  # it counts by name, over all parameters of this test

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(x, params, state):
        return train(x, params, state, momentum=momentum)

    for i in range(5):
        _, state = step(values(i, (4, 3)), params, state)
    assert int(state.count) == 5


def test_momentum_and_epsilon_may_be_traced():
    params, state = setting((3,))
    x = values(10, (6, 3))

    chex.clear_trace_counter()  # it counts by name, over all parameters of this test

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(momentum, epsilon):
        return train(x, params, state, momentum=momentum, epsilon=epsilon)

    for momentum, epsilon in ((0.9, 1e-5), (0.0, 1e-3), (1.0, 1.0)):
        y, new = step(momentum, epsilon)
        p = oracle(x, params, state, momentum=momentum, epsilon=epsilon)
        want_y, want_state = p.forward()
        assert_close(y, want_y, F32_VALUE)
        assert_state(new, want_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    infer_y, _ = jax.jit(lambda e: infer(x, params, state, epsilon=e))(0.5)
    assert_close(
        infer_y, oracles.normalize(x, state.mean, state.var, *params, epsilon=0.5), F32_VALUE
    )


def test_momentum_as_schedule_of_the_count():
    params, state = setting((3,), count=3)
    x = values(11, (6, 3))
    for schedule, weight in (
        (lambda count: 1 - 1 / (count + 1), 0.75),
        (jbn.cumulative, 0.75),
        (jbn.debiased(0.5), 0.5 * (1 - 0.5**3) / (1 - 0.5**4)),
    ):
        _, new = train(x, params, state, momentum=schedule)
        want = oracle(x, params, state, momentum=weight).forward()[1]
        assert_state(new, want)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_jit_equals_eager():
    params, state = setting((3,))
    x = values(12, (5, 4, 3))
    mask = np.random.default_rng(12).random((5, 4, 1)) < 0.7
    for training in (True, False):
        function = functools.partial(jbn.batch_norm, training=training)
        masks = (None, jnp.asarray(mask), jnp.asarray(0.3 * mask, jnp.float32))
        each = jax.jit(lambda masks, *args, f=function: [f(*args, mask=mask) for mask in masks])
        for m, got in zip(masks, each(masks, x, params, state), strict=True):
            want = function(x, params, state, mask=m)
            chex.assert_trees_all_close(got, want, rtol=REORDERED, atol=REORDERED)


def test_numpy_arrays_are_arrays():
    params, state = setting((3,))
    x = np.asarray(values(13, (6, 3)))
    plain = jax.tree.map(np.asarray, (params, state))
    y, new = train(x, *plain, mask=np.ones((6, 1), bool))
    want_y, want = train(jnp.asarray(x), params, state)
    chex.assert_trees_all_close((y, new), (want_y, want), rtol=REORDERED, atol=REORDERED)


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
    # The derivative by a weight asks what the value at it would do, so it is left out here.
    chex.assert_trees_all_close(gradient[:3], want[:3], rtol=F32_GRADIENT, atol=F32_GRADIENT)
    assert np.all(np.asarray(gradient[0])[~keep[:, 0]] == 0)
    kept = np.asarray(gradient[3])[keep]
    assert_close(kept, np.asarray(want[3])[keep], F32_GRADIENT)


def test_a_fully_masked_batch_uses_the_running_statistics_and_keeps_the_state():
    params, state = setting((3,))
    x = values(19, (5, 4, 3))
    want = oracles.normalize(x, state.mean, state.var, *params)
    # The weight of the old statistics knows of no mask.
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


# The gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", problems(8, dtypes=("float32", "float64")))
def test_gradient_of_output_and_state_by_everything(problem):
    unbiased = bool(problem.rng(2).random() < 0.5)
    with jax.enable_x64(problem.wide):
        x, mask = problem.make_x(), problem.make_mask()
        params, state = setting(
            problem.features, dtype=problem.dtype, statistics=problem.real_dtype
        )
        dy = values(1, x.shape, problem.dtype)
        dmean, dvar = (values(i, problem.features, problem.dtype) for i in (2, 3))
        weight = None if mask is None else jnp.asarray(mask, x.dtype if problem.weighted else bool)

        def loss(x, scale, bias, mean, var, epsilon, momentum, weight):
            y, new = train(
                x,
                jbn.BatchNormParams(scale, bias),
                jbn.BatchNormState(mean, var, state.count),
                axis=problem.axis,
                momentum=momentum,
                epsilon=epsilon,
                unbiased=unbiased,
                mask=weight,
            )
            return jnp.sum(y * dy) + jnp.sum(new.mean * dmean) + jnp.sum(new.var * dvar)

        names = ("x", "scale", "bias", "mean", "var", "epsilon", "momentum", "mask")
        weighted = mask is not None and problem.weighted
        number = 8 if weighted else 7
        # Epsilon is large so that features of two almost equal values have moderate gradients.
        got = jax.jit(jax.grad(loss, argnums=tuple(range(number))))(
            x, *params, *state[:2], 0.1, 0.7, weight
        )
        p = oracle(
            x,
            params,
            state,
            axis=problem.axis,
            momentum=0.7,
            epsilon=0.1,
            unbiased=unbiased,
            mask=mask,
        )
        want = p.gradient(oracles.exact(dy), oracles.exact(dmean), oracles.exact(dvar))
        tolerance = F64_GRADIENT if problem.wide else F32_GRADIENT
        for name, value in zip(names[:number], got, strict=True):
            target = want[name]
            if name == "mask":
                # At weight zero a position is out, garbage and all: no derivative is asked there.
                target = sum_to(target, np.shape(mask))[mask > 0]
                value = np.asarray(value)[mask > 0]
            assert_close(value, target, tolerance * np.sqrt(x.size), name)


def sum_to(gradient, shape):
    """Undo broadcasting, as a derivative does."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1)
    return gradient.sum(axes, keepdims=True).reshape(shape)


def test_closed_form_of_the_paper():
    """Section 3: dx = gamma rstd (dy - mean(dy) - xhat mean(dy xhat)), written out once more."""
    with jax.enable_x64(True):
        params, state = setting((4,), dtype="float64", statistics="float64")
        x, dy = values(1, (7, 4), "float64"), values(2, (7, 4), "float64")
        y, pullback = jax.vjp(lambda x, p: train(x, p, state)[0], x, params)
        dx, dparams = pullback(dy)
        v, g = np.asarray(x), np.asarray(dy)
        rstd = 1 / np.sqrt(v.var(0) + 1e-5)
        xhat = (v - v.mean(0)) * rstd
        want = rstd * np.asarray(params.scale) * (g - g.mean(0) - xhat * (g * xhat).mean(0))
        assert_close(y, np.asarray(params.scale) * xhat + np.asarray(params.bias), F64_VALUE)
        assert_close(dx, want, F64_GRADIENT)
        assert_close(dparams.scale, (g * xhat).sum(0), F64_GRADIENT)
        assert_close(dparams.bias, g.sum(0), F64_GRADIENT)


def test_a_batch_of_one_has_no_gradient():
    """One value is its own mean: y is bias whatever x."""
    params, state = setting((3,))
    x = values(3, (1, 3))
    mask = jnp.ones((1, 1), bool)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(train(x, params, state, mask=mask)[0] ** 2)))(x)
    # What cancels is as large as 1 / sqrt(epsilon), 316.
    np.testing.assert_allclose(gradient, np.zeros((1, 3)), atol=316 * F32_GRADIENT)


def test_inference_gradient():
    params, state = setting((3,))
    x, dy = values(4, (6, 3)), values(5, (6, 3))

    def plain(x, scale, bias, mean, var):
        return (
            (x - mean[None]) * jax.lax.rsqrt(var + 1e-5)[None] * scale[None] + bias[None]
        ).ravel() @ dy.ravel()

    def ours(x, scale, bias, mean, var):
        y, _ = infer(
            x, jbn.BatchNormParams(scale, bias), jbn.BatchNormState(mean, var, state.count)
        )
        return y.ravel() @ dy.ravel()

    arguments = (x, *params, *state[:2])
    numbers = tuple(range(5))
    chex.assert_trees_all_close(
        jax.jit(jax.grad(ours, numbers))(*arguments),
        jax.jit(jax.grad(plain, numbers))(*arguments),
        rtol=F32_GRADIENT,
        atol=F32_GRADIENT,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gradient(dtype):
    params, state = setting((3,))
    x, dy = values(6, (32, 3), dtype), values(7, (32, 3), dtype)
    got, dparams = jax.jit(jax.grad(lambda x, p: jnp.sum(train(x, p, state)[0] * dy), (0, 1)))(
        x, params
    )
    want = oracle(x, params, state).gradient(oracles.exact(dy))
    assert got.dtype == dtype
    assert dparams.scale.dtype == jnp.float32
    assert_close(got, want["x"], F32_GRADIENT + 2 * oracles.HALF_ULP[dtype])
    # sum(dy xhat): the product y dy is rounded to x's dtype by the loss, not by batch norm, and
    # dy reaches us exactly.
    assert_close(dparams.scale, want["scale"], F32_GRADIENT)
    assert_close(dparams.bias, want["bias"], F32_GRADIENT)


@pytest.mark.lenient("promotion")
def test_complex_gradient_is_that_of_the_plain_formula():
    x, dy = values(8, (9, 3), "complex64", mean=0.5), values(9, (9, 3), "complex64")
    params, state = setting((3,), statistics="complex64")

    def plain(x, scale, bias):
        mean = x.mean(0, keepdims=True)
        var = (jnp.abs(x - mean) ** 2).mean(0, keepdims=True)
        y = (x - mean) / jnp.sqrt(var + 1e-5) * scale[None] + bias[None]
        return jnp.sum(jnp.real(y * dy))

    def ours(x, scale, bias):
        y, _ = train(x, jbn.BatchNormParams(scale, bias), state)
        return jnp.sum(jnp.real(y * dy))

    got, want = (jax.jit(jax.grad(f, (0, 1, 2)))(x, *params) for f in (ours, plain))
    chex.assert_trees_all_close(got, want, rtol=F32_GRADIENT, atol=F32_GRADIENT)


# What is kept for the backward pass ------------------------------------------------------------


def kept(function, x, *arguments):
    """Return the number of different arrays as large as x that the pullback holds."""
    _, pullback = jax.vjp(function, x, *arguments)
    leaves = jax.tree.leaves(pullback)
    return len({id(leaf) for leaf in leaves if leaf.size >= x.size})


def plain_train(x, params, state):
    mean = x.mean(0, keepdims=True)
    var = ((x - mean) ** 2).mean(0, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * params.scale[None] + params.bias[None]


@pytest.mark.parametrize("compiled", [True, False])
def test_backward_keeps_one_array_like_x(compiled):
    params, state = setting((64,))
    x = values(10, (512, 64))
    wrap = jax.jit if compiled else lambda f: f
    ours = kept(wrap(lambda x, p: jbn.batch_norm(x, p, state, training=True)[0]), x, params)
    assert kept(wrap(lambda x, p: plain_train(x, p, state)), x, params) >= 2, "counts nothing"
    assert ours == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_backward_keeps_no_more_memory_than_x(dtype, compiled):
    """Half precision keeps half precision: a float32 copy would be two arrays like x."""
    params, state = setting((64,))
    x = values(10, (512, 64), dtype)
    wrap = jax.jit if compiled else lambda f: f
    _, pullback = jax.vjp(
        wrap(lambda x, p: jbn.batch_norm(x, p, state, training=True)[0]), x, params
    )
    large = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size}
    assert sum(large.values()) == x.nbytes


def test_backward_keeps_vectors_besides():
    params, state = setting((64,))
    x = values(11, (512, 64))
    _, pullback = jax.vjp(lambda x, p: train(x, p, state)[0], x, params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(pullback))
    assert sizes[-1] == x.size
    assert all(size <= 64 for size in sizes if size != x.size)


# normalize -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -1, (0, 2)])
@pytest.mark.parametrize("with_params", [True, False])
def test_normalize(axis, with_params):
    x = values(12, (3, 4, 5))
    features = oracles.feature_shape(x.shape, axis)
    params, state = setting(features)
    params = params if with_params else None
    got = jax.jit(functools.partial(jbn.normalize, axis=axis, epsilon=1e-3))(
        x, state.mean, state.var, params
    )
    want = oracles.normalize(
        x, state.mean, state.var, *(params or (None, None)), axis=axis, epsilon=1e-3
    )
    assert_close(got, want, F32_VALUE)
    assert got.dtype == x.dtype


def test_normalize_is_inference():
    params, state = setting((3,))
    x = values(13, (6, 3), "bfloat16")
    chex.assert_trees_all_equal(
        jax.jit(jbn.normalize)(x, state.mean, state.var, params), infer(x, params, state)[0]
    )


def test_normalize_by_moments_is_training():
    params, state = setting((3,))
    x = values(14, (6, 3))
    m = jax.jit(jbn.moments)(x)
    assert_close(
        jax.jit(jbn.normalize)(x, m.mean, m.var, params), train(x, params, state)[0], F32_VALUE
    )


# Peers -----------------------------------------------------------------------------------------


def test_equal_to_torch():
    torch = pytest.importorskip("torch")
    params, state = setting((5,))
    x, dy = values(15, (4, 3, 6, 5), mean=0.5), values(16, (4, 3, 6, 5))

    def ours(x, p, state):
        y, new = train(x, p, state, momentum=0.9)
        return jnp.sum(y * dy), (y, new)

    ours = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))
    (_, (y, new)), gradient = jax.device_get(ours(x, params, state))

    def tensor(a):
        return torch.tensor(np.asarray(a))

    tx = tensor(np.asarray(x).transpose(0, 3, 1, 2)).requires_grad_()
    scale, bias = (tensor(p).requires_grad_() for p in params)
    mean, var = tensor(state.mean), tensor(state.var)
    ty = torch.nn.functional.batch_norm(
        tx, mean, var, scale, bias, training=True, momentum=0.1, eps=1e-5
    )
    ty.backward(tensor(np.asarray(dy).transpose(0, 3, 1, 2)))
    assert_close(y.transpose(0, 3, 1, 2), ty.detach().numpy(), PEER, "y")
    assert_close(new.mean, mean.numpy(), PEER, "mean")
    assert_close(new.var, var.numpy(), PEER, "var")
    assert_close(gradient[0].transpose(0, 3, 1, 2), tx.grad.numpy(), PEER, "x")
    assert_close(gradient[1].scale, scale.grad.numpy(), 5 * PEER, "scale")
    assert_close(gradient[1].bias, bias.grad.numpy(), 5 * PEER, "bias")


@pytest.mark.parametrize("masked", [False, True])
def test_equal_to_flax(masked):
    nn = pytest.importorskip("flax.linen")
    params, state = setting((5,))
    x = values(17, (8, 6, 5), mean=0.5)
    mask = jnp.asarray(np.random.default_rng(17).random((8, 6, 1)) < 0.7) if masked else None
    model = nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)
    variables = {
        "params": {"scale": params.scale, "bias": params.bias},
        "batch_stats": {"mean": state.mean, "var": state.var},
    }
    evaluate = nn.BatchNorm(use_running_average=True)
    (want_y, moved), inferred = jax.jit(
        lambda variables, x: (
            model.apply(variables, x, mask=mask, mutable=["batch_stats"]),
            evaluate.apply(variables, x),
        )
    )(variables, x)
    y, new = train(x, params, state, mask=mask, momentum=0.9, unbiased=False)
    assert_close(y, want_y, PEER, "y")
    assert_close(new.mean, moved["batch_stats"]["mean"], PEER, "mean")
    assert_close(new.var, moved["batch_stats"]["var"], PEER, "var")
    assert_close(infer(x, params, state)[0], inferred, PEER, "inference")


@pytest.mark.lenient("promotion")
def test_complex_equal_to_flax():
    nn = pytest.importorskip("flax.linen")
    x = values(18, (16, 3), "complex64", mean=0.5)
    model = nn.BatchNorm(
        use_running_average=False,
        momentum=0.9,
        use_fast_variance=False,
        use_scale=False,
        use_bias=False,
    )
    state = jbn.BatchNormState(np.zeros(3, np.complex64), np.ones(3, np.float32), np.int32(0))
    variables = {"batch_stats": {"mean": state.mean, "var": state.var}}
    want_y, moved = jax.jit(lambda *v: model.apply(*v, mutable=["batch_stats"]))(variables, x)
    y, new = train(x, jbn.BatchNormParams(None, None), state, momentum=0.9, unbiased=False)
    assert_close(y, want_y, PEER, "y")
    assert_close(new.mean, moved["batch_stats"]["mean"], PEER, "mean")
    assert_close(new.var, moved["batch_stats"]["var"], PEER, "var")
