"""`jbn.fold_model`: a folded model equals the model; what cannot be folded is named."""

import re
import sys

import chex
import flax.core
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
import jbn.linen
from jbn.models import MLP

# As in test_fold: products move into the kernels, relative to the size of the output.
FOLDED = 1e-5


def values(shape, seed=0):
    return jax.device_put(np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32))


def assert_folded(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=FOLDED * np.abs(want).max())


def trained(tree, seed=1):
    """Return variables as training leaves them: nothing is 0 or 1, variances are positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put(rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)), tree
    )


# One layer, then a norm -------------------------------------------------------------------------

LINEN = {
    "dense": (lambda **kw: nn.Dense(4, **kw), (6, 5)),
    "conv": (lambda **kw: nn.Conv(4, (3, 3), **kw), (2, 5, 5, 3)),
    "conv of sequences": (lambda **kw: nn.Conv(4, (3,), strides=2, **kw), (2, 7, 3)),
    "grouped": (lambda **kw: nn.Conv(6, (3, 3), feature_group_count=2, **kw), (2, 5, 5, 4)),
    "depthwise": (lambda **kw: nn.Conv(8, (3, 3), feature_group_count=4, **kw), (2, 5, 5, 4)),
    "transposed": (lambda **kw: nn.ConvTranspose(4, (3, 3), strides=(2, 2), **kw), (2, 3, 3, 5)),
    "transposed, as many out as in": (
        lambda **kw: nn.ConvTranspose(4, (3, 3), transpose_kernel=True, **kw),
        (2, 3, 3, 4),
    ),
    "transpose_kernel": (
        lambda **kw: nn.ConvTranspose(4, (2, 3), strides=(2, 1), transpose_kernel=True, **kw),
        (2, 3, 3, 5),
    ),
}
NNX = {
    "dense": (lambda **kw: nnx.Linear(5, 4, **kw), (6, 5)),
    "conv": (lambda **kw: nnx.Conv(3, 4, (3, 3), **kw), (2, 5, 5, 3)),
    "depthwise": (lambda **kw: nnx.Conv(4, 8, (3, 3), feature_group_count=4, **kw), (2, 5, 5, 4)),
    "transposed": (lambda **kw: nnx.ConvTranspose(5, 4, (3, 3), **kw), (2, 3, 3, 5)),
    "transpose_kernel": (
        lambda **kw: nnx.ConvTranspose(4, 4, (3, 3), transpose_kernel=True, **kw),
        (2, 3, 3, 4),
    ),
}


class Block(nn.Module):
    """A layer, a norm, a nonlinearity."""

    layer: nn.Module
    norm: nn.Module | None

    @nn.compact
    def __call__(self, x):
        x = self.layer(x)
        return nn.tanh(x if self.norm is None else self.norm(x))


affine = pytest.mark.parametrize(
    "affine", [(True, True), (True, False), (False, True), (False, False)]
)


@affine
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", LINEN)
def test_linen_layer(kind, use_bias, affine):
    make, shape = LINEN[kind]
    options = {"use_scale": affine[0], "use_bias": affine[1], "epsilon": 1e-3}
    norm = jbn.linen.BatchNorm(use_running_average=True, **options)
    model = Block(make(use_bias=use_bias), norm)
    x = values(shape)
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    before = jax.tree.map(np.array, variables)
    want = model.apply(variables, x)

    folded = jbn.fold_model(model, x, variables=variables)
    assert list(folded) == ["params"]
    assert list(folded["params"]) == ["layer"]
    assert_folded(Block(make(use_bias=True), None).apply(folded, x), want)

    kept = jbn.fold_model(model, x, variables=variables, keep_norms=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(kept, variables)
    assert_folded(model.apply(kept, x), want)
    chex.assert_trees_all_equal(variables, before)


@affine
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", NNX)
def test_nnx_layer(kind, use_bias, affine):
    make, shape = NNX[kind]
    rngs = nnx.Rngs(0)
    layer = make(use_bias=use_bias, rngs=rngs)
    x = values(shape)
    features = layer(x).shape[-1]
    options = {"use_scale": affine[0], "use_bias": affine[1], "epsilon": 1e-3}
    norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs, **options)
    model = nnx.Sequential(layer, norm, jnp.tanh)
    nnx.update(model, trained(nnx.state(model)))
    before = jax.tree.map(np.array, nnx.state(model))
    want = model(x)

    folded = jbn.fold_model(model, x)
    assert not [m for _, m in nnx.iter_modules(folded) if isinstance(m, nnx.BatchNorm)]
    assert_folded(folded(x), want)
    assert_folded(nnx.jit(folded)(x), want)
    kept = jbn.fold_model(model, x, keep_norms=True)
    assert type(kept.layers[1]) is nnx.BatchNorm
    assert_folded(kept(x), want)
    chex.assert_trees_all_equal(nnx.state(model), before)
    assert type(model.layers[0]) is type(layer)


# Models -----------------------------------------------------------------------------------------


def mlp(norm=jbn.linen.BatchNorm):
    model = MLP(hidden=(6, 5), norm=norm)
    x = values((8, 4))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False))
    return model, trained(shapes), x


@pytest.mark.parametrize("norm", [nn.BatchNorm, jbn.linen.BatchNorm])
def test_mlp_becomes_the_mlp_without_norm(norm):
    model, variables, x = mlp(norm)
    folded = jbn.fold_model(model, x, variables=variables, training=False)
    plain = MLP(hidden=(6, 5), norm=None)
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, training=False))
    chex.assert_trees_all_equal_shapes_and_dtypes(folded, shapes)
    want = model.apply(variables, x, training=False)
    assert_folded(plain.apply(folded, x, training=False), want)


def test_only_shapes_matter_and_jit_works():
    model, variables, x = mlp()
    want = jbn.fold_model(model, x, variables=variables, training=False)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    chex.assert_trees_all_equal(
        jbn.fold_model(model, like, variables=variables, training=False), want
    )
    jitted = jax.jit(lambda v: jbn.fold_model(model, like, variables=v, training=False))
    chex.assert_trees_all_close(jitted(variables), want, rtol=1e-6, atol=1e-6)


def test_frozen_and_boxed_variables():
    """A FrozenDict, and kernels that carry the names of a mesh's axes."""
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    model, x = MLP(hidden=(6,), norm=nn.BatchNorm, kernel_init=boxed), values((8, 4))
    variables = model.init(jax.random.key(0), x, training=False)
    want = model.apply(variables, x, training=False)
    folded = jbn.fold_model(model, x, variables=flax.core.freeze(variables), training=False)
    assert_folded(MLP(hidden=(6,)).apply(folded, x, training=False), want)


class Residual(nn.Module):
    """Skips that folding allows: around layer and norm; a norm of its own on the shortcut."""

    @nn.compact
    def __call__(self, x):
        def norm(name):
            return nn.BatchNorm(use_running_average=True, name=name)

        y = nn.relu(norm("norm_0")(nn.Conv(6, (3, 3), use_bias=False, name="conv_0")(x)))
        y = norm("norm_1")(nn.Conv(6, (3, 3), use_bias=False, name="conv_1")(y))
        shortcut = norm("norm_2")(nn.Conv(6, (1, 1), name="conv_2")(x))
        x = nn.relu(y + shortcut)
        return Inner(name="inner")(x) + x


class Inner(nn.Module):
    """A module in the module, its activation first."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="early")(x))
        x = nn.Conv(6, (3, 3), name="conv")(x)
        return nn.BatchNorm(use_running_average=True, name="late")(x)


def test_residual_network_and_choice_of_layers():
    model, x = Residual(), values((2, 5, 5, 3))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    want = model.apply(variables, x)
    with pytest.raises(ValueError, match="inner/early") as error:
        jbn.fold_model(model, x, variables=variables)
    assert "late" not in str(error.value)
    layers = ["norm_0", "norm_1", "norm_2", "inner/late"]
    kept = jbn.fold_model(model, x, variables=variables, layers=layers, keep_norms=True)
    assert_folded(model.apply(kept, x), want)
    chex.assert_trees_all_equal(
        kept["batch_stats"]["inner"]["early"], variables["batch_stats"]["inner"]["early"]
    )
    folded = jbn.fold_model(model, x, variables=variables, layers=layers)
    assert list(folded["batch_stats"]) == ["inner"]
    assert list(folded["batch_stats"]["inner"]) == ["early"]


# What cannot be folded --------------------------------------------------------------------------


class Custom(nn.Module):
    """Whatever `body` does with the module and x."""

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
    """The use elsewhere reaches the output through another pair, which is cut, too."""
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
    "nothing before": (lambda x: dense()(norm()(x)), "norm: no dense"),
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
        x = norm("second")(dense("dense_1")(x))
        h = dense("dense_2")(x)
        return norm("third")(h) * h

    model, x = Custom(body), values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    with pytest.raises(ValueError, match="in the way") as error:
        jbn.fold_model(model, x, variables=variables)
    assert re.findall(r"- (\w+):", str(error.value)) == ["first", "third"]
    with pytest.raises(ValueError, match=r"typo: the model calls no such.* first, second, third"):
        jbn.fold_model(model, x, variables=variables, layers=["typo"])
    assert set(jbn.fold_model(model, x, variables=variables, layers=["second"])["batch_stats"]) == {
        "first",
        "third",
    }


class Net(nnx.Module):
    """Calls two layers and a norm as `order` says."""

    def __init__(self, order, *, tie=False, axis=-1, use_running_average=True):
        rngs = nnx.Rngs(0)
        self.first, self.second = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
        if tie:
            self.first.kernel = self.second.kernel
        self.norm = nnx.BatchNorm(4, axis=axis, use_running_average=use_running_average, rngs=rngs)
        self.order = order

    def __call__(self, x):
        return self.order(self, x)


NNX_IMPOSSIBLE = {
    "activation": (
        lambda m, x: m.second(m.norm(jax.nn.relu(m.first(x)))),
        {},
        "norm: .*activation.* first,",
    ),
    "nothing before": (lambda m, x: m.first(m.norm(x)), {}, "norm: no dense"),
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


def test_nnx_layers_are_subclassed_once():
    """Flax registers every class for good: one a call would stay."""
    model, x = Net(lambda m, x: m.norm(m.first(x))), values((4, 4))
    jbn.fold_model(model, x)
    kinds = nnx.BatchNorm, nnx.Linear
    before = [kind.__subclasses__() for kind in kinds]
    jbn.fold_model(model, x)
    assert [kind.__subclasses__() for kind in kinds] == before


def test_a_norm_with_two_names_is_replaced_under_both():
    model = Net(lambda m, x: m.alias(m.first(x)))
    model.alias = model.norm
    model.norm.mean[...] = values((4,))
    x = values((4, 4))
    want = model(x)
    folded = jbn.fold_model(model, x)
    assert_folded(folded(x), want)
    assert folded.alias is folded.norm


# Layers that cannot be folded into ---------------------------------------------------------------


class OwnLayer(nnx.Module):
    """A dense layer that somebody wrote."""

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


# name: (the layer before the norm, words that the message holds)
OTHER_LAYERS = {
    "DenseGeneral": (lambda: nn.DenseGeneral(4, name="first"), []),
    "Einsum": (lambda: nn.Einsum((4, 4), "ab,bc->ac", name="first"), []),
    "ConvLocal": (lambda: nn.ConvLocal(4, (1,), name="first"), []),
    "LayerNorm": (lambda: nn.LayerNorm(name="first"), []),
    "Relu": (lambda: Relu(4, name="first"), ["derived"]),
    "Sequential": (lambda: nn.Sequential([nn.Dense(4), nn.relu], name="first"), []),
}
NNX_OTHER_LAYERS = {
    "LinearGeneral": lambda rngs: nnx.LinearGeneral(4, 4, rngs=rngs),
    "Einsum": lambda rngs: nnx.Einsum("ab,bc->ac", (4, 4), rngs=rngs),
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
    with pytest.raises(ValueError, match="in the way") as error:
        fold_linen(lambda x: norm()(make()(x)))
    for word in (
        f"norm: its input is the output of first, of type {kind}",
        "ConvTranspose",
        *words,
    ):
        assert word in str(error.value)


def test_other_layers_are_named_further_back():
    message = "norm: the last layer before it is first, of type DenseGeneral. Only Dense, Conv,"
    with pytest.raises(ValueError, match=message):
        fold_linen(lambda x: norm()(nn.relu(nn.DenseGeneral(4, name="first")(x))))


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


def test_layers_called_by_keyword():
    model, x = Net(lambda m, x: m.norm(x=m.first(inputs=x))), values((4, 4))
    assert_folded(jbn.fold_model(model, x)(x), model(x))


def test_restored_variables():
    """A checkpoint restored without a target: plain dicts of NumPy arrays."""
    model, variables, x = mlp()
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(variables))
    want = jbn.fold_model(model, x, variables=variables, training=False)
    got = jbn.fold_model(model, x, variables=restored, training=False)
    chex.assert_trees_all_equal(got, want)


# Wrong calls ------------------------------------------------------------------------------------


def fold_mlp(**changes):
    """Fold the MLP with arguments that are made from its variables."""
    model, variables, x = mlp()
    keywords = {"variables": variables, "training": False}
    keywords |= {name: make(variables) for name, make in changes.items()}
    return jbn.fold_model(model, x, **keywords)


def fold_nnx(**options):
    return jbn.fold_model(Net(lambda m, x: m.norm(m.first(x))), values((4, 4)), **options)


# name: (call, error, words that the message holds)
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
