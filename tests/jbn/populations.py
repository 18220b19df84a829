"""Population statistics by each function and layer, for the tests of the batches they accept."""

import numpy as np
import oracles
from flax import linen as nn
from flax import nnx
from oracles import assert_close

import jbn
import jbn.linen
import jbn.nnx

# Float32 averages over a few batches with mean/std below 10.
AVERAGED = 5e-6
# (new - m old) / (1 - m) at m = .99, as in population_models.py.
RECOVERED = 5e-5
LAYERS = {
    "linen-jbn": jbn.linen.BatchNorm,
    "linen-flax": nn.BatchNorm,
    "nnx-jbn": jbn.nnx.BatchNorm,
    "nnx-flax": nnx.BatchNorm,
}


def by_layer(name, forward=None, **options):
    """Return a map batches -> {"mean", "var"} that uses one layer and its library's population."""
    forward = forward or (lambda layer, x: layer(x))

    def linen(batches, features=3):
        layer = LAYERS[name](**{"use_running_average": False} | options)
        zeros, ones = np.zeros(features, np.float32), np.ones(features, np.float32)
        variables = {
            "params": {"scale": ones, "bias": zeros},
            "batch_stats": {"mean": zeros, "var": ones},
        }

        def step(batch_stats, batch):
            def call(*args, **kwargs):
                tree = {**variables, "batch_stats": batch_stats}
                return layer.apply(tree, *args, mutable=["batch_stats"], **kwargs)[1]["batch_stats"]

            return forward(call, batch)

        return jbn.linen.population(step, variables["batch_stats"], batches)

    def of_nnx(batches, features=3):
        layer = LAYERS[name](features, rngs=nnx.Rngs(0), **options)
        return nnx.to_pure_dict(jbn.nnx.population(forward, layer, batches))

    return linen if name.startswith("linen") else of_nnx


def by_function(batches):
    """Return {"mean", "var"} for `jbn.batch_norm`, by `jbn.population`."""
    params, state = jbn.init(3)

    def step(state, x):
        return jbn.batch_norm(x, params, state, training=True, unbiased=False)[1]

    return jbn.population(step, state, batches)._asdict()


POPULATIONS = {"function": by_function} | {name: by_layer(name) for name in LAYERS}


def arrays(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(1 + i, 2 + i, (n, 3)).astype(np.float32) for i, n in enumerate(sizes)]


def pooled(batches, weights):
    """Return the weighted means, in float64, of the batches' means and of their variances."""
    found = [oracles.moments(oracles.exact(x))[:2] for x in batches]
    return [np.average([f[i] for f in found], axis=0, weights=weights) for i in (0, 1)]


def check(got, want, tolerance=AVERAGED):
    assert_close(got["mean"], want[0], tolerance, "mean")
    assert_close(got["var"], want[1], tolerance, "var")
