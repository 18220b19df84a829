"""Training: a scan equals single steps, vmap equals a loop, statistics are Algorithm 2's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.sampling import batch_indices
from experiments.training import networks
from jbn.linen import BatchNorm
from jbn.models import MLP

X = jax.device_put(np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
LABELS = jax.device_put(np.random.default_rng(1).integers(0, 3, 40))
MODEL = MLP(
    hidden=(8, 8), outputs=3, norm=functools.partial(BatchNorm, momentum=0.9, unbiased=True)
)
BATCHES = batch_indices(0, 0, 12, 10, 40)


def train(key, rate, **options):
    optimizer = optax.sgd(rate)
    network = networks.init(MODEL, optimizer, key, X[:1])

    def step(network, batch, i):
        return networks.train_step(MODEL, optimizer, network, *batch)

    return networks.fit(step, network, (X, LABELS), BATCHES, **options)


train_once = jax.jit(train)


@functools.cache
def train_steps():
    """Train step by step; return the networks before the first step and after each."""
    optimizer = optax.sgd(0.1)
    advance = jax.jit(functools.partial(networks.train_step, MODEL, optimizer))
    made = [start(jax.random.key(0))]
    x, labels = np.asarray(X), np.asarray(LABELS)
    for rows in BATCHES:
        made.append(advance(made[-1], x[rows], labels[rows]))
    return made


@jax.jit
def start(key):
    return networks.init(MODEL, optax.sgd(0.1), key, X[:1])


def test_fit_is_step_after_step():
    fitted, _ = train_once(jax.random.key(0), 0.1)
    chex.assert_trees_all_close(fitted, train_steps()[-1], atol=1e-5)


def test_observations_come_before_the_first_step_and_after_every_chunk():
    observe = functools.partial(jax.tree.map, jnp.sum)
    _, seen = jax.jit(functools.partial(train, observe=observe, every=4))(jax.random.key(0), 0.1)
    made, seen = jax.device_get((train_steps(), seen))
    for steps, at in ((0, 0), (4, 1), (12, 3)):
        part = jax.tree.map(np.sum, made[steps])
        chex.assert_trees_all_close(jax.tree.map(lambda s, i=at: s[i], seen), part, atol=1e-4)
    with pytest.raises(ValueError, match="`every` to divide 12 steps, got 5"):
        jax.eval_shape(functools.partial(train, every=5), jax.random.key(0), 0.1)


def test_vmap_over_seeds_and_rates_is_one_by_one():
    keys, rates = jax.vmap(jax.random.key)(np.arange(2)), np.array([0.1, 0.5], np.float32)
    both, _ = jax.device_get(jax.jit(jax.vmap(train))(keys, rates))
    for i in range(2):
        alone, _ = train_once(keys[i], rates[i])
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], both)
        chex.assert_trees_all_close(mine, alone, atol=1e-4)


def test_population_is_the_mean_over_batches():
    network = start(jax.random.key(0))
    stats = networks.population(MODEL, network, X.reshape(4, 10, 5))
    first = X @ network.params["dense_0"]["kernel"]
    parts = np.asarray(first, np.float64).reshape(4, 10, 8)
    np.testing.assert_allclose(stats["norm_0"]["mean"], parts.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(stats["norm_0"]["var"], parts.var(1, ddof=1).mean(0), rtol=1e-5)


def test_penalty_and_accuracy():
    optimizer = optax.sgd(0.1)
    network = start(jax.random.key(0))

    @jax.jit
    def kernels(network):
        """Take a step without and with the penalty; return the output kernels."""
        made = [
            networks.train_step(MODEL, optimizer, network, X, LABELS, penalty=penalty)
            for penalty in (None, lambda p: jnp.sum(p["output"]["kernel"] ** 2))
        ]
        return [one.params["output"]["kernel"] for one in made]

    difference = np.subtract(*kernels(network))
    np.testing.assert_allclose(difference, 0.2 * network.params["output"]["kernel"], atol=1e-6)

    @jax.jit
    def outputs_and_accuracy(variables):
        outputs = MODEL.apply(variables, X, training=False)
        return outputs, networks.accuracy(MODEL, variables, X, LABELS)

    outputs, accuracy = outputs_and_accuracy(network.variables)
    expected = np.mean(np.argmax(outputs, -1) == np.asarray(LABELS))
    assert float(accuracy) == pytest.approx(expected)
