"""Networks: parameter counts, shapes, effects of norm and placement, one training step each."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import COLOR, KEYS, PHOTO, SEQUENCE, batch, initial, output_and_variables

from jbn import linen, models
from jbn.models import inception
from jbn.models.units import NORMS, WEIGHT, cancels_bias


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(model, shape):
    return output_and_variables(model, jax.ShapeDtypeStruct((2, *shape), jnp.float32))[1]


def step(model, variables, x, labels, mask=None):
    """Take one SGD step; return the loss, gradient and new variables."""
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        y, moved = model.apply(
            {"params": params, **state},
            x,
            training=True,
            mask=mask,
            rngs={"dropout": KEYS["dropout"]},
            mutable=[*state] or ["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(y, labels)
        return losses.mean(), moved

    params = variables["params"]
    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    return value, gradient, {"params": params, **moved}


# ---- Counts and shapes ---------------------------------------------------------------------------


# ImageNet: torchvision's resnet18 and resnet50. BN-Inception: public ports, with 128 and with 96
# features after the pools of 4c and 4d. CIFAR: the sum over Table 6 of He et al., by hand.
COUNTS = {
    "BNInception": (models.BNInception(), PHOTO, 1000, 11_285_224),
    "separable, 96": (
        models.BNInception(blocks=inception.plan(96), stem="separable"),
        PHOTO,
        1000,
        11_188_288,
    ),
    "resnet18": (models.resnet18(norm="batch"), PHOTO, 1000, 11_689_512),
    "resnet50": (models.resnet50(norm="batch"), PHOTO, 1000, 25_557_032),
    "resnet20": (models.resnet20(norm="batch"), COLOR, 10, 269_722),
    "resnet56": (models.resnet56(norm="batch"), COLOR, 10, 853_018),
    "resnet110": (models.resnet110(norm="batch"), COLOR, 10, 1_727_962),
    # 784-100-100-100-10: 784*100 + 2*100*100 + 100*10, plus biases.
    "MLP": (models.MLP(), (784,), 10, 78_400 + 20_000 + 1_000 + 310),
    # 100 hidden units, 3 features; 1, 3 and 4 gates.
    "RNN": (models.RNN(), SEQUENCE, 10, 1 * (300 + 100 + 10_000) + 1_010),
    "GRU": (models.GRU(), SEQUENCE, 10, 3 * (300 + 100 + 10_000) + 1_010),
    "LSTM": (models.LSTM(), SEQUENCE, 10, 4 * (300 + 100 + 10_000) + 1_010),
}


def cifar(depth):
    """Count parameters by hand: kernels, two vectors per convolution, the last layer."""
    n, widths = (depth - 2) // 6, (16, 32, 64)
    total = 3 * 9 * 16 + 2 * 16
    before = 16
    for width in widths:
        total += 9 * before * width + (2 * n - 1) * 9 * width**2 + 2 * n * 2 * width
        before = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_counts_and_output(name):
    model, shape, outputs, count = COUNTS[name]
    y, variables = output_and_variables(model, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert size(variables["params"]) == count
    assert y.shape == (2, outputs)


def test_counts_of_cifar_are_those_by_hand():
    for depth in (20, 56, 110):
        assert COUNTS[f"resnet{depth}"][-1] == cifar(depth)


def test_skip_connections_have_no_parameters_where_they_pad():
    assert shapes(models.resnet20(norm="batch", skip=False), COLOR) == shapes(
        models.resnet20(norm="batch"), COLOR
    )


@pytest.mark.parametrize("stem", ["full", "separable", "small"])
def test_inception_without_norm_has_biases_instead(stem):
    blocks = inception.plan()[1:3]  # One keeps the size, one halves it.
    make = functools.partial(models.InceptionNet, blocks=blocks, stem=stem, width=8)
    plain, normalized = (shapes(make(norm=norm), PHOTO) for norm in (None, "batch"))
    convolutions = [name for name in plain["params"] if name not in ("output", "stem_depthwise")]
    assert all("bias" in plain["params"][name] for name in convolutions)
    assert all("bias" not in normalized["params"][name] for name in convolutions)
    assert size(normalized["params"]) - size(plain["params"]) == sum(
        plain["params"][name]["bias"].size for name in convolutions
    )


# ---- One training step ---------------------------------------------------------------------------


SMALL = {
    "MLP": (functools.partial(models.MLP, hidden=(8, 8), outputs=3), (12,)),
    "CNN": (functools.partial(models.CNN, widths=(4, 8), outputs=3), (8, 8, 1)),
    "ResNet": (
        functools.partial(models.ResNet, blocks=(1, 1), widths=(4, 8), outputs=3),
        (8, 8, 3),
    ),
    "bottleneck": (
        functools.partial(
            models.ResNet,
            blocks=(1, 1),
            widths=(4, 8),
            bottleneck=True,
            stem="imagenet",
            shortcut="project",
            outputs=3,
        ),
        (32, 32, 3),
    ),
    "Inception": (
        functools.partial(
            models.InceptionNet, blocks=inception.plan()[:1], stem="small", width=8, outputs=3
        ),
        (8, 8, 3),
    ),
    "RNN": (functools.partial(models.RNN, hidden=6, outputs=3), SEQUENCE),
    "GRU": (functools.partial(models.GRU, hidden=6, outputs=3), SEQUENCE),
    "LSTM": (functools.partial(models.LSTM, hidden=6, outputs=3), SEQUENCE),
}


def run_step(make, shape, norm, **options):
    model = make(norm=norm, **options)
    x, labels = batch(shape)
    variables = initial(model, x)
    taken = jax.jit(functools.partial(step, model))
    value, gradient, new = taken(variables, x, labels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient, new)))
    after, _, _ = taken(new, x, labels)
    assert float(after) < float(value)
    return variables, gradient, new


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", list(SMALL))
def test_one_training_step(name, norm):
    """The loss falls, every parameter has a gradient, and statistics change."""
    variables, gradient, new = run_step(*SMALL[name], norm)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    stats = variables.get("batch_stats", {})
    assert bool(stats) == (norm == "batch")
    for before, after in zip(
        jax.tree.leaves(stats), jax.tree.leaves(new.get("batch_stats", {})), strict=True
    ):
        assert not np.array_equal(before, after)


@pytest.mark.parametrize("norm", [*NORMS, WEIGHT])
@pytest.mark.parametrize("name", ["MLP", "CNN"])
def test_every_norm(name, norm):
    if norm == "instance" and name == "MLP":
        pytest.skip("one value per example and feature: nothing to normalize")
    make, shape = SMALL[name]
    make = functools.partial(make, **{"MLP": {"hidden": (8,)}, "CNN": {"widths": (8,)}}[name])
    if norm == "ghost":
        norm = functools.partial(linen.GhostBatchNorm, batch_size=4)
    if norm == "group":
        norm = functools.partial(linen.GroupNorm, groups=2)
    run_step(make, shape, norm)


@pytest.mark.parametrize(
    ("norm", "cancels"),
    [
        (nn.BatchNorm, True),
        (functools.partial(nn.BatchNorm, momentum=0.9), True),
        (nn.InstanceNorm, True),
        (nn.LayerNorm, False),
        (nn.GroupNorm, False),
    ],
)
def test_a_norm_of_flax_cancels_the_bias_as_ours_does(norm, cancels):
    assert cancels_bias(norm) == cancels


def test_a_network_with_the_norm_of_flax_has_no_bias_before_it():
    ours, theirs = (shapes(models.resnet20(norm=norm), COLOR) for norm in ("batch", nn.BatchNorm))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours["params"], theirs["params"])


@pytest.mark.parametrize("name", ["MLP", "CNN", "ResNet"])
def test_placement_after_the_nonlinearity(name):
    """The bias stays: after the nonlinearity it is no constant, so the norm does not cancel it."""
    make, shape = SMALL[name]
    variables, _, _ = run_step(make, shape, "batch", placement="after")
    layers = [v for v in variables["params"].values() if "kernel" in v]
    assert all("bias" in layer for layer in layers)


# Each kind of block once or twice; `test_parameter_counts_and_output` traces more of them.
LARGE = {
    "BNInception": (models.BNInception(blocks=inception.plan()[1:3]), PHOTO),
    "separable, 96": (
        models.BNInception(blocks=inception.plan(96)[-1:], stem="separable"),
        PHOTO,
    ),
    "resnet50": (models.resnet50(norm="batch", blocks=(2, 1, 1, 1)), PHOTO),
    "resnet20": (models.resnet20(norm="batch"), COLOR),
}


@pytest.mark.parametrize("name", list(LARGE))
def test_training_step_of_the_large_ones_has_shapes(name):
    """Trace the step with its gradient, but do not compile it: that would take minutes."""
    model, shape = LARGE[name]
    variables = shapes(model, shape)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    value, gradient, new = jax.eval_shape(functools.partial(step, model), variables, x, labels)
    assert value.shape == ()
    assert gradient == variables["params"]
    assert jax.tree.structure(new) == jax.tree.structure(variables)


@pytest.mark.parametrize("name", ["CNN", "ResNet", "LSTM"])
def test_masked_examples_count_for_nothing(name):
    """With half of the examples masked, statistics are those of the other half."""
    make, shape = SMALL[name]
    model = make(norm="batch")
    x, _ = batch(shape)
    garbage = x.copy()
    garbage[4:] = 1e3

    def moved(variables, x, mask=None):
        return model.apply(variables, x, training=True, mask=mask, mutable=["batch_stats"])[1]

    @jax.jit
    def both(variables, x, garbage):
        return moved(variables, x[:4]), moved(variables, garbage, jnp.arange(8) < 4)

    want, got = both(initial(model, x), x, garbage)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
