"""Training that computes every running average at once (see the docstring of the study)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

import jbn
from experiments import sampling
from experiments.studies.inference.config import WINDOW, Config
from experiments.studies.inference.data import Data
from experiments.tasks.data import Dataset
from experiments.training import networks
from experiments.training.networks import Network
from jbn._schedules import Schedule
from jbn.linen import BatchNorm
from jbn.models import MLP

MOMENTA: dict[str, float | Schedule] = {
    "exponential_0.9": 0.9,
    "exponential_0.99": 0.99,
    "exponential_0.999": 0.999,
    "debiased": jbn.debiased(0.99),
    "cumulative": jbn.cumulative,
}


class State(NamedTuple):
    """A network in training, and averages of its `tracked_values`."""

    network: Network
    averages: dict[str, Any]  # By the names in `MOMENTA`.
    ring: Any  # The last `WINDOW` values, for the simple moving average.


def make_model(config: Config) -> MLP:
    """Make the network; its `batch_stats` are those of the last batch alone."""
    return MLP(config.hidden, norm=functools.partial(BatchNorm, momentum=0.0, unbiased=True))


def tracked_values(network: Network) -> dict[str, Any]:
    """Return what is averaged: statistics, and the parameters of the normalization layers."""
    affine = {name: layer for name, layer in network.params.items() if "scale" in layer}
    return {"statistics": network.batch_stats, "affine": affine}


def begin(network: Network) -> State:
    """Start all averages where a layer does: mean 0, var 1, and the initial gamma and beta."""
    now = tracked_values(network)
    ring = jax.tree.map(lambda leaf: jnp.zeros((WINDOW, *leaf.shape)), now)
    return State(network, dict.fromkeys(MOMENTA, now), ring)


def follow(state: State, network: Network, i: Int[Array, ""]) -> State:
    """Update every average with the values after step i."""
    now = tracked_values(network)
    averages = {}
    for name, momentum in MOMENTA.items():
        weight = momentum(i) if callable(momentum) else momentum
        averages[name] = optax.incremental_update(now, state.averages[name], 1 - weight)
    ring = jax.tree.map(lambda ring, new: ring.at[i % WINDOW].set(new), state.ring, now)
    return State(network, averages, ring)


def train(config: Config, dataset: Dataset, data: Data) -> dict[str, Any]:
    """Train all seeds; return the last weights, the averages, and the population statistics."""
    model, optimizer = make_model(config), optax.sgd(config.learning_rate)
    seeds, shape = range(config.seeds), (config.batch_size, len(data.train))
    batches = sampling.all_batches(seeds, config.steps, *shape)
    whole = sampling.batch_indices(
        0, 0, len(data.train) // config.batch_size, *shape, purpose="whole population"
    )

    def step(state: State, batch: tuple[Array, Array], i: Array) -> State:
        return follow(state, networks.train_step(model, optimizer, state.network, *batch), i)

    def one(key: PRNGKeyArray, batches: Array, images: Array, labels: Array) -> dict[str, Any]:
        first = networks.init(model, optimizer, key, images[:1])
        state, _ = networks.fit(step, begin(first), (images, labels), batches)
        window = jax.tree.map(lambda ring: ring.mean(0), state.ring)
        return {
            "params": state.network.params,
            "averages": {**state.averages, "window": window},
            "population": networks.population(model, state.network, images[whole]),
        }

    run = jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))
    return run(sampling.keys(seeds, "weights"), batches, data.train, dataset.train_labels)
