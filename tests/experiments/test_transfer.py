"""The functions `studies.transfer` measures with: frozen parts stay as they are; counts."""

import functools

import jax
import numpy as np
import optax

from experiments.studies.transfer import measure as transfer
from experiments.studies.transfer.config import PRESETS
from experiments.training import networks

CONFIG = PRESETS["smoke"]


def test_permuted_moves_pixels_of_all_images_alike():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5)).astype(np.uint8)
    plain, moved = transfer.gray(images), transfer.permuted(images)
    assert not np.array_equal(plain, moved)
    columns = {tuple(column) for column in plain.T}
    assert {tuple(column) for column in moved.T} == columns


def test_held_network_trains_by_its_statistics_and_leaves_them():
    x = np.random.default_rng(0).normal(2, 1, (8, 3)).astype(np.float32)
    held, moving = transfer.make(CONFIG, transfer.Held), transfer.make(CONFIG)
    optimizer = optax.sgd(0.1)
    network = jax.jit(functools.partial(networks.init, held, optimizer))(jax.random.key(1), x)
    np.testing.assert_array_equal(
        held.apply(network.variables, x, training=True),
        moving.apply(network.variables, x, training=False),
    )
    step = jax.jit(
        lambda network: networks.train_step(held, optimizer, network, x, np.zeros(8, int))
    )
    after = step(network)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, network.batch_stats)
    before, now = (n.params["output"]["kernel"] for n in (network, after))
    assert not np.array_equal(before, now)
