"""A batch for eight devices, its masks, and the same problem in float64."""

import jax
import numpy as np
import oracles
from meshes import DEVICES
from oracles import F32_STATISTICS, Problem, assert_close
from strategies import values

import jbn

SHAPE = (32, 3, 5)
FEATURES = SHAPE[-1:]
PER_DEVICE = SHAPE[0] // DEVICES
MOMENTUM, EPSILON = 0.75, 1e-2


def make_mask(name):
    rng = np.random.default_rng(3)
    shape = (*SHAPE[:-1], 1)
    share = np.linspace(0.1, 1, DEVICES).repeat(PER_DEVICE)[:, None, None]
    mask = rng.random(shape) < share
    if name == "none":
        return None
    if name == "one shard empty":
        mask[2 * PER_DEVICE : 3 * PER_DEVICE] = False
    if name == "one value":
        mask[:] = False
        mask[17, 1] = True
    if name == "nothing left":
        mask[:] = False
    mask = np.array(np.broadcast_to(mask, SHAPE))
    if name == "one feature out":
        mask[..., 2] = False
    if name.startswith("weights"):
        weight = rng.uniform(0.2, 2, SHAPE) * share
        if name != "weights":
            weight[:PER_DEVICE] = 0
        return weight.astype(np.float32)
    return mask


def inputs():
    """Return x with a different mean on each device, params, state and cotangents.

    They are NumPy arrays, so that indexing them for comparisons compiles no programs.
    """
    shift = np.arange(DEVICES, dtype=np.float32).repeat(PER_DEVICE)[:, None, None] / 4
    params = jbn.BatchNormParams(values(1, FEATURES, mean=1.0, std=0.3), values(2, FEATURES))
    variance = np.random.default_rng(4).uniform(0.5, 2, FEATURES)
    state = jbn.BatchNormState(values(3, FEATURES), np.float32(variance), np.int32(6))
    cotangents = values(5, SHAPE), values(6, FEATURES), values(7, FEATURES)
    x, *others = jax.tree.map(np.asarray, (values(0, SHAPE), params, state, cotangents))
    return x + shift, *others


def problem(x, mask, params, state):
    return Problem(
        x=oracles.exact(x),
        scale=oracles.exact(params.scale),
        bias=oracles.exact(params.bias),
        mean=oracles.exact(state.mean),
        var=oracles.exact(state.var),
        count=int(state.count),
        momentum=MOMENTUM,
        epsilon=EPSILON,
        mask=None if mask is None else np.asarray(mask),
    )


def assert_state(got, want):
    for name, a, b in zip(("mean", "var", "count"), got, want, strict=True):
        assert_close(a, b, F32_STATISTICS, name)
