"""Layers and checkpoints of each framework, for the tests of what `jbn.convert` rejects."""

import numpy as np
import pytest

import jbn
from jbn import convert

C = 3


def peer(name):
    return pytest.importorskip(name, reason="needs jbn[peers]")


def ones(*shape):
    return np.ones(shape, np.float32)


def state_dict(prefix="", **changes):
    arrays = {"weight": ones(C), "bias": ones(C), "running_mean": ones(C), "running_var": ones(C)}
    arrays |= {"num_batches_tracked": np.array(7)} | changes
    return {prefix + key: value for key, value in arrays.items() if value is not None}


def layer(count=7):
    params, state = jbn.init(C)
    return params, state._replace(count=count)


def torch_nn():
    return peer("torch").nn


def linen_variables():
    return {
        "params": {"bn": {"scale": ones(C)}, "ln": {"scale": ones(C), "bias": ones(C)}},
        "batch_stats": {"bn": {"mean": ones(C), "var": ones(C)}},
    }


def haiku_trees(**options):
    return convert.to_haiku(*layer(**options), "net/~/norm", decay_rate=0.9)


def from_haiku(params, state, name="net/~/norm", decay_rate=0.9):
    return convert.from_haiku(params, state, name, decay_rate=decay_rate)


def equinox_norm():
    nn = peer("equinox").nn
    return nn.make_with_state(nn.BatchNorm)(C, axis_name="batch", mode="batch")


BARE = convert.Options(jbn.cumulative, 1e-5, True)
Error = convert.ConversionError
