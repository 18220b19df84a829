"""Our batch norm and the plain formula, for the tests under transforms."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import assert_close
from strategies import values

import jbn


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
    """Return a nonlinear scalar of all outputs, so that no derivative vanishes by symmetry."""

    def loss(arguments):
        y, mean, var = function(**arguments)
        r = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(jnp.tanh(y) * r) + jnp.sum(y**2 * r) + jnp.sum(mean**2) + jnp.sum(var**2)

    return loss


def assert_trees(got, want, tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert_close(a, b, tolerance, jax.tree_util.keystr(path))
