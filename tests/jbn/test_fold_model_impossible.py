"""What `jbn.fold_model` cannot fold: the error names the layer in the way."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from folding import Net, trained, values

import jbn

# What cannot be folded --------------------------------------------------------------------------


class Custom(nn.Module):
    """A module that applies `body` to x."""

    body: object

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def dense(name="dense", features=4, **options):
    return nn.Dense(features, name=name, **options)


def norm(name="norm", **options):
    return nn.BatchNorm(name=name, **{"use_running_average": True, **options})


def skip(x):
    h = dense()(x)
    return norm()(h) + h


def hidden_skip(x):
    """The other use reaches the output only through another pair of layer and norm, cut as well."""
    h = dense()(x)
    return norm()(h) + norm("other")(dense("a_later_one")(h))


def twice(x):
    layer = dense()
    return norm()(layer(layer(x)))


def norm_twice(x):
    layer = norm()
    return layer(dense()(layer(dense("other")(x))))


def tied(x):
    layer = dense()
    y = norm()(layer(x))
    return y @ layer.variables["params"]["kernel"].T


def two_norms(x):
    h = dense()(x)
    return norm()(h) + norm("second")(h)


def statistics(x):
    layer = norm()
    return layer(dense()(x)) + layer.variables["batch_stats"]["mean"][None]


class Relu(nn.Dense):
    """A dense layer with its activation inside."""

    def __call__(self, x):
        return nn.relu(super().__call__(x))


IMPOSSIBLE = {
    "activation": (lambda x: norm()(nn.relu(dense()(x))), "norm: .*activation.* dense,"),
    "activation inside": (lambda x: norm()(Relu(4)(x)), "norm: "),
    "nothing beside": (lambda x: nn.relu(norm()(x)), "norm: no dense"),
    "reshape": (lambda x: norm()(dense()(x).reshape(-1, 4)[::2]), "norm: .*between dense"),
    "skip": (skip, "norm: the output of dense is used elsewhere"),
    "skip past another": (hidden_skip, "norm: the output of dense is used elsewhere"),
    "layer twice": (twice, "norm: dense before it is called 2 times"),
    "norm twice": (norm_twice, "norm: is called 2 times"),
    "tied kernel": (tied, "norm: the kernel of dense is used elsewhere"),
    "two norms": (two_norms, "norm: dense before it feeds norm and second"),
    "statistics": (statistics, "norm: the mean of norm is used elsewhere"),
    "training": (
        lambda x: norm(use_running_average=False)(dense()(x)),
        "norm: is called in training mode",
    ),
    "feature axis": (
        lambda x: norm(axis=0)(dense()(x)),
        "norm: its feature axis is not the last",
    ),
    "lifted": (
        lambda x: norm()(nn.WeightNorm(dense())(x)),
        "norm: .* has its kernel changed",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_is_named(case):
    body, message = IMPOSSIBLE[case]
    model, x = Custom(body), values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    with pytest.raises(ValueError, match=message):
        jbn.fold_model(model, x, variables=variables)


def test_all_that_is_impossible_is_named_at_once():
    def body(x):
        x = norm("first")(nn.relu(dense("dense_0")(x)))
        x = norm("second")(dense("dense_1")(nn.relu(x)))
        h = dense("dense_2")(x)
        return norm("third")(h) * h

    model, x = Custom(body), values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    with pytest.raises(ValueError, match="Cannot fold every batch norm") as error:
        jbn.fold_model(model, x, variables=variables)
    assert re.findall(r"- (\w+):", str(error.value)) == ["first", "third"]
    with pytest.raises(ValueError, match=r"typo: the model calls no such.* first, second, third"):
        jbn.fold_model(model, x, variables=variables, layers=["typo"])
    assert set(jbn.fold_model(model, x, variables=variables, layers=["second"])["batch_stats"]) == {
        "first",
        "third",
    }


NNX_IMPOSSIBLE = {
    "activation": (
        lambda m, x: m.norm(jax.nn.relu(m.first(x))),
        {},
        "norm: .*activation.* first,",
    ),
    "nothing beside": (lambda m, x: jnp.tanh(m.norm(x)), {}, "norm: no dense"),
    "skip": (
        lambda m, x: m.norm(m.first(x)) + m.first.bias[None] + m.second(x),
        {},
        "norm: the bias of first is used elsewhere",
    ),
    "tied": (
        lambda m, x: m.second(m.norm(m.first(x))),
        {"tie": True},
        "norm: first before it shares a parameter",
    ),
    "tied, the other": (
        lambda m, x: m.norm(m.second(m.first(x))),
        {"tie": True},
        "norm: second before it shares a parameter",
    ),
    "training": (
        lambda m, x: m.norm(m.first(x)),
        {"use_running_average": False},
        "norm: is called in training mode",
    ),
    "feature axis": (
        lambda m, x: m.norm(m.first(x)),
        {"axis": 0},
        "norm: its feature axis is not the last",
    ),
}


@pytest.mark.parametrize("case", NNX_IMPOSSIBLE)
def test_impossible_in_nnx_is_named(case):
    order, options, message = NNX_IMPOSSIBLE[case]
    with pytest.raises(ValueError, match=message):
        jbn.fold_model(Net(order, **options), values((4, 4)))


# Layers that cannot be folded into ---------------------------------------------------------------


class OwnLayer(nnx.Module):
    """A user-defined dense layer."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones((4, 4)))

    def __call__(self, x):
        return x @ self.weight[...]


class NormRelu(nn.BatchNorm):
    """A batch norm with its activation inside."""

    def __call__(self, x, use_running_average=None):
        return nn.relu(super().__call__(x, use_running_average))


class NnxNormRelu(nnx.BatchNorm):
    """A batch norm with its activation inside."""

    def __call__(self, x, use_running_average=None):
        return jax.nn.relu(super().__call__(x, use_running_average))


# name: (the layer before the norm, words in the message)
OTHER_LAYERS = {
    "ConvLocal": (lambda: nn.ConvLocal(4, (1,), name="first"), []),
    "LayerNorm": (lambda: nn.LayerNorm(name="first"), []),
    "Relu": (lambda: Relu(4, name="first"), ["derived"]),
    "Sequential": (lambda: nn.Sequential([nn.Dense(4), nn.relu], name="first"), []),
}
NNX_OTHER_LAYERS = {
    "LoRALinear": lambda rngs: nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs),
    "LayerNorm": lambda rngs: nnx.LayerNorm(4, rngs=rngs),
    "OwnLayer": lambda rngs: OwnLayer(),
}


def fold_linen(body):
    model, x = Custom(body), values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    return jbn.fold_model(model, x, variables=variables)


@pytest.mark.parametrize("kind", OTHER_LAYERS)
def test_other_layers_are_named(kind):
    make, words = OTHER_LAYERS[kind]
    with pytest.raises(ValueError, match="Cannot fold every batch norm") as error:
        fold_linen(lambda x: norm()(make()(x)))
    for word in (
        f"norm: its input is the output of first, of type {kind}",
        "ConvTranspose",
        *words,
    ):
        assert word in str(error.value)


def test_other_layers_are_named_further_back():
    message = "norm: the last layer before it is first, of type ConvLocal. Only Dense, Conv,"
    with pytest.raises(ValueError, match=message):
        fold_linen(lambda x: norm()(nn.relu(nn.ConvLocal(4, (1,), name="first")(x))))


@pytest.mark.parametrize("kind", NNX_OTHER_LAYERS)
def test_other_layers_of_nnx_are_named(kind):
    model = Net(lambda m, x: m.norm(m.first(x)))
    model.first = NNX_OTHER_LAYERS[kind](nnx.Rngs(0))
    message = f"norm: its input is the output of first, of type {kind}. Only Linear, Conv,"
    with pytest.raises(ValueError, match=message):
        jbn.fold_model(model, values((4, 4)))


def test_norms_that_do_more_are_refused():
    with pytest.raises(ValueError, match="norm: has a __call__ of its own"):
        fold_linen(lambda x: NormRelu(use_running_average=True, name="norm")(dense()(x)))
    model = Net(lambda m, x: m.norm(m.first(x)))
    model.norm = NnxNormRelu(4, use_running_average=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="norm: has a __call__ of its own"):
        jbn.fold_model(model, values((4, 4)))


# What comes after a norm without a layer before it ----------------------------------------------

AFTER = {
    "activation": (
        lambda x: dense("second")(nn.relu(norm()(x))),
        "After it comes second, but something else, such as an activation, is between them.",
    ),
    "other layer": (
        lambda x: dense("third")(nn.LayerNorm(name="second")(norm()(x))),
        "After it comes second, of type LayerNorm.",
    ),
    "norm": (lambda x: norm("norm_10")(norm("norm_1")(x)), "After it comes norm_10, a norm."),
    "nothing": (lambda x: nn.relu(norm()(x)), "No layer is called after it."),
}


@pytest.mark.parametrize("case", AFTER)
def test_what_is_after_a_norm_is_named(case):
    body, words = AFTER[case]
    with pytest.raises(ValueError, match="no dense or convolutional layer is before it") as error:
        fold_linen(body)
    assert words in str(error.value)


# Bridges ----------------------------------------------------------------------------------------


class Bridged(nnx.Module):
    """A linen model with a batch norm, followed by nnx layers."""

    def __init__(self, x):
        rngs = nnx.Rngs(0)
        inner = nn.Sequential([dense(), norm()])
        self.inner = nnx.bridge.ToNNX(inner, rngs=rngs).lazy_init(x)
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.first(self.inner(x)))


def test_norms_inside_a_bridge_to_nnx_are_named():
    x = values((8, 4))
    model = Bridged(x)
    with pytest.raises(ValueError, match=r"inner/layers_1: is inside nnx\.bridge\.ToNNX") as error:
        jbn.fold_model(model, x)
    assert str(error.value).count("\n  - ") == 1
    folded = jbn.fold_model(model, x, layers=["norm"])
    assert not isinstance(folded.norm, nnx.BatchNorm)


class Wrapped(Net):
    """A `Net` with the constructor that a bridge expects."""

    def __init__(self, rngs):
        super().__init__(lambda m, x: m.norm(m.first(x)))


def test_norms_inside_a_bridge_to_linen_are_named():
    def body(x):
        return norm()(dense()(nnx.bridge.to_linen(Wrapped, name="inner")(x)))

    model, x = Custom(body), values((8, 4))
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"inner/norm: is inside nnx\.bridge\.ToLinen"):
        jbn.fold_model(model, x, variables=variables)
    folded = jbn.fold_model(model, x, variables=variables, layers=["norm"])
    assert set(folded["batch_stats"]) == {"inner"}
