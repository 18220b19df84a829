"""`jbn.fold_model` in cases other than a batch norm right after a layer.

The norm may come before the layer, with reshapes or averages between them, and the layer may have
several axes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from folding import trained, values

import jbn
import jbn.linen

# Factors move into the kernels; relative to the size of the output.
FOLDED = 1e-5
MAPS = (2, 6, 6, 4)

norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-3)
conv = functools.partial(nn.Conv, 6, (3, 3), padding="VALID")
pool = functools.partial(nn.avg_pool, window_shape=(3, 3), strides=(2, 2))
same = functools.partial(pool, padding="SAME")


class Model(nn.Module):
    """A model that applies `body` to x, with a norm or without it.

    `body` makes the submodules. Its second argument is the norm, or the identity.
    """

    body: object
    normalized: bool = True

    @nn.compact
    def __call__(self, x):
        return self.body(x, norm(name="norm") if self.normalized else lambda x: x)


def fold(body, shape, **options):
    """Return the model, its variables, the input, and the folded variables."""
    model, x = Model(body), values(shape)
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    return model, variables, x, jbn.fold_model(model, x, variables=variables, **options)


def assert_folded(got, want):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=FOLDED * np.abs(want).max())


# Each layer has a bias, so that the same body without the norm accepts the folded variables.
FOLDABLE = {
    "norm, dense": (lambda x, norm: nn.Dense(3)(norm(x)), (5, 4)),
    "norm, conv": (lambda x, norm: conv()(norm(x)), MAPS),
    "norm, conv of sequences": (
        lambda x, norm: nn.Conv(3, 3, strides=2, kernel_dilation=2, padding=0)(norm(x)),
        (2, 9, 4),
    ),
    "norm, grouped conv": (lambda x, norm: conv(feature_group_count=2)(norm(x)), MAPS),
    "norm, depthwise conv": (
        lambda x, norm: nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4)(norm(x)),
        MAPS,
    ),
    "norm, 1x1 conv": (lambda x, norm: nn.Conv(6, (1, 1), strides=2)(norm(x)), MAPS),
    "norm, circular conv": (lambda x, norm: nn.Conv(6, (3, 3), padding="CIRCULAR")(norm(x)), MAPS),
    "norm, flatten, dense": (lambda x, norm: nn.Dense(3)(norm(x).reshape(2, -1)), MAPS),
    "norm, mean, dense": (lambda x, norm: nn.Dense(3)(jnp.mean(norm(x), (1, 2))), MAPS),
    "norm, pool, conv": (lambda x, norm: nn.Conv(3, (1, 1))(pool(norm(x))), MAPS),
    "norm, pool and flatten, dense": (
        lambda x, norm: nn.Dense(3)(same(norm(x), count_include_pad=False).reshape(2, -1)),
        MAPS,
    ),
    "norm, DenseGeneral": (lambda x, norm: nn.DenseGeneral((2, 3), axis=(-1, -2))(norm(x)), MAPS),
    "norm, Einsum": (
        lambda x, norm: nn.Einsum((3, 4), "n...b,ab->n...a")(norm(x)),
        MAPS,
    ),
    "dense, flatten, norm": (lambda x, norm: norm(nn.Dense(3)(x).reshape(-1, 3)), (2, 5, 4)),
    "dense, reshape, norm": (lambda x, norm: norm(nn.Dense(12)(x).reshape(5, 2, 2, 3)), (5, 4)),
    "dense, squeeze, norm": (lambda x, norm: norm(nn.Dense(3)(x)[:, None][:, 0]), (5, 4)),
    "conv, mean, norm": (lambda x, norm: norm(jnp.mean(nn.Conv(6, (3, 3))(x), (1, 2))), MAPS),
    "conv, pool, norm": (lambda x, norm: norm(pool(nn.Conv(6, (3, 3))(x))), MAPS),
    "conv, pool twice, norm": (
        lambda x, norm: norm(jnp.mean(pool(nn.Conv(6, (3, 3))(x)), (1, 2))),
        MAPS,
    ),
    "conv, jitted pool, norm": (
        lambda x, norm: norm(jax.jit(same, static_argnames="count_include_pad")(
            nn.Conv(6, (3, 3))(x), count_include_pad=False
        )),
        MAPS,
    ),
    "DenseGeneral, norm": (lambda x, norm: norm(nn.DenseGeneral((2, 3), axis=(1, 3))(x)), MAPS),
    "DenseGeneral, flatten, norm": (
        lambda x, norm: norm(nn.DenseGeneral((2, 3))(x).reshape(5, 6)),
        (5, 4),
    ),
    "Einsum, norm": (lambda x, norm: norm(nn.Einsum((4, 2, 3), "nta,ahd->nthd")(x)), (2, 5, 4)),
    "norm between two, the first's output used": (
        lambda x, norm: (lambda h: h + nn.Dense(3, name="b")(norm(h)))(nn.Dense(3, name="a")(x)),
        (5, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDABLE)
def test_folds(case):
    body, shape = FOLDABLE[case]
    model, variables, x, folded = fold(body, shape)
    want = model.apply(variables, x)
    assert list(folded) == ["params"]
    assert "norm" not in folded["params"]
    assert_folded(Model(body, normalized=False).apply(folded, x), want)
    kept = jbn.fold_model(model, x, variables=variables, keep_norms=True)
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, variables)
    assert_folded(model.apply(kept, x), want)


def test_a_norm_before_a_convolution_in_float64():
    """Check the formula itself, against sums over patches."""
    _, variables, x, folded = fold(FOLDABLE["norm, conv"][0], MAPS)
    params = jax.tree.map(np.float64, variables["params"])
    stats = jax.tree.map(np.float64, variables["batch_stats"]["norm"])
    normalized = (np.float64(x) - stats["mean"]) / np.sqrt(stats["var"] + 1e-3)
    normalized = normalized * params["norm"]["scale"] + params["norm"]["bias"]
    kernel, bias = params["Conv_0"]["kernel"], params["Conv_0"]["bias"]
    patches = np.lib.stride_tricks.sliding_window_view(normalized, (3, 3), axis=(1, 2))
    want = np.einsum("nhwcij,ijcf->nhwf", patches, kernel) + bias
    assert_folded(Model(FOLDABLE["norm, conv"][0], normalized=False).apply(folded, x), want)


def test_norms_on_both_sides_of_a_layer():
    class Chain(nn.Module):
        normalized: bool = True

        @nn.compact
        def __call__(self, x):
            make = norm if self.normalized else lambda name: lambda x: x
            return make(name="second")(nn.Dense(3, name="dense")(make(name="first")(x)))

    x = values((5, 4))
    variables = trained(jax.eval_shape(Chain().init, jax.random.key(0), x))
    folded = jbn.fold_model(Chain(), x, variables=variables)
    assert_folded(Chain(normalized=False).apply(folded, x), Chain().apply(variables, x))


def test_a_layer_without_bias():
    """Folding adds a bias, except in linen with `keep_norms`: variables must fit the same model."""

    def body(x, norm, use_bias=False):
        return nn.Dense(3, use_bias=use_bias)(norm(x))

    model, variables, x, folded = fold(body, (5, 4))
    plain = Model(functools.partial(body, use_bias=True), normalized=False)
    assert_folded(plain.apply(folded, x), model.apply(variables, x))
    with pytest.raises(ValueError, match=r"norm: .* Dense_0 after it has no bias .*use_bias=True"):
        fold(body, (5, 4), keep_norms=True)


# ---- nnx -----------------------------------------------------------------------------------------


NNX = {
    "norm, conv": (
        lambda rngs: nnx.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2, rngs=rngs),
        lambda m, x: m.layer(m.norm(x)),
    ),
    "norm, pool and flatten, dense": (
        lambda rngs: nnx.Linear(16, 3, use_bias=False, rngs=rngs),
        lambda m, x: m.layer(nnx.avg_pool(m.norm(x), (2, 2), (3, 3)).reshape(2, 16)),
    ),
    "conv, mean, norm": (
        lambda rngs: nnx.Conv(4, 4, (3, 3), rngs=rngs),
        lambda m, x: m.norm(jnp.mean(m.layer(x), (1, 2))),
    ),
    "LinearGeneral, norm": (
        lambda rngs: nnx.LinearGeneral((4,), (2, 4), rngs=rngs),
        lambda m, x: m.norm(m.layer(x)),
    ),
    "norm, Einsum": (
        lambda rngs: nnx.Einsum("nhwa,ab->nhwb", (4, 3), (3,), rngs=rngs),
        lambda m, x: m.layer(m.norm(x)),
    ),
    "Einsum without bias, norm": (
        lambda rngs: nnx.Einsum("nhwa,abc->nhwbc", (4, 3, 4), rngs=rngs),
        lambda m, x: m.norm(m.layer(x)),
    ),
}


@pytest.mark.parametrize("case", NNX)
def test_folds_nnx(case):
    make, order = NNX[case]

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layer = make(rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return order(self, x)

    model, x = Net(), values(MAPS)
    nnx.update(model, trained(nnx.state(model)))
    want = model(x)
    folded = jbn.fold_model(model, x)
    assert not isinstance(folded.norm, nnx.BatchNorm)
    assert_folded(folded(x), want)
    assert_folded(jbn.fold_model(model, x, keep_norms=True)(x), want)


# ---- What cannot be folded -----------------------------------------------------------------------


def two_readers(x, norm):
    h = norm(x)
    return nn.Dense(3, name="a")(h) + nn.Dense(3, name="b")(h)


def read_besides(x, norm):
    h = norm(x)
    return nn.Dense(4)(h) + h


def pooled_besides(x, norm):
    h = jnp.mean(nn.Conv(4, (3, 3))(x), (1, 2))
    return norm(h) + h


def twice(x, norm):
    layer = nn.Dense(4, name="dense")
    return layer(layer(norm(x)))


PADS = "norm: .* Conv_0 after it pads its input with zeros"
BETWEEN = "norm: its input is not the output of a dense or convolutional layer"
IMPOSSIBLE = {
    "norm, SAME conv": (lambda x, norm: nn.Conv(3, (3, 3))(norm(x)), PADS),
    "norm, padded conv": (
        lambda x, norm: nn.Conv(3, (3, 3), padding=((0, 0), (1, 0)))(norm(x)),
        PADS,
    ),
    "norm, causal conv": (lambda x, norm: nn.Conv(3, 3, padding="CAUSAL")(norm(x[:, 0])), PADS),
    "norm, dilated input": (
        lambda x, norm: nn.Conv(3, (3, 3), padding=0, input_dilation=2)(norm(x)),
        PADS,
    ),
    "norm, transposed conv": (
        lambda x, norm: nn.ConvTranspose(3, (3, 3), padding="VALID")(norm(x)),
        "norm: .* ConvTranspose_0 after it is a transposed convolution",
    ),
    "norm, masked conv": (
        lambda x, norm: conv(mask=jnp.ones((3, 3, 4, 6)))(norm(x)),
        "norm: .* Conv_0 after it has a mask",
    ),
    "norm, relu, dense": (lambda x, norm: nn.Dense(3)(nn.relu(norm(x))), "norm: no dense"),
    "norm, max pool, dense": (
        lambda x, norm: nn.Dense(3)(nn.max_pool(norm(x), (2, 2))),
        "norm: no dense",
    ),
    "norm, padded pool, dense": (lambda x, norm: nn.Dense(3)(same(norm(x))), "norm: no dense"),
    "norm, sum, dense": (lambda x, norm: nn.Dense(3)(jnp.sum(norm(x), (1, 2))), "norm: no dense"),
    "norm, mean over features, dense": (
        lambda x, norm: nn.Dense(3)(jnp.mean(norm(x), -1)),
        "norm: no dense",
    ),
    "norm, split features, dense": (
        lambda x, norm: nn.Dense(3)(norm(x).reshape(-1, 2)),
        "norm: .*It has 4 features, which do not divide the 2 inputs of Dense_0 after it",
    ),
    "norm, two layers": (two_readers, "norm: .*feeds a and b, expected one"),
    "norm used besides": (read_besides, "norm: .*the output of norm is used elsewhere"),
    "norm, layer twice": (twice, "norm: .*dense after it is called 2 times"),
    "norm, DenseGeneral of another axis": (
        lambda x, norm: nn.DenseGeneral(3, axis=1)(norm(x)),
        "norm: .*DenseGeneral_0 after it does not sum over the last axes",
    ),
    "norm, Einsum that sums the input": (
        lambda x, norm: nn.Einsum((4, 3), "nhwa,ab->nhb")(norm(x)),
        "norm: .*Einsum_0 after it does not sum over the last axes of its input alone",
    ),
    "conv, padded pool, norm": (lambda x, norm: norm(same(nn.Conv(4, (3, 3))(x))), BETWEEN),
    "conv, relu and pool, norm": (lambda x, norm: norm(pool(nn.relu(conv()(x)))), BETWEEN),
    "conv, pool with other counts, norm": (
        lambda x, norm: norm(
            nn.pool(conv()(x), 0.0, jax.lax.add, (3, 3), (1, 1), "SAME")
            / nn.pool(jnp.ones((1, 4, 4, 1)), 0.0, jax.lax.add, (3, 2), (1, 1), "SAME")
        ),
        BETWEEN,
    ),
    "conv, halved, norm": (lambda x, norm: norm(conv()(x) / 2), BETWEEN),
    "conv, flatten, norm": (
        lambda x, norm: norm(nn.Conv(4, (3, 3))(x).reshape(2, -1)),
        "norm: it has 144 features, which do not divide the 4 of Conv_0 before it",
    ),
    "conv, transposed, norm": (lambda x, norm: norm(conv()(x).transpose(0, 3, 1, 2)), BETWEEN),
    "conv, mean used besides": (pooled_besides, "norm: the output of Conv_0 is used elsewhere"),
    "DenseGeneral of a batch axis, norm": (
        lambda x, norm: norm(nn.DenseGeneral(3, batch_dims=0)(x)),
        "norm: DenseGeneral_0 before it has a kernel for each index of a batch axis",
    ),
    "Einsum with features inside, norm": (
        lambda x, norm: norm(nn.Einsum((4, 3), "nhwa,ab->nbhw")(x)),
        "norm: Einsum_0 before it has other axes after its features",
    ),
    "Einsum of a batch axis, norm": (
        lambda x, norm: norm(nn.Einsum((6, 4, 3), "nhwa,hab->nhwb")(x)),
        "norm: Einsum_0 before it is not a single contraction",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_is_named(case):
    body, message = IMPOSSIBLE[case]
    with pytest.raises(ValueError, match=message):
        fold(body, MAPS)
