"""`jbn.whiten`: covariance I, ZCA against float64 eigh, derivatives where eigenvalues are equal."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from oracles import assert_close
from strategies import values

import jbn

# For the covariance of the output, as the notes require, and for y itself. S is rounded to 6e-8 of
# its largest eigenvalue, and W divides by the smallest, which is about 40 times smaller here.
IDENTITY = 1e-5
F64 = 1e-11

MIX = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0] * [3.0, 2.0, 1.5, 1.0, 0.7, 0.5]


def correlated(seed, shape, dtype="float32", mean=0.5):
    """Return values with features last and a covariance far from I."""
    width = shape[-1]
    z = np.random.default_rng(seed).normal(size=shape)
    return (z @ MIX[:width, :width].T + mean).astype(jnp.dtype(dtype))


def covariance(y):
    y = oracles.exact(y).reshape(-1, np.shape(y)[-1])
    y = y - y.mean(0)
    return y.T @ y / len(y)


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(jbn.whiten, **options))


@pytest.mark.parametrize("method", ["zca", "cholesky"])
@pytest.mark.parametrize("mean", [0.5, 1e4])
def test_covariance_is_the_identity(method, mean):
    x = correlated(1, (10, 20, 6), mean=mean)
    y, found = jitted(method=method, epsilon=1e-9)(x)
    assert_close(covariance(y), np.eye(6), IDENTITY)
    assert_close(oracles.exact(y).mean((0, 1)), np.zeros(6), IDENTITY)
    assert found.mean.shape == (6,)
    assert found.matrix.shape == (1, 6, 6)
    if method == "cholesky":
        np.testing.assert_array_equal(found.matrix, np.tril(found.matrix))
    if mean == 0.5:
        assert_close(jbn.apply_whitening(x, found), y, IDENTITY)


@pytest.mark.parametrize("method", ["zca", "cholesky"])
def test_equal_to_numpy(method):
    for dtype, tolerance in (("float32", IDENTITY), ("float64", F64)):
        with jax.enable_x64(dtype == "float64"):
            x = correlated(2, (50, 6), dtype)
            y, found = jitted(method=method, epsilon=1e-3)(x)
            v = oracles.exact(x) - oracles.exact(x).mean(0)
            s = v.T @ v / 50 + 1e-3 * np.eye(6)
            if method == "zca":
                eigenvalues, vectors = np.linalg.eigh(s)
                matrix = vectors / np.sqrt(eigenvalues) @ vectors.T
            else:
                matrix = np.linalg.inv(np.linalg.cholesky(s))
            assert_close(y, v @ matrix.T, tolerance)
            assert_close(found.matrix[0], matrix, tolerance)
            assert y.dtype == dtype


def test_groups_and_axis():
    """Each group is whitened by itself; channels first equals channels last with the axis moved."""
    x = correlated(3, (5, 20, 6))
    y, found = jax.device_get(jitted(groups=3)(x))
    assert found.matrix.shape == (3, 2, 2)
    for i in range(0, 6, 2):
        assert_close(y[..., i : i + 2], jitted()(x[..., i : i + 2])[0], IDENTITY)
    first, _ = jax.device_get(jitted(groups=3, axis=1)(np.moveaxis(x, -1, 1)))
    assert_close(np.moveaxis(first, 1, -1), y, IDENTITY)
    applied = jbn.apply_whitening(np.moveaxis(x, -1, 1), found, axis=1)
    assert_close(applied, first, IDENTITY)


def test_groups_of_one_are_the_standardized_features():
    x = correlated(4, (50, 6))
    want = jax.jit(functools.partial(jbn.layer_norm, axis=0))(x)
    assert_close(jitted(groups=6)(x)[0], want, IDENTITY)


def test_half_precision():
    x = correlated(5, (50, 6), "bfloat16")
    y, found = jitted()(x)
    assert y.dtype == jnp.bfloat16
    assert found.matrix.dtype == jnp.float32
    want, _ = jitted()(x.astype("float32"))
    assert_close(y, want, IDENTITY + oracles.output_tolerance("bfloat16"))


@pytest.mark.parametrize("method", ["zca", "cholesky"])
def test_fewer_examples_than_features(method):
    """The rank is at most m - 1: no W makes the covariance I, and epsilon keeps W finite."""
    x = correlated(6, (4, 6))
    with pytest.raises(ValueError, match="at most rank 3"):
        jbn.whiten(x, method=method, epsilon=0)
    with pytest.raises(ValueError, match="more values than features"):
        jbn.whiten(x[:, :4], method=method, epsilon=0.0)
    y, found = jitted(method=method, epsilon=1e-4)(x)
    eigenvalues = np.linalg.eigvalsh(covariance(y))
    np.testing.assert_allclose(eigenvalues[:3], np.zeros(3), atol=1e-4)
    if method == "zca":  # lambda / (lambda + epsilon)
        np.testing.assert_allclose(eigenvalues[3:], np.ones(3), atol=5e-3)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jbn.whiten(x, method=method)[0] ** 3)))(x)
    chex.assert_tree_all_finite((y, found, gradient))
    jax.eval_shape(functools.partial(jbn.whiten, method=method, epsilon=0), x[:, :3])


@pytest.mark.parametrize("method", ["zca", "cholesky"])
def test_derivatives_against_finite_differences(method):
    with jax.enable_x64(True):
        x = correlated(7, (9, 3), "float64")

        def f(x, epsilon):
            return jbn.whiten(x, method=method, epsilon=epsilon)

        modes = ["fwd", "rev"] if method == "zca" else ["rev"]  # Cholesky uses JAX's own rules.
        check_grads(jax.jit(f), (x, jnp.asarray(0.1)), 1, modes=modes, rtol=1e-6, atol=1e-6)


def test_derivative_at_equal_eigenvalues():
    """Derivatives of eigenvectors are infinite there; those of the root are not."""
    with jax.enable_x64(True):
        x = jax.device_put(np.concatenate([np.eye(4), -np.eye(4)]))  # Covariance I / 4, exactly.

        def loss(x, method):
            y, _ = jbn.whiten(x, method=method)
            return jnp.sum(jnp.sin(y + jnp.arange(4.0)[None]))

        f = jax.jit(functools.partial(loss, method="zca"))
        check_grads(f, (x,), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)
    constant = np.ones((5, 3), np.float32)
    assert_close(jitted()(constant)[0], np.zeros((5, 3)), IDENTITY)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jbn.whiten(x)[0] ** 3)))(constant)
    chex.assert_tree_all_finite(gradient)


def test_whiten_maps():
    x = correlated(8, (3, 50, 6))
    y, _ = jax.device_get(jax.jit(jax.vmap(jbn.whiten))(x))
    for i in range(3):
        assert_close(y[i], jitted()(x[i])[0], IDENTITY)


def test_errors():
    x = np.asarray(values(9, (8, 6)))
    for groups, match in ((4, "divide"), (0, "positive int")):
        with pytest.raises(ValueError, match=match):
            jbn.whiten(x, groups=groups)
    with pytest.raises(TypeError, match="positive int"):
        jbn.whiten(x, groups=True)
    with pytest.raises(ValueError, match="method"):
        jbn.whiten(x, method="pca")
    with pytest.raises(ValueError, match="epsilon"):
        jbn.whiten(x, epsilon=-1.0)
    with pytest.raises(ValueError, match="more than one value"):
        jbn.whiten(x[:1])
    with pytest.raises(ValueError, match="one feature axis"):
        jbn.whiten(x, axis=(0, 1))
    with pytest.raises(TypeError, match="floating x, got complex"):
        jbn.whiten(x.astype("complex64"))
    with pytest.raises(TypeError, match="floating"):
        jbn.whiten(x.astype(int))
    found = jbn.Whitening(np.zeros(6, np.float32), np.eye(6, dtype=np.float32)[None])
    with pytest.raises(ValueError, match="6 features"):
        jbn.apply_whitening(x[:, :5], found)
