"""Bad arguments of layers, `fold`, `whiten` and `weight_norm` raise at trace time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from wrong_calls import FEATURES, STATE, assert_message, assert_ours, fold, x_of

import jbn
import jbn.linen
import jbn.nnx
from jbn import linen


def whitening_of(features=FEATURES):
    return jbn.whiten(jax.device_put(np.eye(8, features, dtype=np.float32)))[1]


def layer(make):
    return make().init(jax.random.key(0), x_of(4, 3, FEATURES))


def warmed_up(**limits):
    options = {"use_running_average": False, "warmup_steps": 1, **limits}
    return layer(lambda: linen.BatchRenorm(**options))


# name: (call, error, words in the message)
CASES = {
    # Layers.
    "r_max below 1 with a warm-up": (
        lambda: warmed_up(r_max=np.array(0.5)),
        ValueError,
        ["r_max", "at least 1", "0.5"],
    ),
    "d_max below 0 with a warm-up": (
        lambda: warmed_up(d_max=np.array(-1.0)),
        ValueError,
        ["d_max", "at least 0", "-1"],
    ),
    "r_max of bool with a warm-up": (lambda: warmed_up(r_max=True), TypeError, ["r_max", "True"]),
    "two axes of LayerNorm": (
        lambda: layer(lambda: linen.LayerNorm(axis=(0, 1))),
        ValueError,
        ["one feature axis", "(0, 1)"],
    ),
    "use_scale of linen": (
        lambda: layer(lambda: jbn.linen.BatchNorm(use_running_average=False, use_scale="no")),
        TypeError,
        ["use_scale", "True or False", "'no'"],
    ),
    "use_bias of linen LayerNorm": (
        lambda: layer(lambda: linen.LayerNorm(use_bias="no")),
        TypeError,
        ["use_bias", "True or False", "'no'"],
    ),
    "use_scale of nnx": (
        lambda: jbn.nnx.BatchNorm(5, use_scale="no", rngs=nnx.Rngs(0)),
        TypeError,
        ["use_scale", "True or False", "'no'"],
    ),
    # fold.
    "kernel of other features": (lambda: fold(x_of(3, 3, 8, 7)), ValueError, ["7", "5"]),
    "kernel of one feature": (lambda: fold(x_of(3, 1)), ValueError, ["1", "5"]),
    "bias of other features": (lambda: fold(x_of(3, 5), jnp.ones(7)), ValueError, ["7", "5"]),
    # Whitening.
    "whitening first": (
        lambda: jbn.apply_whitening(whitening_of(), x_of(4, 5)),
        TypeError,
        ["`x`", "Whitening"],
    ),
    "whitening of both": (
        lambda: jbn.apply_whitening(x_of(4, 5), jbn.whiten(jnp.eye(8, 5))),
        TypeError,
        ["`whitening`", "a tuple of 2", "y, whitening = jbn.whiten(x)"],
    ),
    "whitening a state": (
        lambda: jbn.apply_whitening(x_of(4, 5), STATE),
        TypeError,
        ["`whitening`", "BatchNormState"],
    ),
    "whitening of other features": (
        lambda: jbn.apply_whitening(x_of(4, 5), whitening_of(3)),
        ValueError,
        ["3", "(4, 5)"],
    ),
    "whitening's matrix": (
        lambda: jbn.apply_whitening(x_of(4, 5), whitening_of()._replace(matrix=jnp.eye(5))),
        ValueError,
        ["`whitening.matrix`", "(5, 5)"],
    ),
    "method of whitening": (
        lambda: jbn.whiten(x_of(9, 5), method="pca"),
        ValueError,
        ["'pca'", "'cholesky'"],
    ),
    # Weight norm.
    "kernel None": (lambda: jbn.weight_norm(None, jnp.ones(5)), TypeError, ["`kernel`", "None"]),
    "kernel of ints": (
        lambda: jbn.weight_norm(x_of(4, 5, dtype=int), None),
        TypeError,
        ["`kernel`", "int32"],
    ),
    "scale of weight_norm": (
        lambda: jbn.weight_norm(x_of(4, 5), "one"),
        TypeError,
        ["`scale`", "'one'"],
    ),
    "pre-activations None": (
        lambda: jbn.weight_norm_init(x_of(4, 5), None),
        TypeError,
        ["`pre_activations`", "None"],
    ),
    "weight_norm_init, swapped": (
        lambda: jbn.weight_norm_init(x_of(4, 5), x_of(4, 3)),
        ValueError,
        ["`pre_activations`", "(5,)", "(3,)"],
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    assert_message(str(caught.value), words)
    assert_ours(caught.value)


@pytest.mark.parametrize("name", list(CASES))
def test_raises_while_tracing(name):
    """Abstract values suffice: nothing is computed before the error."""
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        jax.eval_shape(call)
    assert_message(str(caught.value), words)
