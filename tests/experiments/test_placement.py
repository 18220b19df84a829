"""The layers `studies.placement` trains with, against NumPy and Flax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.placement import measure as placement
from experiments.studies.placement.small_cnn import PatchConv
from jbn.models import MLP


def test_local_response_norm_is_krizhevskys():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 7)) * 100
    expected = np.empty_like(x)
    for i in range(7):
        near = x[..., max(0, i - 2) : i + 3]
        expected[..., i] = x[..., i] / (2 + 1e-4 * np.sum(near**2, -1)) ** 0.75
    np.testing.assert_allclose(placement.LRN(jnp.asarray(x)), expected, rtol=1e-5)


def test_patch_conv_is_a_convolution():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    patches = PatchConv(4)
    variables = jax.jit(patches.init)(jax.random.key(1), x)
    dense = variables["params"]["patches"]
    kernel = {"kernel": dense["kernel"].reshape(3, 3, 3, 4), "bias": dense["bias"] + 1}
    variables["params"]["patches"]["bias"] += 1
    expected = jax.jit(nn.Conv(4, (3, 3)).apply)({"params": kernel}, x)
    np.testing.assert_allclose(jax.jit(patches.apply)(variables, x), expected, atol=1e-5)


def test_halved_averages_squares():
    images = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    expected = [[[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]]
    np.testing.assert_array_equal(placement.halved(images), expected)


def test_a_bias_held_at_zero_is_none():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    models = [MLP((4,), norm=norm) for norm in ("batch", placement.with_bias)]
    without, biased = (
        jax.jit(functools.partial(model.init, training=False))(jax.random.key(1), x)
        for model in models
    )
    assert "bias" not in without["params"]["dense_0"]
    assert not np.any(biased["params"]["dense_0"]["bias"])
    outputs = (
        jax.jit(functools.partial(model.apply, training=True, mutable=["batch_stats"]))(*given)[0]
        for model, *given in zip(models, (without, biased), (x, x), strict=True)
    )
    np.testing.assert_array_equal(*outputs)
    assert placement.is_hidden_bias(biased["params"]) == {
        "dense_0": {"kernel": False, "bias": True},
        "norm_0": {"scale": False, "bias": False},
        "output": {"kernel": False, "bias": False},
    }
