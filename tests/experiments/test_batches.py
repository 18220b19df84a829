"""The experiment on batches: how they are drawn, their means, and steps on all data."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.studies.batches import measure as batches
from experiments.studies.batches.config import Config
from experiments.training import networks
from experiments.training.networks import cross_entropy
from jbn.models import MLP

CONFIG = Config(batch_size=10, examples=200, steps=70, hidden=(4,))
LABELS = np.random.default_rng(0).integers(10, size=500).astype(np.uint8)


def test_every_order_draws_from_the_same_examples():
    rows = set(batches.sample_examples(200, LABELS, 3))
    for drawn in batches.sample_batches(CONFIG, LABELS, 3).values():
        assert drawn.shape == (70, 10)
        assert set(drawn.ravel()) <= rows


def test_shuffled_anew_and_fixed():
    drawn = batches.sample_batches(CONFIG, LABELS, 0)
    epochs = {name: drawn[name][:60].reshape(3, 20, 10) for name in ("shuffled", "fixed")}
    for of in epochs.values():
        assert all(len(np.unique(epoch)) == 200 for epoch in of)
    compositions = {
        name: [{frozenset(batch) for batch in epoch} for epoch in of] for name, of in epochs.items()
    }
    assert compositions["fixed"][0] == compositions["fixed"][1] == compositions["fixed"][2]
    assert not compositions["shuffled"][0] & compositions["shuffled"][1]
    assert not np.array_equal(epochs["fixed"][0], epochs["fixed"][1])  # Same batches, other order.


def test_population_batches_are_all_examples_in_another_order():
    found = batches.sample_population_batches(CONFIG, LABELS, 0)
    assert found.shape == (20, 10)
    assert set(found.ravel()) == set(batches.sample_examples(200, LABELS, 0))
    trained = batches.sample_batches(CONFIG, LABELS, 0)
    shared = {frozenset(batch) for batch in found}
    assert not shared & {frozenset(row) for rows in trained.values() for row in rows}


def test_sorted_batches_are_of_two_classes_in_halves():
    rows, rng = np.arange(500), np.random.default_rng(0)
    pairs = []
    for _ in range(2):
        epoch = batches.sample_sorted_epoch(rows, LABELS, 10, rng)
        assert len(np.unique(epoch)) == epoch.size
        for batch in epoch:
            classes, counts = np.unique(LABELS[batch], return_counts=True)
            assert len(classes) == 2
            assert counts.tolist() == [5, 5]
        assert set(LABELS[epoch].ravel()) == set(range(10))
        pairs.append({tuple(np.unique(LABELS[batch])) for batch in epoch})
    assert pairs[0] != pairs[1]


def test_loss_of_rows_is_their_mean():
    outputs = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    labels, rows = np.arange(20) % 5, np.array([3, 7, 11, 2])

    @jax.jit
    def losses(rows, outputs, labels):
        return batches.loss_of(rows, 20)(outputs, labels), cross_entropy(outputs, labels)

    weighted, each = jax.device_get(losses(rows, outputs, labels))
    np.testing.assert_allclose(weighted.mean(), each[rows].mean(), rtol=1e-6)


def test_all_data_is_the_batch_where_the_batch_is_all_data():
    model, optimizer = MLP((4,), norm="batch"), optax.sgd(0.1)
    x = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    labels, rows = np.arange(12) % 10, np.arange(12)
    network = jax.jit(functools.partial(networks.init, model, optimizer))(jax.random.key(0), x)
    advance = functools.partial(networks.train_step, model, optimizer, network, x, labels)
    weighted = jax.jit(lambda rows: advance(loss=batches.loss_of(rows, 12)))(rows)
    chex.assert_trees_all_close(weighted, jax.jit(advance)(), rtol=1e-5, atol=1e-6)


def test_mean_error_and_its_exponent():
    inputs = jnp.asarray(3 + 2 * np.random.default_rng(0).normal(size=(5000, 40)), jnp.float32)
    sizes = np.array([4, 64])
    found = [float(batches.mean_error(inputs, m, 400, jax.random.key(0))) for m in sizes]
    # The mean of |N(0, 1/m)|; with 400 batches of 40 units, its standard error is .006 of it.
    np.testing.assert_allclose(found, np.sqrt(2 / np.pi / sizes), rtol=0.03)
    errors = np.array([[3.0], [5.0]]) * sizes[None] ** np.array([[-0.5], [-0.4]])
    np.testing.assert_allclose(batches.exponents(sizes, errors), [-0.5, -0.4], rtol=1e-12)


def test_renorm_is_tested_with_statistics_of_plain_bn():
    models = batches.make_models(CONFIG)
    x = np.random.default_rng(0).normal(size=(3, 10, 6)).astype(np.float32)
    found = []
    for name in ("batch", "renorm"):
        init = jax.jit(functools.partial(networks.init, models[name], optax.sgd(0.1)))
        network = init(jax.random.key(0), x[0])
        found.append(batches.population_variables(CONFIG, network, x))
    chex.assert_trees_all_close(*found)
    stats = found[0]["batch_stats"]["norm_0"]
    inputs = np.asarray(x @ found[0]["params"]["dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(stats["mean"], inputs.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(stats["var"], inputs.var(1, ddof=1).mean(0), rtol=1e-5)


def test_refuses_examples_that_are_no_whole_batches():
    with pytest.raises(ValueError, match="Expected an even `batch_size` that divides `examples`"):
        Config(batch_size=60, examples=100)
