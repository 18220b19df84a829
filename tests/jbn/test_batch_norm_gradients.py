"""Gradients of `jbn.batch_norm` against float64 NumPy, and the residuals of the backward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from batch_norm_calls import infer, oracle, setting, train
from oracles import (
    F32_GRADIENT,
    F64_GRADIENT,
    F64_VALUE,
    assert_close,
)
from strategies import problems, values

import jbn

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
        # Epsilon is large, so that features with two almost equal values have moderate gradients.
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
                # Positions of weight zero may hold garbage: their derivatives are not compared.
                target = sum_to(target, np.shape(mask))[mask > 0]
                value = np.asarray(value)[mask > 0]
            assert_close(value, target, tolerance * np.sqrt(x.size), name)


def sum_to(gradient, shape):
    """Sum a gradient over the axes along which `shape` was broadcast."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1)
    return gradient.sum(axes, keepdims=True).reshape(shape)


def test_closed_form_of_the_paper():
    """Section 3: dx = gamma rstd (dy - mean(dy) - xhat mean(dy xhat)), written out here again."""
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
    """A single value is its own mean, so y is the bias for any x."""
    params, state = setting((3,))
    x = values(3, (1, 3))
    mask = jnp.ones((1, 1), bool)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(train(x, params, state, mask=mask)[0] ** 2)))(x)
    # The terms that cancel are as large as 1 / sqrt(epsilon) = 316.
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
    # sum(dy xhat): the loss, not batch norm, rounds the product y dy to x's dtype, and the
    # cotangent dy that batch norm gets is exact.
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


# Residuals of the backward pass -----------------------------------------------------------------


def kept(function, x, *arguments):
    """Return the number of distinct arrays, at least as large as x, that the pullback holds."""
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
    """For half precision, residuals are in half precision: a float32 copy would be twice x."""
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
