"""What `jbn.convert` rejects from each framework, and its messages."""

import os

import flax.linen as nn
import numpy as np
import pytest
from convertible import (
    C,
    Error,
    equinox_norm,
    from_haiku,
    haiku_trees,
    layer,
    linen_variables,
    ones,
    peer,
    state_dict,
    torch_nn,
)
from flax import nnx

import jbn
from jbn import convert


@pytest.fixture(autouse=True, scope="module")
def keras_writes_nothing_at_home(tmp_path_factory):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))


def torch_net():
    nn = torch_nn()
    return nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Sequential(nn.BatchNorm2d(C)))


class NnxNet(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(C, rngs=nnx.Rngs(0))


def nnx_layer(make, *arguments, **options):
    return make(*arguments, rngs=nnx.Rngs(0), **options)


def keras_net():
    keras = peer("keras")
    return keras.Sequential([keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(2)])


# name: (call, error, words in the message)
CASES = {
    # torch: the container of the state_dict.
    "nested checkpoint": (
        lambda: convert.from_torch({"state_dict": state_dict(), "epoch": 3}),
        Error,
        ["no 'running_mean'", "mappings below 'state_dict'", "pass one of them"],
    ),
    "checkpoint with a model inside": (
        lambda: convert.from_torch({"model": torch_net(), "epoch": 3}, "1"),
        Error,
        ["below 'model'", "pass one of them"],
    ),
    "state_dict of DataParallel": (
        lambda: convert.from_torch(state_dict("module.bn."), "bn"),
        Error,
        ["no 'bn.running_mean'", "with statistics are 'module.bn'", "as `prefix`"],
    ),
    "module of DataParallel": (
        lambda: convert.from_torch(torch_nn().DataParallel(torch_net()), "1"),
        Error,
        ["'1'", "with statistics are 'module.1'"],
    ),
    "state_dict of a network": (
        lambda: convert.from_torch(state_dict("a.") | state_dict("b.")),
        Error,
        ["with statistics are 'a', 'b'", "as `prefix`"],
    ),
    "network": (
        lambda: convert.from_torch(torch_net()),
        Error,
        ["Sequential, expected a batch norm", "'1', '2.0'", "as `prefix`"],
    ),
    "no such module": (
        lambda: convert.from_torch(torch_net(), "bn"),
        Error,
        ["no such module", "'1', '2.0'"],
    ),
    "list of weights": (
        lambda: convert.from_torch([ones(C)] * 4),
        Error,
        ["a list of 4 (ndarray)", "module or state_dict"],
    ),
    "no source": (lambda: convert.from_torch(None), Error, ["None", "module or state_dict"]),
    "module as prefix": (
        lambda: convert.from_torch(torch_net(), torch_net()[1]),
        Error,
        ["`prefix`", "BatchNorm2d", "a string"],
    ),
    # torch: other layers.
    **{
        f"torch {name}": (
            lambda name=name, arguments=arguments, options=options: convert.from_torch(
                getattr(torch_nn(), name)(*arguments, **options)
            ),
            Error,
            [name, "expected a " + ("B" if "Instance" in name else "b")],
        )
        for name, arguments, options in (
            ("LayerNorm", (C,), {}),
            ("GroupNorm", (1, C), {}),
            ("InstanceNorm2d", (C,), {}),
            ("InstanceNorm2d", (C,), {"affine": True}),
            ("InstanceNorm1d", (C,), {"track_running_stats": True}),
            ("Linear", (C, C), {}),
            ("Conv2d", (C, C, 3), {}),
            ("BatchNorm2d", (C,), {"track_running_stats": False}),
        )
    },
    **{
        f"torch {name}, {form}": (
            lambda name=name, arguments=arguments, options=options, take=take: convert.from_torch(
                take(getattr(torch_nn(), name)(*arguments, **options))
            ),
            Error,
            [
                *([name] if form == "module" else []),
                "No layer" if form == "state_dict" else "no layer",
                "keys are 'weight', 'bias'",
                "track_running_stats=True",
            ],
        )
        for name, arguments, options in (
            ("Linear", (C, C), {}),
            ("LayerNorm", (C,), {}),
            ("BatchNorm1d", (C,), {"track_running_stats": False}),
        )
        for form, take in (
            ("module", lambda module: module),
            ("state_dict", lambda module: module.state_dict()),
        )
    },
    "empty state_dict": (
        lambda: convert.from_torch({}),
        Error,
        ["keys are none", "a state_dict with running_mean"],
    ),
    "tracking InstanceNorm in a network": (
        lambda: convert.from_torch(
            torch_nn().Sequential(torch_nn().InstanceNorm3d(C, track_running_stats=True)), "0"
        ),
        Error,
        ["'0'", "InstanceNorm3d", "jbn.instance_norm"],
    ),
    "lazy layer": (
        lambda: convert.from_torch(torch_nn().LazyBatchNorm2d()),
        Error,
        ["'running_mean' is of type UninitializedBuffer", "without values", "Run one batch"],
    ),
    "layer without data": (
        lambda: convert.from_torch(torch_nn().BatchNorm2d(C, device="meta")),
        Error,
        ["'weight' is of type", "without values"],
    ),
    "quantized weight": (
        lambda: convert.from_torch(state_dict(weight=np.ones(C, np.int8))),
        Error,
        ["'weight'", "int8", "floating"],
    ),
    "string for a weight": (
        lambda: convert.from_torch(state_dict(weight="ones")),
        Error,
        ["'weight' is of type str", "array"],
    ),
    # Keras.
    "Keras LayerNormalization": (
        lambda: convert.from_keras(peer("keras").layers.LayerNormalization(name="ln")),
        Error,
        ["'ln'", "LayerNormalization", "expected a BatchNormalization"],
    ),
    "Keras GroupNormalization": (
        lambda: convert.from_keras(peer("keras").layers.GroupNormalization()),
        Error,
        ["GroupNormalization", "expected a BatchNormalization"],
    ),
    "Keras model": (
        lambda: convert.from_keras(keras_net()),
        Error,
        ["Sequential", "with statistics are 'bn'", "get_layer"],
    ),
    "Keras layer that is not built": (
        lambda: convert.from_keras(peer("keras").layers.BatchNormalization()),
        Error,
        ["no 'moving_mean'", "Build the layer"],
    ),
    "Keras weights of a layer norm": (
        lambda: convert.from_keras([ones(C), ones(C)]),
        Error,
        ["2 weights, expected 4"],
    ),
    "mapping of other names": (
        lambda: convert.from_keras({"scale": ones(C)}),
        Error,
        ["no 'moving_mean'", "the keys 'scale'"],
    ),
    "no Keras layer": (lambda: convert.from_keras(None), Error, ["None", "get_weights()"]),
    "file of Keras": (lambda: convert.from_keras("a.h5"), Error, ["'a.h5'", "get_weights()"]),
    # linen.
    "linen LayerNorm": (
        lambda: convert.from_linen(linen_variables(), "ln"),
        Error,
        ["'ln'", "no 'mean'", "Layer and group norm have none", "are 'bn'", "as `path`"],
    ),
    "linen variables of a model": (
        lambda: convert.from_linen(linen_variables()),
        Error,
        ["no 'mean'", "with statistics are 'bn'"],
    ),
    "linen params alone": (
        lambda: convert.from_linen(linen_variables()["params"], "bn"),
        Error,
        ["the keys 'bn', 'ln'", "without 'batch_stats'", "{'params': ..., 'batch_stats': ...}"],
    ),
    "linen output and variables": (
        lambda: convert.from_linen((ones(2, C), linen_variables()), "bn"),
        Error,
        ["a tuple of 2", "model.init"],
    ),
    "linen module": (
        lambda: convert.from_linen(nn.BatchNorm(), "bn"),
        Error,
        ["BatchNorm", "model.init"],
    ),
    "linen path in parts": (
        lambda: convert.from_linen(linen_variables(), ("block", "bn")),
        Error,
        ["`path`", "a tuple of 2", "a string"],
    ),
    "to_linen, path in parts": (
        lambda: convert.to_linen(*layer(), ("block", "bn")),
        Error,
        ["`path`", "a string"],
    ),
    "to_linen, shapes that differ": (
        lambda: convert.to_linen(jbn.init(4)[0], jbn.init(C)[1]),
        Error,
        ["scale has shape (4,)", "(3,)"],
    ),
    # nnx.
    **{
        f"nnx {name}": (
            lambda name=name, options=options: convert.from_nnx(
                nnx_layer(getattr(nnx, name), C, **options)
            ),
            Error,
            [name, "expected a BatchNorm or its state"],
        )
        for name, options in (
            ("LayerNorm", {}),
            ("RMSNorm", {}),
            ("InstanceNorm", {}),
            ("GroupNorm", {"num_groups": 1}),
            ("Linear", {"out_features": C}),
        )
    },
    "nnx model": (lambda: convert.from_nnx(NnxNet()), Error, ["NnxNet", "such as model.norm"]),
    "nnx state of a model": (
        lambda: convert.from_nnx(nnx.state(NnxNet())),
        Error,
        ["no 'mean'", "with statistics are 'norm'"],
    ),
    "linen layer for nnx": (
        lambda: convert.from_nnx(nn.BatchNorm()),
        Error,
        ["flax.linen", "expected a BatchNorm or its state"],
    ),
    "no nnx layer": (lambda: convert.from_nnx(None), Error, ["None", "BatchNorm or its state"]),
    # Haiku.
    "Haiku trees swapped": (
        lambda: from_haiku(*reversed(haiku_trees())),
        Error,
        ["no 'mean_ema/average'", "params and state swapped"],
    ),
    "Haiku trees as one": (
        lambda: from_haiku(haiku_trees(), {}),
        Error,
        ["`params` is a tuple of 2", "dict of modules"],
    ),
    "Haiku without state": (
        lambda: from_haiku(haiku_trees()[0], None),
        Error,
        ["`state` is None", "dict of modules"],
    ),
    "Haiku LayerNorm": (
        lambda: from_haiku({"ln": {"scale": ones(C), "offset": ones(C)}}, {}, "ln"),
        Error,
        ["'ln'", "Layer and group norm have none", "no layer of the source has statistics"],
    ),
    "Haiku arrays for modules": (
        lambda: from_haiku({"scale": ones(C)}, {}),
        Error,
        ["`params` holds an array", "at 'scale'", "a dict of arrays"],
    ),
    "Haiku axis of None": (
        lambda: convert.to_haiku(*layer(), decay_rate=0.9, axis=None),
        ValueError,
        ["`axis`", "None"],
    ),
    "Haiku name": (
        lambda: from_haiku(*haiku_trees(), "norm"),
        Error,
        ["'norm'", "with statistics are 'net/~/norm'", "as `name`"],
    ),
    "Haiku name of None": (lambda: from_haiku(*haiku_trees(), None), Error, ["`name` is None"]),
    "Haiku decay_rate": (
        lambda: from_haiku(*haiku_trees(), decay_rate=1.5),
        Error,
        ["`decay_rate` is 1.5", "[0, 1)"],
    ),
    "Haiku decay_rate as a string": (
        lambda: convert.to_haiku(*layer(), decay_rate="0.9"),
        Error,
        ["`decay_rate` is '0.9'"],
    ),
    "Haiku axis": (
        lambda: convert.to_haiku(*layer(), decay_rate=0.9, axis=3),
        ValueError,
        ["`axis`", "ndim=2", "3"],
    ),
    # Equinox.
    "Equinox LayerNorm": (
        lambda: convert.from_equinox(peer("equinox").nn.LayerNorm(C), equinox_norm()[1]),
        Error,
        ["LayerNorm", "eqx.nn.BatchNorm"],
    ),
    "Equinox model": (
        lambda: convert.from_equinox(
            peer("equinox").nn.Sequential([equinox_norm()[0]]), equinox_norm()[1]
        ),
        Error,
        ["Sequential", "such as model.norm"],
    ),
    "Equinox swapped": (
        lambda: convert.from_equinox(*reversed(equinox_norm())),
        Error,
        ["`layer` is equinox", "the state is equinox"],
    ),
    "Equinox pair as one": (
        lambda: convert.from_equinox(equinox_norm(), None),
        Error,
        ["a tuple of 2", "the state is None", "make_with_state"],
    ),
    "Equinox state of nothing": (
        lambda: convert.from_equinox(equinox_norm()[0], {}),
        Error,
        ["the state has none of this layer", "its model"],
    ),
    "to_equinox, no layer": (
        lambda: convert.to_equinox(*layer(), None, equinox_norm()[1]),
        Error,
        ["`layer` is None"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["xpected", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"
