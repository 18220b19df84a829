"""Wrong calls of `jbn.fold_model`, and their messages."""

import sys

import flax.linen as nn
import jax
import pytest
from folding import Net, mlp, values

import jbn


def fold_mlp(**changes):
    """Fold the MLP with arguments made from its variables."""
    model, variables, x = mlp()
    keywords = {"variables": variables, "training": False}
    keywords |= {name: make(variables) for name, make in changes.items()}
    return jbn.fold_model(model, x, **keywords)


def fold_nnx(**options):
    return jbn.fold_model(Net(lambda m, x: m.norm(m.first(x))), values((4, 4)), **options)


# name: (call, error, words in the message)
CASES = {
    "no variables": (
        lambda: jbn.fold_model(nn.Dense(3), values((2, 3))),
        TypeError,
        ["`variables`", "None", "fold_model(model, x, variables=variables)"],
    ),
    "variables before x": (
        lambda: jbn.fold_model(nn.Dense(3), {"params": {}}, values((2, 3))),
        TypeError,
        ["`variables`", "None", "fold_model(model, x, variables=variables)"],
    ),
    "empty variables": (
        lambda: fold_mlp(variables=lambda v: {}),
        ValueError,
        ["'params' and 'batch_stats'", "no keys", "model.init"],
    ),
    "variables of empty collections": (
        lambda: fold_mlp(variables=lambda v: {"params": {}, "batch_stats": {}}),
        ValueError,
        ["the keys 'params', 'batch_stats', of which 'params' and 'batch_stats' hold nothing"],
    ),
    "variables with empty batch_stats": (
        lambda: fold_mlp(variables=lambda v: {**v, "batch_stats": {}}),
        ValueError,
        ["of which 'batch_stats' holds nothing", "nothing to fold"],
    ),
    "variables without batch_stats": (
        lambda: fold_mlp(variables=lambda v: {"params": v["params"]}),
        ValueError,
        ["'batch_stats'", "the keys 'params'"],
    ),
    "variables without params": (
        lambda: fold_mlp(variables=lambda v: {"batch_stats": v["batch_stats"]}),
        ValueError,
        ["'params'", "the keys 'batch_stats'"],
    ),
    "params for variables": (
        lambda: fold_mlp(variables=lambda v: v["params"]),
        ValueError,
        ["'params' and 'batch_stats'", "{'params': ..., 'batch_stats': ...}"],
    ),
    "output and variables": (
        lambda: fold_mlp(variables=lambda v: (values((8, 10)), v)),
        TypeError,
        ["`variables`", "a tuple of 2", "model.init"],
    ),
    "a state of jbn in variables": (
        lambda: fold_mlp(variables=lambda v: {**v, "batch_stats": {"norm_0": jbn.init(6)[1]}}),
        TypeError,
        ["`variables`", "BatchNormState", "to_linen"],
    ),
    "shapes for variables": (
        lambda: fold_mlp(variables=lambda v: jax.eval_shape(lambda: v)),
        TypeError,
        ["arrays in `variables`", "jax.ShapeDtypeStruct", "jax.eval_shape"],
    ),
    "keep_norms as a word": (
        lambda: fold_mlp(keep_norms=lambda v: "no"),
        TypeError,
        ["`keep_norms` to be True or False", "'no'"],
    ),
    "mutable statistics": (
        lambda: fold_mlp(mutable=lambda v: ["batch_stats"]),
        TypeError,
        ["no `mutable` in the call", "inference", "Leave it out"],
    ),
    "intermediates": (
        lambda: fold_mlp(capture_intermediates=lambda v: True),
        TypeError,
        ["no `capture_intermediates` in the call"],
    ),
    "layers as a string": (
        lambda: fold_mlp(layers=lambda v: "norm_0"),
        TypeError,
        ["`layers`", "'norm_0'", "layers=['norm_0']"],
    ),
    "layers of numbers": (
        lambda: fold_mlp(layers=lambda v: [0]),
        TypeError,
        ["`layers`", "a list of 1 (int)", "layers=['block_0/norm']"],
    ),
    "layers as a string, nnx": (
        lambda: fold_nnx(layers="norm"),
        TypeError,
        ["`layers`", "layers=['norm']"],
    ),
    "variables of nnx": (
        lambda: fold_nnx(variables={}),
        TypeError,
        ["no `variables`", "Leave"],
    ),
    "a class": (
        lambda: jbn.fold_model(Net, values((4, 4))),
        TypeError,
        ["the class Net, not an instance", "Make an instance"],
    ),
    "a function": (
        lambda: jbn.fold_model(lambda x: x, values((2, 3))),
        TypeError,
        ["function", "jbn.fold"],
    ),
    "variables for the model": (
        lambda: jbn.fold_model({"params": {}}, values((2, 3))),
        TypeError,
        ["a dict with the keys 'params'", "flax.linen or flax.nnx"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["Expected", "got", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"


def test_without_flax(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r"pip install 'jbn\[flax\]'"):
        jbn.fold_model(None)
