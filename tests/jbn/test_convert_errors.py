"""Trees, options and arrays that `jbn.convert` rejects, and its messages."""

import jax.numpy as jnp
import pytest
from convertible import BARE, C, Error, layer, linen_variables, ones, state_dict, torch_nn

import jbn
from jbn import convert

# name: (call, error, words in the message)
CASES = {
    # jbn's trees.
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
        ["`options`", "Converted", "third result"],
    ),
    "framework as a list": (
        lambda: convert.framework_kwargs(BARE, ["torch"]),
        ValueError,
        ["`framework`", "a list of 1", "torch, keras"],
    ),
    # Several layers, and kernels.
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
