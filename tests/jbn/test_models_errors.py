"""Shapes, masks and options that networks reject, and the messages."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import KEYS, SEQUENCE, batch

from jbn import models


def test_what_cannot_be_is_refused():
    x, _ = batch((12,))
    for options, message in (
        ({"norm": "bach"}, "batch, ghost, renorm"),
        ({"norm": "batch", "placement": "behind"}, "'before' or 'after'"),
    ):
        with pytest.raises(ValueError, match=message):
            models.MLP(**options).init(KEYS, x, training=False)
    with pytest.raises(ValueError, match="'lstm'"):
        models.recurrent.Recurrent(cell="gpu").init(KEYS, batch(SEQUENCE)[0], training=False)


MODELS = {  # name: (model, a shape of x, its letters)
    "MLP": (models.MLP(hidden=(5,), norm="batch"), (4, 6), "(N, F)"),
    "CNN": (models.CNN(widths=(4,), norm="batch"), (4, 8, 8, 1), "(N, H, W, C)"),
    "ResNet": (
        models.ResNet(blocks=(1,), widths=(4,), norm="batch"),
        (4, 8, 8, 3),
        "(N, H, W, C)",
    ),
    "Inception": (models.SmallBNInception(blocks=()), (4, 8, 8, 3), "(N, H, W, C)"),
    "RNN": (models.RNN(hidden=4, norm="batch"), (4, 5, 2), "(N, T, F)"),
}


def init(name, shape, training=False, **call):
    model, _, _ = MODELS[name]
    return jax.eval_shape(lambda: model.init(KEYS, jnp.ones(shape), training=training, **call))


@pytest.mark.parametrize("change", ["one example", "one axis more"])
@pytest.mark.parametrize("name", MODELS)
def test_wrong_rank_says_which_axes_are_expected(name, change):
    _, shape, letters = MODELS[name]
    wrong = shape[1:] if change == "one example" else (*shape, 1)
    with pytest.raises(ValueError, match=re.escape(f"Expected x of shape {letters}")) as raised:
        init(name, wrong)
    assert str(wrong) in str(raised.value)


@pytest.mark.parametrize("name", MODELS)
def test_mask_is_one_value_per_example(name):
    _, shape, _ = MODELS[name]
    init(name, shape, mask=[True, False, True, True])  # A list is fine.
    for mask in (jnp.ones((4, 1), bool), jnp.ones(3, bool), jnp.array(True)):
        with pytest.raises(ValueError, match=re.escape("`mask` of shape (4,)")):
            init(name, shape, mask=mask)


@pytest.mark.parametrize("name", MODELS)
def test_training_is_known_when_traced(name):
    _, shape, _ = MODELS[name]
    init(name, shape, training=np.True_)
    with pytest.raises(TypeError, match=r"`training` to be True or False.*static"):
        jax.jit(lambda training: init(name, shape, training=training))(True)


def test_x_that_is_no_array_says_so():
    with pytest.raises(TypeError, match="Expected `x` to be an array, got a dict"):
        MODELS["MLP"][0].init(KEYS, {"image": 1}, training=False)
