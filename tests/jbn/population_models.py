"""Models in linen and nnx, and a float64 Algorithm 2, for the tests of population statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from flax import linen as nn
from flax import nnx
from oracles import assert_close

import jbn
import jbn.linen
import jbn.nnx

# Two float32 layers, averaged over five batches.
AVERAGED = 5e-6
# `jbn.population` recovers a batch's statistics from the updated state, (new - m old) / (1 - m). At
# m = .99 that magnifies float32's rounding a hundredfold. Flax's fast variance adds its
# cancellation.
RECOVERED = 5e-5
LINEN = {"jbn": jbn.linen.BatchNorm, "flax": nn.BatchNorm}
NNX = {"jbn": jbn.nnx.BatchNorm, "flax": nnx.BatchNorm}


def batches_of(seed=0, shape=(5, 16, 3)):
    return jax.device_put(np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32))


def algorithm_2(w, batches, calls, bessel=False):
    """Apply x -> norm(tanh(x) @ w) `calls` times to each batch; average over calls and batches."""
    means, variances = [], []
    for x in oracles.exact(batches):
        for _ in range(calls):
            h = np.tanh(x) @ oracles.exact(w)
            mean, var, n = oracles.moments(h)
            x = oracles.normalize(h, mean, var)
            means.append(mean)
            variances.append(var * (oracles.bessel(n) if bessel else 1))
    return np.mean(means, 0), np.mean(variances, 0)


def check(stats, want, tolerance):
    assert_close(stats["mean"], want[0], tolerance, "mean")
    assert_close(stats["var"], want[1], tolerance, "var")


def init(model, x):
    """Make variables like `model.init`, as NumPy arrays and with different kernel values."""
    rng = np.random.default_rng(3)
    made = {
        "kernel": lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(leaf.dtype),
        "scale": lambda leaf: np.ones(leaf.shape, leaf.dtype),
        "var": lambda leaf: np.ones(leaf.shape, leaf.dtype),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: made.get(path[-1].key, lambda leaf: np.zeros(leaf.shape, leaf.dtype))(
            leaf
        ),
        jax.eval_shape(lambda: model.init(jax.random.key(0), x)),
    )


def linen_step(model, x):
    """Return (step, batch_stats, W), with statistics far from their final values."""
    variables = init(model, x)
    stats = jax.tree.map(lambda leaf: leaf + np.asarray(7, leaf.dtype), variables["batch_stats"])

    def step(batch_stats, batch):
        tree = {**variables, "batch_stats": batch_stats}
        batch = batch if isinstance(batch, tuple) else (batch,)
        return model.apply(tree, *batch, mutable=["batch_stats"])[1]["batch_stats"]

    return step, stats, variables["params"].get("dense", {}).get("kernel")


class Nnx(nnx.Module):
    """A dense layer, norm and dropout, applied `calls` times."""

    def __init__(self, norm, momentum, calls=1, dropout=0.0):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
        self.norm = norm(3, momentum=momentum, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.calls = calls

    def __call__(self, x, masks=None):
        for i in range(self.calls):
            x = self.dense(jnp.tanh(x))
            x = self.dropout(self.norm(x, mask=None if masks is None else masks[i]))
        return x
