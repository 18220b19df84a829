"""`jbn.init`, `jbn.batch_norm` and `jbn.normalize` on one device, against float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from batch_norm_calls import REORDERED, assert_state, infer, oracle, setting, train
from oracles import (
    F32_GRADIENT,
    F32_STATISTICS,
    F32_VALUE,
    F64_VALUE,
    assert_close,
    output_tolerance,
)
from strategies import garbage_at, problems, values

import jbn

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
    """Libraries that keep statistics in x's dtype are off by .025 at mean 100, or NaN at 300."""
    x = values(6, (64, 3), dtype, mean=300.0 if dtype == "float16" else 20.0)
    params, state = setting((3,), dtype=param_dtype)
    # Float32 represents a momentum of .5 exactly, so only the statistics are compared.
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
