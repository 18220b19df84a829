"""`jbn.fold_model`: a folded model equals the model, layer by layer and as a whole."""

import chex
import flax.core
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from folding import Net, mlp, trained, values

import jbn
import jbn.linen
import jbn.nnx
from jbn.models import MLP

# As in test_fold, factors move into the kernels; relative to the size of the output.
FOLDED = 1e-5


def assert_folded(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=FOLDED * np.abs(want).max())


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
    """A layer, a norm and a nonlinearity."""

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
    """Variables in a FrozenDict, and kernels that carry the names of mesh axes."""
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    model, x = MLP(hidden=(6,), norm=nn.BatchNorm, kernel_init=boxed), values((8, 4))
    variables = model.init(jax.random.key(0), x, training=False)
    want = model.apply(variables, x, training=False)
    folded = jbn.fold_model(model, x, variables=flax.core.freeze(variables), training=False)
    assert_folded(MLP(hidden=(6,)).apply(folded, x, training=False), want)


class Residual(nn.Module):
    """Skip connections that can be folded: around layer and norm, or with norm on the shortcut."""

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
    """A nested module that begins with a norm and its activation."""

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


def test_nnx_layers_are_subclassed_once():
    """Flax registers every class permanently, so a new class per call would leak."""
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


def test_layers_called_by_keyword():
    model, x = Net(lambda m, x: m.norm(x=m.first(inputs=x))), values((4, 4))
    assert_folded(jbn.fold_model(model, x)(x), model(x))


def test_restored_variables():
    """A checkpoint restored without a target consists of plain dicts of NumPy arrays."""
    model, variables, x = mlp()
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(variables))
    want = jbn.fold_model(model, x, variables=variables, training=False)
    got = jbn.fold_model(model, x, variables=restored, training=False)
    chex.assert_trees_all_equal(got, want)


class Jitted(nnx.Module):
    """A model that compiles part of itself."""

    def __init__(self, rngs, *, reads_kernel=False):
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.norm = jbn.nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.reads_kernel = reads_kernel

    def __call__(self, x):
        y = nnx.jit(lambda model, x: model.norm(model.dense(x)))(self, x)
        if self.reads_kernel:
            y += nnx.jit(lambda model: model.dense.kernel.sum())(self)
        return y


def test_nnx_model_that_compiles_a_part_of_itself():
    """nnx.jit returns all variables unchanged, and returning one does not count as using it."""
    model, x = Jitted(nnx.Rngs(0)), values((3, 5))
    nnx.update(model, trained(nnx.state(model)))
    assert_folded(jbn.fold_model(model, x)(x), model(x))
    with pytest.raises(ValueError, match="norm: the kernel of dense is used elsewhere"):
        jbn.fold_model(Jitted(nnx.Rngs(0), reads_kernel=True), x)
