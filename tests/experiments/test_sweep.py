"""Sweeps against training one network after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import sampling
from experiments.tasks.split import Split
from experiments.training import networks, sweep
from jbn.models import MLP

MODEL = MLP(hidden=(4,), norm="batch")


def examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(0, 10, 50), jnp.int32)


def build(setting):
    optimizer = optax.chain(optax.sgd(setting["rate"]), sweep.scaled("norm", setting["learned"]))
    return MODEL, optimizer


def test_train_is_one_network_after_another():
    x, y = examples()
    starts = sweep.start(MODEL, 2, x)
    settings = sweep.grid(learned=[0.0, 1.0], rate=[0.1, 0.5])
    seen = sweep.train(
        build,
        settings,
        Split((x, y), (x, y), (x, y)),
        starts,
        steps=6,
        batch_size=10,
        observe=lambda model, network, split: network.params,
        evaluations=2,
        before=True,
    )
    optimizer = optax.sgd(0.5)
    network = networks.init(MODEL, optimizer, sampling.keys([1], "weights")[0], x[:1])
    step = jax.jit(functools.partial(networks.train_step, MODEL, optimizer))
    for rows in sampling.batch_indices(1, 0, 6, 10, 50):
        network = step(network, x[rows], y[rows])
    last = jax.tree.map(lambda leaf: leaf[3, 1, 2], seen)  # Learned, rate .5, seed 1, the end.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5),
        last,
        network.params,
    )
    assert seen["dense_0"]["kernel"].shape == (4, 2, 3, 6, 4)
    assert np.all(seen["norm_0"]["scale"][:2] == 1)  # Fixed.
    assert not np.any(seen["norm_0"]["scale"][2:, :, -1] == 1)  # Learned.


def test_starts_may_depend_on_the_setting():
    x, y = examples()
    starts = sweep.start(MODEL, 2, x)
    seen = sweep.train(
        lambda factor: (MODEL, optax.sgd(0.1)),
        jnp.array([1.0, 2.0]),
        Split((x, y), (x, y), (x, y)),
        lambda factor: starts._replace(params=jax.tree.map(lambda p: p * factor, starts.params)),
        steps=1,
        batch_size=10,
        observe=lambda model, network, split: network.params["output"]["kernel"],
        before=True,
    )
    np.testing.assert_array_equal(seen[1, :, 0], 2 * seen[0, :, 0])


def test_statistics_for_the_test_are_those_of_the_batch():
    x, _ = examples()
    network = networks.init(MODEL, optax.identity(), jax.random.key(0), x[:1])
    found = sweep.for_test(MODEL, network, x).batch_stats["norm_0"]
    inputs = np.asarray(x, np.float64) @ np.asarray(network.params["dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(found["mean"], inputs.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["var"] / inputs.var(0), 1, atol=0.03)  # m/(m-1) or not.


@pytest.mark.parametrize("sequential", [None, "settings", "seeds"])
def test_each_is_every_setting_with_every_seed(sequential):
    settings, seeds, shared = np.array([1.0, 2.0]), np.array([10.0, 20.0, 30.0]), np.array(100.0)
    found = sweep.each(
        lambda setting, seed, shared: {"sum": setting + seed + shared},
        settings,
        seeds,
        shared,
        sequential=sequential,
    )
    np.testing.assert_array_equal(found["sum"], settings[:, None] + seeds + shared)
