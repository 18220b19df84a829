"""What `jbn.convert` refuses, and what its message says; what it takes that is no plain layer."""

import os

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

import jbn
import jbn.linen
from jbn import convert

C = 3
MOST = np.iinfo(np.int32).max  # What jbn's count holds.


@pytest.fixture(autouse=True, scope="module")
def keras_writes_nothing_at_home(tmp_path_factory):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))


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


def torch_net():
    nn = torch_nn()
    return nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Sequential(nn.BatchNorm2d(C)))


def linen_variables():
    return {
        "params": {"bn": {"scale": ones(C)}, "ln": {"scale": ones(C), "bias": ones(C)}},
        "batch_stats": {"bn": {"mean": ones(C), "var": ones(C)}},
    }


class NnxNet(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(C, rngs=nnx.Rngs(0))


def nnx_layer(make, *arguments, **options):
    return make(*arguments, rngs=nnx.Rngs(0), **options)


def keras_net():
    keras = peer("keras")
    return keras.Sequential([keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(2)])


def haiku_trees(**options):
    return convert.to_haiku(*layer(**options), "net/~/norm", decay_rate=0.9)


def from_haiku(params, state, name="net/~/norm", decay_rate=0.9):
    return convert.from_haiku(params, state, name, decay_rate=decay_rate)


def equinox_norm():
    nn = peer("equinox").nn
    return nn.make_with_state(nn.BatchNorm)(C, axis_name="batch", mode="batch")


def with_counter(counter):
    params, state = haiku_trees(count=10_000)  # So that hidden is the average.
    return params, {key: {**ema, "counter": counter} for key, ema in state.items()}


BARE = convert.Options(jbn.cumulative, 1e-5, True)
Error = convert.ConversionError

# name: (call, error, words that the message holds)
CASES = {
    # torch: what holds the state_dict.
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
    # Counts.
    "fraction of a batch": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=np.float32(0.3))),
        Error,
        ["'num_batches_tracked' is 0.3", "whole number", "Set it to"],
    ),
    "negative count": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=np.array(-1))),
        Error,
        ["-1", "whole number"],
    ),
    "two counts": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=np.array([7, 7]))),
        Error,
        ["(2,)", "expected ()"],
    ),
    "fraction as count=": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=None), count=1.5),
        Error,
        ["`count` is 1.5", "Pass the number of batches absorbed, at least 0"],
    ),
    "count= below 0": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=None), count=-7),
        Error,
        ["`count` is -7", "Pass the number of batches absorbed, at least 0"],
    ),
    **{
        f"no count for a schedule, {name}": (
            lambda call=call: call(options=BARE),
            Error,
            ["no count of batches", "cumulative", "Pass count="],
        )
        for name, call in {
            "torch": lambda **o: convert.from_torch(state_dict(num_batches_tracked=None), **o),
            "keras": lambda **o: convert.from_keras([ones(C)] * 4, **o),
            "linen": lambda **o: convert.from_linen(linen_variables(), "bn", **o),
            "nnx": lambda **o: convert.from_nnx({"mean": ones(C), "var": ones(C)}, **o),
        }.items()
    },
    **{
        f"average of counts, {name}": (
            lambda call=call: call(*layer(np.float32(0.3))),
            Error,
            ["count is 0.3", "whole number", "_replace(count="],
        )
        for name, call in {
            "torch": lambda *trees: convert.to_torch(*trees, tensors=False),
            "linen": lambda *trees: convert.to_linen(*trees, with_count=True),
            "nnx": lambda *trees: convert.to_nnx(*trees, with_count=True),
            "haiku": lambda *trees: convert.to_haiku(*trees, decay_rate=0.9),
            "equinox": lambda *trees: convert.to_equinox(*trees, *equinox_norm()),
        }.items()
    },
    "NaN for a count": (
        lambda: convert.to_torch(*layer(jnp.nan), tensors=False),
        Error,
        ["count is nan"],
    ),
    "traced average of counts": (
        lambda: jax.eval_shape(
            lambda count: convert.to_linen(*layer(count), with_count=True), jnp.float32(1)
        ),
        Error,
        ["count is float32", "integer"],
    ),
    "fraction in Haiku": (
        lambda: from_haiku(*with_counter(np.float32(0.3))),
        Error,
        ["'mean_ema/counter' is 0.3", "'var_ema/counter' is 0.3"],
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
    # Trees of jbn.
    "params of None": (
        lambda: convert.to_torch(None, layer()[1]),
        TypeError,
        ["`params`", "None", "jbn.BatchNormParams(None, None)"],
    ),
    "state of None": (
        lambda: convert.to_keras(layer()[0], None),
        TypeError,
        ["`state`", "None", "jbn.init"],
    ),
    "params and state swapped": (
        lambda: convert.to_nnx(*reversed(layer())),
        TypeError,
        ["`params`", "BatchNormState", "swapped"],
    ),
    "whole result of init": (
        lambda: convert.to_linen(layer(), layer()[1]),
        TypeError,
        ["a tuple of 2 (BatchNormParams, BatchNormState)", "params, state = "],
    ),
    "params as a tuple": (
        lambda: convert.to_torch(tuple(layer()[0]), layer()[1]),
        TypeError,
        ["a tuple of 2", "jbn.BatchNormParams(*params)", "scale, bias"],
    ),
    "state as a list": (
        lambda: convert.to_torch(layer()[0], list(layer()[1])),
        TypeError,
        ["a list of 3", "jbn.BatchNormState(*state)"],
    ),
    "params of torch": (
        lambda: convert.to_keras({"weight": ones(C), "bias": ones(C)}, layer()[1]),
        TypeError,
        ["'weight', 'bias'", "jbn.BatchNormParams(**params)", "scale, bias"],
    ),
    "variables of linen": (
        lambda: convert.to_torch(linen_variables(), layer()[1]),
        TypeError,
        ["'params', 'batch_stats'", "from_linen(variables, path)"],
    ),
    "empty params": (
        lambda: convert.to_torch({}, layer()[1]),
        TypeError,
        ["no keys", "BatchNormParams(None, None)"],
    ),
    "a scale of words": (
        lambda: convert.to_torch(layer()[0]._replace(scale="ones"), layer()[1]),
        TypeError,
        ["`params.scale`", "'ones'", "one value per feature"],
    ),
    "state without var": (
        lambda: convert.to_torch(layer()[0], jbn.BatchNormState(jnp.ones(C), None, 0)),
        TypeError,
        ["None for var", "jbn.init"],
    ),
    "options as prefix": (
        lambda: convert.to_torch(*convert.from_torch(state_dict())),
        Error,
        ["`prefix` is jbn.convert.common.Options", "a string"],
    ),
    # Options.
    "options as a dict": (
        lambda: convert.from_torch(state_dict(), options={"momentum": 0.9}),
        Error,
        ["`options` is a dict", "jbn.convert.Options("],
    ),
    "epsilon of None": (
        lambda: convert.from_torch(state_dict(), options=convert.Options(0.9, None, True)),
        Error,
        ["`options.epsilon` is None", "a number"],
    ),
    "momentum as a string": (
        lambda: convert.framework_kwargs(convert.Options("0.9", 1e-5, True), "torch"),
        Error,
        ["`options.momentum` is '0.9'"],
    ),
    "num_features as a shape": (
        lambda: convert.from_torch(state_dict(), num_features=(C,)),
        Error,
        ["`num_features` is a tuple of 1", "an int"],
    ),
    "momentum of torch": (
        lambda: convert.from_torch(state_dict(), options=convert.Options(None, 1e-5, True)),
        Error,
        ["momentum` is None", "jbn.cumulative"],
    ),
    "arguments of what came": (
        lambda: convert.framework_kwargs(convert.from_torch(state_dict()), "torch"),
        TypeError,
        ["`options`", "Converted", "third part"],
    ),
    "framework as a list": (
        lambda: convert.framework_kwargs(BARE, ["torch"]),
        ValueError,
        ["`framework`", "a list of 1", "torch, keras"],
    ),
    # Many layers, and kernels.
    "names of None": (
        lambda: convert.convert_layers(convert.from_torch, state_dict("bn."), names=None),
        TypeError,
        ["`names`", "None", "names=['bn1']"],
    ),
    "a class for a module": (
        lambda: convert.from_torch(torch_nn().BatchNorm2d),
        Error,
        ["the class BatchNorm2d, not an instance"],
    ),
    "lazy weight": (
        lambda: convert.from_torch_kernel(torch_nn().LazyLinear(3).weight),
        TypeError,
        ["UninitializedParameter", "layer.weight"],
    ),
    "ragged kernel": (
        lambda: convert.to_torch_kernel([[1.0], [1.0, 2.0]]),
        TypeError,
        ["a list of 2 (list)", "its kernel"],
    ),
    "names as one string": (
        lambda: convert.convert_layers(convert.from_torch, state_dict("bn."), names="bn"),
        TypeError,
        ["`names`", "'bn'", "names=['bn']"],
    ),
    "source before the converter": (
        lambda: convert.convert_layers(state_dict("bn."), convert.from_torch, names=["bn"]),
        TypeError,
        ["from_torch first", "a dict", "convert_layers(jbn.convert.from_torch, model"],
    ),
    "module for a weight": (
        lambda: convert.from_torch_kernel(torch_nn().Linear(3, 4)),
        TypeError,
        ["Linear", "layer.weight"],
    ),
    "dict for a kernel": (
        lambda: convert.to_torch_kernel({"kernel": ones(3, 4)}),
        TypeError,
        ["a dict with the keys 'kernel'", "its kernel"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["xpected", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"


# Layers and checkpoints without a count ----------------------------------------------------------


def frozen():
    """Make a layer as torchvision's and detectron2's FrozenBatchNorm2d are: buffers, an eps."""
    torch = peer("torch")

    class FrozenBatchNorm2d(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.eps = 1e-3
            for name, value in (("weight", 2.0), ("bias", 1.0)):
                self.register_buffer(name, torch.full((C,), value))
            self.register_buffer("running_mean", torch.arange(float(C)))
            self.register_buffer("running_var", torch.full((C,), 4.0))

        def forward(self, x):
            shape = (1, -1, 1, 1)
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(shape) + shift.reshape(shape)

    return FrozenBatchNorm2d()


def test_frozen_layer_of_torch():
    module = frozen()
    params, state, options = convert.from_torch(module)
    assert options == (0.9, 1e-3, True)
    assert (int(state.count), state.count.dtype) == (0, jnp.int32)
    expected = convert.Options(0.7, 1e-3, True)  # It has no momentum to differ from.
    assert convert.from_torch(module, options=expected).options == expected
    torch = peer("torch")
    x = np.random.default_rng(0).normal(1, 2, (4, C, 5, 5)).astype(np.float32)
    y, _ = jbn.batch_norm(x, params, state, training=False, axis=1, epsilon=options.epsilon)
    np.testing.assert_allclose(y, module(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-5)


def test_stripped_checkpoint_of_torch():
    stripped = state_dict("a.", num_batches_tracked=None) | state_dict("b.")
    layers = convert.convert_layers(convert.from_torch, stripped, names=["a", "b"], count=3)
    assert [int(each.state.count) for each in layers.values()] == [3, 7]
    assert int(convert.from_torch(stripped, "a", count=0, options=BARE).state.count) == 0


@pytest.mark.parametrize(
    "convert_with",
    [
        lambda **o: convert.from_keras([ones(C)] * 4, **o),
        lambda **o: convert.from_linen(linen_variables(), "bn", **o),
        lambda **o: convert.from_nnx({"mean": ones(C), "var": ones(C)}, **o),
    ],
)
def test_count_for_formats_without_one(convert_with):
    assert int(convert_with().state.count) == 0
    converted = convert_with(count=12, options=BARE)
    assert int(converted.state.count) == 12
    assert converted.state.count.dtype == jnp.int32


@pytest.mark.parametrize("count", [MOST, MOST + 1, 3_000_000_000, 2**40])
def test_counts_that_int32_does_not_hold(count):
    tracked = np.array(count, np.int64)
    got = convert.from_torch(state_dict(num_batches_tracked=tracked))
    assert int(got.state.count) == MOST
    torch = peer("torch")
    saved = state_dict(num_batches_tracked=torch.tensor(count))
    assert int(convert.from_torch(saved).state.count) == MOST
    back = convert.to_torch(*got[:2], tensors=False)["num_batches_tracked"]
    assert (int(back), back.dtype) == (MOST, np.int64)
    assert int(from_haiku(*with_counter(tracked)).state.count) == MOST
    variables = linen_variables()
    variables["batch_stats"]["bn"]["count"] = tracked
    assert int(convert.from_linen(variables, "bn").state.count) == MOST


def test_counts_that_are_whole_floats():
    """A pmean over the devices leaves the count in float32."""
    saved = convert.to_torch(*layer(jnp.float32(7)), tensors=False)
    assert int(saved["num_batches_tracked"]) == 7
    trees = convert.to_linen(*layer(jnp.float32(7)), with_count=True)
    assert trees["batch_stats"]["count"].dtype == jnp.int32


def test_counts_of_averages_are_no_matter_where_none_is_written():
    trees = layer(jnp.float32(0.3))
    assert len(convert.to_keras(*trees)) == 4
    assert "count" not in convert.to_linen(*trees)["batch_stats"]
    assert "count" not in convert.to_nnx(*trees)


# Restored checkpoints ----------------------------------------------------------------------------


def by_msgpack(trees, tmp_path):
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(trees))
    return restored["0"], restored["1"]


def by_orbax(trees, tmp_path):
    checkpointer = orbax.checkpoint.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "layer", dict(zip(("params", "state"), trees, strict=True)))
    restored = checkpointer.restore(tmp_path / "layer")
    return restored["params"], restored["state"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize("through", [by_msgpack, by_orbax])
@pytest.mark.parametrize("use_bias", [True, False])
def test_restored_trees_are_those_that_were_saved(through, use_bias, tmp_path):
    params, state = jbn.init(C, use_bias=use_bias)
    trees = params, state._replace(count=jnp.int32(7), var=jnp.arange(1.0, C + 1))
    restored = through(trees, tmp_path)
    assert isinstance(restored[0], dict)
    calls = {
        "torch": lambda *layer: convert.to_torch(*layer, tensors=False),
        "keras": convert.to_keras,
        "linen": lambda *layer: convert.to_linen(*layer, with_count=True),
        "nnx": lambda *layer: convert.to_nnx(*layer, with_count=True),
        "haiku": lambda *layer: convert.to_haiku(*layer, decay_rate=0.9),
        "fold": lambda *layer: jbn.fold(ones(2, C), None, *layer),
    }
    for call in calls.values():
        got, want = call(*restored), call(*trees)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_boxed_variables_of_linen():
    """Parameters that carry the names of a mesh's axes."""
    boxed = nn.with_partitioning(nn.initializers.ones, ("features",))
    variables = nn.BatchNorm(scale_init=boxed).init(
        jax.random.key(0), ones(2, C), use_running_average=True
    )
    assert isinstance(variables["params"]["scale"], nn.Partitioned)
    np.testing.assert_array_equal(convert.from_linen(variables).params.scale, ones(C))
