"""Weights of whole networks from Keras, Flax's ImageNet example and Haiku: the same logits."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from network_weights import (
    CLASSES,
    SMALL,
    assert_same_logits,
    evaluate,
    images,
    needs,
    resnet,
)

import jbn
from jbn import convert, models
from jbn.linen import BatchNorm

V1 = needs(models.ResNet, "stride_in_1x1")
PADDED = needs(models.ResNet, "stem_padding")
LOW, HIGH = {"var": 0.5, "scale": 0.5}, {"var": 2.0, "scale": 1.5}


def drawn(shape, what, rng):
    """Draw weights: He-initialized kernels, scales and variances around 1, the rest around 0."""
    if what == "kernel":
        return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
    return rng.uniform(LOW.get(what, -0.5), HIGH.get(what, 0.5), shape).astype(np.float32)


# Keras's first convolution always has 64 features, ours as many as the first stage.
KERAS = {"blocks": (1, 2), "widths": (64, 12), "bottleneck": True}


def keras_resnet(**options):
    """Make a small network of Keras's own blocks, with drawn weights."""
    resnet = pytest.importorskip("keras.src.applications.resnet")

    def stages(x):
        for i, (count, width) in enumerate(zip(KERAS["blocks"], KERAS["widths"], strict=True)):
            stride, name = 2 if i else 1, f"conv{i + 2}"
            x = resnet.stack_residual_blocks_v1(x, width, count, stride, name)
        return x

    arguments = {"preact": False, "use_bias": True, "weights": None, "input_shape": (32, 32, 3)}
    head = {"classes": CLASSES, "classifier_activation": None}
    network = resnet.ResNet(stages, **arguments | head | options)
    rng = np.random.default_rng(1)
    names = {"kernel": "kernel", "gamma": "scale", "moving_variance": "var"}
    for weight in network.weights:
        weight.assign(drawn(weight.shape, names.get(weight.name), rng))
    return network


def keras_model(**attributes):
    norm = functools.partial(BatchNorm, epsilon=1.001e-5, momentum=0.99)
    return resnet(**KERAS, norm=norm, stride_in_1x1=True, **attributes)


@V1
@pytest.mark.parametrize("use_bias", [None, True])
def test_keras_logits(keras, use_bias):
    network, model, x = keras_resnet(), keras_model(use_bias=use_bias), images()
    variables = convert.network_from_keras(model, network)
    with jax.numpy_rank_promotion("allow"):  # Keras's dense layer broadcasts its bias.
        want = network.predict(x, verbose=0)
    assert_same_logits(evaluate(model, variables, x), want)


@V1
def test_keras_without_its_top(keras):
    network = keras_resnet(include_top=False)
    assert "output" not in convert.network_from_keras(keras_model(), network, head=False)["params"]
    with pytest.raises(convert.ConversionError, match="no 'predictions/kernel'"):
        convert.network_from_keras(keras_model(), network)


def test_keras_strides_are_in_the_1x1(keras):
    with pytest.raises(convert.ConversionError, match="Make it with stride_in_1x1=True"):
        convert.network_from_keras(resnet(**KERAS), keras_resnet())


class ResNetBlock(nn.Module):
    """The block of Flax's example; only the layers of the shortcut have explicit names."""

    width: int
    stride: int
    norm: Any
    sizes = (3, 3)

    @nn.compact
    def __call__(self, x):
        bottleneck = len(self.sizes) == 3
        features = 4 * self.width if bottleneck else self.width
        conv, h = functools.partial(nn.Conv, use_bias=False), x
        for i, size in enumerate(self.sizes):
            last = i == len(self.sizes) - 1
            stride = self.stride if i == bottleneck else 1
            h = conv(features if last else self.width, (size, size), (stride, stride))(h)
            h = self.norm()(h)
            h = h if last else nn.relu(h)
        if x.shape != h.shape:
            x = conv(features, (1, 1), (self.stride, self.stride), name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + h)


class BottleneckResNetBlock(ResNetBlock):
    sizes = (1, 3, 1)


class FlaxResNet(nn.Module):
    """Flax's ImageNet example, https://github.com/google/flax/tree/main/examples/imagenet."""

    block: Any

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True, momentum=0.9)
        conv = functools.partial(nn.Conv, use_bias=False, name="conv_init")
        x = conv(SMALL["widths"][0], (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, (count, width) in enumerate(zip(SMALL["blocks"], SMALL["widths"], strict=True)):
            for i in range(count):
                x = self.block(width, 2 if stage and not i else 1, norm)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


def redrawn(tree, names):
    """Redraw every array of nested dicts; `names` maps parts of their keys to kinds for `drawn`."""
    rng = np.random.default_rng(1)

    def draw(path, like):
        keys = [entry.key for entry in path]
        if keys[-1] == "counter":
            return np.int32(7)
        what = next((meaning for key, meaning in names.items() if key in "/".join(keys[-2:])), None)
        return drawn(like.shape, what, rng)

    return jax.tree.map_with_path(draw, tree)


@PADDED
@pytest.mark.parametrize("block", [ResNetBlock, BottleneckResNetBlock])
def test_flax_logits(block):
    network, x = FlaxResNet(block), images()
    names = {"kernel": "kernel", "scale": "scale", "var": "var"}
    theirs = redrawn(jax.eval_shape(network.init, jax.random.key(0), x), names)
    norm = functools.partial(BatchNorm, momentum=0.9)
    bottleneck = block is BottleneckResNetBlock
    model = resnet(bottleneck=bottleneck, norm=norm, padding="same")
    variables = convert.network_from_flax(model, theirs)
    assert_same_logits(evaluate(model, variables, x), np.asarray(jax.jit(network.apply)(theirs, x)))
    without = convert.network_from_flax(model, theirs, head=False)
    assert variables["params"].keys() - without["params"].keys() == {"output"}


@PADDED
@pytest.mark.parametrize("bottleneck", [False, True])
def test_haiku_logits(hk, bottleneck):
    blocks, widths = (2, 1, 1, 1), (64, 8, 12, 16)  # Haiku's first convolution has 64 features.

    @hk.transform_with_state
    def network(x, training=False):
        return hk.nets.ResNet(
            blocks,
            CLASSES,
            bottleneck=bottleneck,
            channels_per_group=[width * (4 if bottleneck else 1) for width in widths],
            use_projection=(bottleneck, True, True, True),
            name="res_net50",
        )(x, training)

    x, key = images(), jax.random.key(0)
    init = functools.partial(network.init, training=True)
    names = {"scale": "scale", "var_ema": "var", "/w": "kernel"}
    params, state = (redrawn(tree, names) for tree in jax.eval_shape(init, key, x))
    norm = functools.partial(BatchNorm, momentum=jbn.debiased(0.9))
    padding = {"padding": "same", "stem_padding": "same"}
    model = resnet(blocks=blocks, widths=widths, bottleneck=bottleneck, norm=norm, **padding)
    variables = convert.network_from_haiku(model, params, state)
    want, _ = jax.jit(network.apply)(params, state, None, x)
    assert_same_logits(evaluate(model, variables, x), np.asarray(want))
    assert int(variables["batch_stats"]["stem_norm"]["count"]) == 7
