"""The functions of the whitening experiment: pixels, descents, steps to a loss, rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import sampling
from experiments.studies.whitening import measure as whitening
from experiments.training import networks
from jbn.models import MLP

DRAW = np.random.default_rng(0)


def test_pixels_are_averages_and_the_constant_ones_go():
    images = DRAW.integers(0, 256, (20, 28, 28)).astype(np.uint8)
    images[:, :4, 4:8] = 7
    x = whitening.pixels(images)
    assert x.shape == (20, 48)
    np.testing.assert_allclose(x[:, 0], images[:, :4, :4].mean((1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(x[:, 1], images[:, :4, 8:12].mean((1, 2)) / 255, rtol=1e-6)


def test_descent_with_statistics_as_constants_follows_the_closed_form():
    u = DRAW.normal(size=50)
    u = (u - u.mean()) / u.std()
    with jax.enable_x64(True):
        x = jnp.asarray(u)
        bias = np.asarray(
            whitening.descend(lambda b: whitening.centered(x + b), x + 1, jnp.zeros(()))
        )
        scale = np.asarray(
            whitening.descend(lambda w: whitening.scaled(w * x), 2 * x, jnp.ones(()))
        )
    np.testing.assert_allclose(bias[:, 0], 0.1 * np.arange(1001), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(bias[:, 1], 0.5)
    # The gradient of ((w u - 0) / |w| - 2 u)^2 / 2 with fixed |w| is -1 / w.
    w = [1.0]
    for _ in range(1000):
        w.append(w[-1] + 0.1 / w[-1])
    np.testing.assert_allclose(scale[:, 0], w, rtol=1e-9)
    np.testing.assert_allclose(scale[:, 1], 0.5)


def test_logistic_regression_is_gradient_descent_in_float64():
    x = DRAW.normal(size=(1, 30, 5)).astype(np.float32)
    labels = DRAW.integers(0, 10, (1, 30))
    batches = np.broadcast_to(np.arange(30), (1, 4, 30))
    keys = sampling.keys([0], "weights")
    arrays = jax.device_put((np.array([0.5], np.float32), keys, x, labels, batches))
    rates, *of_seeds = arrays
    losses = whitening.trainer((), 1)(rates, tuple(of_seeds), ())
    model = MLP(hidden=(), kernel_init=jax.nn.initializers.glorot_normal())
    init = jax.jit(functools.partial(networks.init, model, optax.sgd(0.5)))
    start = init(keys[0], x[0, :1])
    kernel = np.asarray(start.params["output"]["kernel"], np.float64)
    bias, wanted, rows = np.zeros(10), np.eye(10)[labels[0]], np.float64(x[0])
    expected = []
    for _ in range(5):
        logits = rows @ kernel + bias[None]
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected.append(-np.log((shares * wanted).sum(1)).mean())
        error = (shares - wanted) / len(rows)
        kernel, bias = kernel - 0.5 * rows.T @ error, bias - 0.5 * error.sum(0)
    np.testing.assert_allclose(losses[0, 0], expected, rtol=1e-5)


def test_exact_covariances_of_small_data():
    x = jnp.asarray(DRAW.normal(size=(2, 40, 6)) @ DRAW.normal(size=(6, 6)), jnp.float32)
    found = whitening.decorrelation(x)
    assert found["zca"].max() < 1e-10
    for rows, largest in zip(np.asarray(x, np.float64), found["bn"], strict=True):
        off = np.corrcoef(rows.T) - np.eye(6)
        np.testing.assert_allclose(largest, np.abs(off).max(), rtol=1e-3)
    # Three centered examples span two of six directions.
    np.testing.assert_allclose(found["lost"], 4 / 6)
