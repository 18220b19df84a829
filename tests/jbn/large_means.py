"""Batches with large means, training steps on them, and error bounds that hold for any mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import jbn

# The bound stated in the design for mean / std from 0 to 1e5, in standard deviations. Where |y| is
# above 1 (an outlier reaches sqrt(m - 1)), the bound is relative, like the precision of float32.
OUTPUT = 4e-6
# The variance is a mean of squared deviations, each with one or two float32 roundings.
VARIANCE = 4e-6
# A float32 mean: half a unit in the last place is 6e-8 of its size; momentum 0 adds no error.
MEAN = 1.2e-7
# dx = rstd (g - mean(g) - xhat mean(g xhat)): each term is O(1), with the error of xhat (4e-6) and
# of a float32 mean. Relative to max(1, |dx|), for a variance of 1.
DX = 1e-5
RATIOS = (0.0, 1.0, 1.4, 2.0, 5.0, 1e2, 1e3, 1e4, 1e5)


def draw(shape, ratio, seed=0, std=1.0):
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(ratio * std, std, shape), np.float32)


DY = draw((1024, 64), 0.0, seed=5)


@functools.partial(jax.jit, static_argnames="axis_name")
def step(x, mask=None, state=None, axis_name=None):
    params, cold = jbn.init(x.shape[-1])
    return jbn.batch_norm(
        x, params, state or cold, training=True, mask=mask, axis_name=axis_name, momentum=0.0
    )


def train(x, mask=None, state=None):
    """Call `step`, always with a state, so that all calls share one program."""
    return step(x, mask, state or jbn.init(x.shape[-1])[1])


def with_gradient(function, x, dy):
    """Return y, state and dx, where `(y, state) = function(x)` and dx is the pullback of `dy`."""
    (y, state), pullback = jax.vjp(function, x)
    return y, state, pullback((dy, jax.tree.map(jnp.zeros_like, state)))[0]


def check_dx(dx, x, dy, mask=None):
    features = x.shape[-1]
    problem = oracles.Problem(x, None, None, np.zeros(features), np.ones(features), mask=mask)
    want = problem.gradient(oracles.exact(dy))["x"]
    there = np.broadcast_to(True if mask is None else mask > 0, x.shape)
    assert oracles.error(np.asarray(dx)[there], want[there]) <= DX


def check(y, x, mask=None, tolerance=OUTPUT):
    mean, var, _ = oracles.moments(x, mask=mask)
    want = oracles.normalize(x, mean, var)
    if mask is not None:
        there = np.broadcast_to(np.asarray(mask) > 0, x.shape)
        y, want = np.asarray(y)[there], want[there]
    worst = oracles.error(y, want)
    assert worst <= tolerance, f"error {worst:.3g} is above {tolerance:.3g}"


def check_state(state, x, mask=None):
    mean, var, _ = oracles.moments(x, mask=mask)
    var = var * oracles.bessel(oracles.effective_count(x.shape, mask=mask))
    np.testing.assert_allclose(state.mean, mean, rtol=MEAN, atol=VARIANCE * np.sqrt(var).max())
    np.testing.assert_allclose(state.var, var, rtol=VARIANCE, atol=1e-30)


def make_mask(shape, kind, seed=1):
    rng = np.random.default_rng(seed)
    keep = rng.random(shape) < 0.7
    keep.reshape(-1)[0] = False  # a masked first row must not be the pivot
    return keep if kind == "boolean" else np.where(keep, rng.uniform(0.1, 3, shape), 0).astype("f4")


def adversary(name, ratio, shape=(1024, 64)):
    x = draw(shape, ratio)
    if name == "first row is an outlier":
        x[0] = ratio + 1e4
    elif name == "first row is far away":
        x[0] = -ratio - 1e6
    elif name == "last row is an outlier":
        x[-1] = ratio - 1e4
    elif name == "sparse":
        x[:] = ratio
        x[shape[0] // 3] += np.maximum(1, ratio)
    elif name == "sparse in the first row":
        x[:] = ratio
        x[0] += np.maximum(1, ratio)
    elif name == "means from 0 to the ratio":
        x += np.linspace(0, ratio, shape[-1], dtype=np.float32)
    elif name == "drift along the batch":
        x += np.linspace(0, ratio, shape[0], dtype=np.float32)[:, None]
    elif name == "two clusters":
        x[::2] += np.float32(ratio)
        x[1::2] -= np.float32(2 * ratio)
    elif name == "half the features constant":
        x[:, ::2] = ratio + 0.1
    return x


ADVERSARIES = (
    "first row is an outlier",
    "first row is far away",
    "last row is an outlier",
    "sparse",
    "sparse in the first row",
    "means from 0 to the ratio",
    "drift along the batch",
    "two clusters",
    "half the features constant",
)
