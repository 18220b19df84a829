"""Invalid attributes of networks: one message each, when the network is made."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn.nnx
from jbn import models
from jbn.linen import BatchNorm

RESNET = {"blocks": (1,), "widths": (4,)}
ALL = {
    "MLP": models.MLP,
    "CNN": models.CNN,
    "ResNet": functools.partial(models.ResNet, **RESNET),
    "Inception": models.SmallBNInception,
    "LSTM": models.LSTM,
}


def refused(make, error, words, **attributes):
    with pytest.raises(error, match=re.escape(words)) as caught:
        make(**attributes)
    assert str(caught.value).count("\n") == 0


SHARED = {  # name: (value, error, words)
    "outputs": ("10", TypeError, "Expected `outputs` to be a positive int, got '10'."),
    "activation": ("relu", TypeError, "Expected `activation` as a function, got 'relu'."),
    "kernel_init": ("he", TypeError, "Expected `kernel_init` as a function, got 'he'."),
    "placement": ("befor", ValueError, "got 'befor'. Did you mean 'before'?"),
    "dtype": (jnp.int32, TypeError, "Expected `dtype` to be a floating dtype or None"),
    "param_dtype": ("float23", TypeError, "to be a floating dtype or None, got 'float23'."),
    "use_bias": ("no", TypeError, "Expected `use_bias` to be True or False, got 'no'."),
    "norm": (True, TypeError, "Expected `norm` as a name, or as what makes a layer"),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("model", ALL)
def test_attributes_that_all_share(model, name):
    value, error, words = SHARED[name]
    refused(ALL[model], error, words, **{name: value})


@pytest.mark.parametrize("norm", [BatchNorm(), nn.BatchNorm(momentum=0.9)])
def test_a_norm_that_is_made_already(norm):
    words = "a BatchNorm that is made already. Pass BatchNorm, or functools.partial(BatchNorm, ...)"
    refused(models.MLP, TypeError, words, norm=norm)


@pytest.mark.parametrize("norm", [nnx.BatchNorm, functools.partial(jbn.nnx.BatchNorm, 3)])
def test_a_norm_of_nnx(norm):
    refused(models.MLP, TypeError, 'Pass norm="batch", jbn.linen.BatchNorm', norm=norm)


def test_a_misspelled_norm_names_its_likeness():
    with pytest.raises(ValueError, match=r"got 'bach'\. Did you mean 'batch'\?"):
        models.MLP(norm="bach").init(jax.random.key(0), jnp.ones((2, 3)), training=False)


WORDS = {  # words in the message: (network, attributes)
    "Expected `stem` 'cifar' or 'imagenet', got 'imagnet'. Did you mean 'imagenet'?": (
        ALL["ResNet"],
        {"stem": "imagnet"},
    ),
    "Expected `shortcut` 'pad' or 'project', got 'projection'. Did you mean 'project'?": (
        ALL["ResNet"],
        {"shortcut": "projection"},
    ),
    "Expected `padding` 'symmetric' or 'same', got 'SAME'.": (ALL["ResNet"], {"padding": "SAME"}),
    "Expected `stem_padding` 'symmetric' or 'same', got 1.": (ALL["ResNet"], {"stem_padding": 1}),
    "Expected `stem` 'full', 'separable' or 'small', got 'seperable'. Did you mean 'separable'?": (
        models.BNInception,
        {"stem": "seperable"},
    ),
    "Expected `padding` 'same' or 'symmetric', got 'symetric'. Did you mean 'symmetric'?": (
        models.BNInception,
        {"padding": "symetric"},
    ),
    "Expected `cell` 'rnn', 'gru' or 'lstm', got 'gpu'. Did you mean 'gru'?": (
        models.RNN,
        {"cell": "gpu"},
    ),
    "Expected `width` to leave each layer of block 3a a feature, got width=64": (
        models.BNInception,
        {"width": 64},
    ),
    "Expected `pool of block 3a` 'average' or 'max', got 'avg'.": (
        models.BNInception,
        {"blocks": [models.BNInception().blocks[0]._replace(pool="avg")]},
    ),
    "Expected `dropout` in [0, 1), got 1.": (models.Inception, {"dropout": 1}),
    "Expected `widths` as a sequence of positive ints, got (4.5,).": (
        ALL["ResNet"],
        {"widths": (4.5,)},
    ),
    "Expected `blocks` as a sequence of positive ints, got (0,).": (
        ALL["ResNet"],
        {"blocks": (0,)},
    ),
}


@pytest.mark.parametrize("words", WORDS)
def test_values_that_no_network_has(words):
    make, attributes = WORDS[words]
    refused(make, ValueError, words, **attributes)


KINDS = {
    "`widths` as a sequence of positive ints, got 16. Pass widths=(16,).": (
        ALL["ResNet"],
        {"widths": 16},
    ),
    "`hidden` as a sequence of positive ints, got '100'.": (models.MLP, {"hidden": "100"}),
    "`widths` as a sequence of positive ints, got None.": (models.CNN, {"widths": None}),
    "`hidden` to be a positive int, got an": (models.LSTM, {"hidden": np.ones(2)}),
    "`blocks` to be a sequence of rows of Fig. 5, got a tuple of 1 (int).": (
        models.BNInception,
        {"blocks": (3,)},
    ),
    "`bottleneck` to be True or False, got 'yes'.": (ALL["ResNet"], {"bottleneck": "yes"}),
    "`activation` as a function, got None.": (ALL["ResNet"], {"activation": None}),
}


@pytest.mark.parametrize("words", KINDS)
def test_values_of_other_types(words):
    make, attributes = KINDS[words]
    refused(make, TypeError, words, **attributes)


@pytest.mark.parametrize(("blocks", "widths"), [((1, 2), (4,)), ((), ())])
def test_every_stage_has_blocks_and_a_width(blocks, widths):
    model = models.resnet18().copy(blocks=blocks).copy(widths=widths)  # Set one at a time.
    words = f"one per stage, got blocks={blocks} and widths={widths}."
    with pytest.raises(ValueError, match=re.escape(words)):
        model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), training=False)


def test_names_of_other_libraries():
    for name in ("num_classes", "output"):
        words = f"Expected attributes of jbn.models.ResNet, got {name!r}. Did you mean 'outputs'?"
        refused(models.resnet18, TypeError, words, **{name: 10})


def test_what_networks_take():
    models.ResNet(blocks=[np.int64(1)], widths=np.array([4]), dtype="bfloat16", norm="weight")
    models.MLP(hidden=(), activation=None, dtype=np.float16, param_dtype=None)
    models.CNN(norm=lambda **options: BatchNorm(**options), use_bias=np.True_)
