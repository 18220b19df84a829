"""The functions `studies.regularization` measures with: the step, dropout, wrong labels."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import sampling
from experiments.studies.regularization.config import PRESETS, Config
from experiments.studies.regularization.measure import (
    Dropout,
    Kind,
    Setting,
    given_labels,
    kernels,
    make_model,
    make_step,
    sample_images,
)
from experiments.tasks.data import load_digits
from experiments.training import networks

CONFIG = PRESETS["smoke"]
TOLERANCE = 1e-5  # Float32 rounding of a step on weights around 0.1.


@functools.cache
def images():
    of_seeds, _ = sample_images(CONFIG, load_digits())
    return jax.tree.map(lambda array: array[0], of_seeds)


def start(kind):
    model = make_model(CONFIG, kind)
    init = functools.partial(networks.init, model, optax.sgd(1.0))
    (key,) = sampling.keys([0], "weights")
    return jax.jit(init)(key, images().x[:1])


def step(kind, rows, network, **setting):
    return taken(kind, Setting(0.1, **setting), network, rows, images()).params


@functools.partial(jax.jit, static_argnums=0)
def taken(kind, setting, network, rows, images):
    (key,) = sampling.keys([0], "dropout")
    return make_step(CONFIG, kind, setting, images, key)(network, rows, 0)


def largest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(np.subtract(a, b)).max(), a, b)))


def test_noise_free_is_the_batchs_loss_under_the_statistics_of_all():
    kind = Kind(16, 32, 1, "all")
    network, rows = start(kind), np.arange(40, 72)

    @jax.jit
    @jax.grad
    def gradient_of_loss(params, images):
        variables = {"params": params, "batch_stats": network.batch_stats}
        outputs, _ = make_model(CONFIG, kind).apply(
            variables, images.x, training=True, mutable=["batch_stats"]
        )
        return networks.cross_entropy(outputs[rows], images.labels[rows]).mean()

    both = jax.device_get((network.params, gradient_of_loss(network.params, images())))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, *both)
    assert largest(step(kind, rows, network), expected) < TOLERANCE


def test_noise_free_is_bn_where_the_batch_is_all():
    network, rows = start(Kind(16, 128, 1, "all")), np.arange(128)
    ours, theirs = (step(Kind(16, 128, 1, n), rows, network) for n in ("all", 128))
    assert largest(ours, theirs) < TOLERANCE


def test_penalties_move_kernels_alone():
    kind = Kind(16, 32, 1, None)
    network, rows = start(kind), np.arange(32)
    without = step(kind, rows, network)
    for setting, expected in (({"l1": 0.3}, jnp.sign), ({"l2": 0.3}, lambda w: 2 * w)):
        moved = step(kind, rows, network, **setting)
        pull = kernels(without) - kernels(moved)
        np.testing.assert_allclose(pull, 0.03 * expected(kernels(network.params)), atol=TOLERANCE)
        np.testing.assert_array_equal(moved["output"]["bias"], without["output"]["bias"])


def test_dropout_keeps_the_mean():
    x, layer = jnp.ones((100, 1000)), Dropout(0.4)
    y = np.asarray(layer.apply({}, x, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.6], rtol=1e-6)
    assert abs((y == 0).mean() - 0.4) < 5 * np.sqrt(0.24 / y.size)
    none = nn.apply(lambda module: module(x), Dropout(0.0))({}, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(none, x)


def test_flipped_labels_are_wrong_and_nested():
    few, many = (np.asarray(given_labels(images(), share)) for share in (0.3, 0.6))
    true, luck = np.asarray(images().labels), np.asarray(images().luck)
    np.testing.assert_array_equal(few != true, luck < 0.3)
    np.testing.assert_array_equal(many[few != true], few[few != true])
    assert few.min() >= 0
    assert few.max() <= 9


def test_seeds_draw_their_own_images_and_wrong_labels():
    of_seeds, (test, truth) = sample_images(CONFIG, load_digits())
    assert of_seeds.x.shape[:2] == (2, CONFIG.train)
    assert of_seeds.validation[0].shape[:2] == (2, CONFIG.validation)
    assert len(test) == len(truth) == CONFIG.test
    for drawn in (of_seeds.x, of_seeds.luck, of_seeds.validation[0]):
        assert not np.array_equal(drawn[0], drawn[1])
    seen = {row.tobytes() for row in np.asarray(of_seeds.x[0])}
    kept = np.asarray(of_seeds.validation[0][0])
    # Only few binary digits are duplicates.
    assert sum(row.tobytes() in seen for row in kept) < CONFIG.validation / 10


def test_config_refuses_ragged_epochs():
    with pytest.raises(ValueError, match="to divide `train`, got 100"):
        Config(train=100)
