"""Sigmoid and ReLU networks on MNIST, many settings of rate and initial weights side by side."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from experiments.tasks.data import Dataset, binary
from experiments.training import networks
from experiments.training.loop import batch_indices
from experiments.training.networks import Network
from jbn.models import MLP

BATCH_SIZE = 60
ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}
METHODS = {"none": None, "batch": "batch"}


class Setting(NamedTuple):
    """How a network is trained; of arrays: many."""

    rate: Any
    sigma: Any
    half_life: Any = np.inf


class Examples(NamedTuple):
    """Binary images, (N, pixels), with labels; and images for population statistics."""

    train: Any
    held_out: Any
    test: Any
    population: Any


def split(dataset: Dataset, *, held_out: int, population_batches: int) -> Examples:
    """Hold the last training images out, draw batches for population statistics."""
    images, labels = binary(dataset.train_images), dataset.train_labels
    count = len(labels) - held_out
    rows = batch_indices(0, 0, population_batches, BATCH_SIZE, count)
    return Examples(
        (images[:count], labels[:count]),
        (images[count:], labels[count:]),
        (binary(dataset.test_images), dataset.test_labels),
        images[rows],
    )


def floats(images: Array) -> Array:
    """Make images what a network takes; they are kept as bytes."""
    return images.astype(jnp.float32)


@functools.cache
def trainer(hidden: tuple[int, ...], activation: str, method: str) -> Callable[..., Any]:
    """Compile, once for all settings, the training of one kind of network.

    Returns: `(settings, keys, batches, examples)` -> accuracies on held-out and on test images
      after each chunk of batches, and the last parameters; leading axes seeds, settings.
    """

    def train(setting: Setting, key: PRNGKeyArray, batches: Array, examples: Examples) -> Any:
        init = nn.initializers.normal(setting.sigma)
        model = MLP(
            hidden, activation=ACTIVATIONS[activation], kernel_init=init, norm=METHODS[method]
        )
        optimizer = optax.sgd(lambda count: setting.rate * 0.5 ** (count / setting.half_life))

        def step(network: Network, batch: tuple[Array, Array], i: Array) -> Network:
            return networks.train_step(model, optimizer, network, floats(batch[0]), batch[1])

        def chunk(network: Network, rows: Array) -> tuple[Network, tuple[Array, Array]]:
            network, _ = networks.fit(step, network, examples.train, rows)
            variables = network.variables
            if method == "batch":
                population = networks.population(model, network, floats(examples.population))
                variables["batch_stats"] = population
            held_out, test = (
                networks.accuracy(model, variables, floats(images), labels)
                for images, labels in (examples.held_out, examples.test)
            )
            return network, (held_out, test)

        pixels = examples.population.shape[-1]
        network = networks.init(model, optimizer, key, jnp.ones((1, pixels)))
        network, (held_out, test) = jax.lax.scan(chunk, network, batches)
        return {"held_out": held_out, "test": test, "params": network.params}

    # Settings of one seed share the batch, so that the product with its pixels is a single one.
    side_by_side = jax.vmap(train, (0, None, None, None))

    def all_seeds(settings: Setting, keys: PRNGKeyArray, batches: Array, examples: Examples) -> Any:
        return jax.lax.map(
            lambda seed: side_by_side(settings, seed[0], seed[1], examples), (keys, batches)
        )

    return jax.jit(all_seeds)


def train(
    examples: Examples,
    activation: str,
    method: str,
    settings: Sequence[Setting],
    steps: int,
    *,
    seeds: int,
    hidden: tuple[int, ...],
    every: int | None = None,
    looked_at: int | None = None,
) -> dict[str, Any]:
    """Train from every setting and seed.

    Args:
      examples: from `split`.
      activation, method: keys of ACTIVATIONS and METHODS.
      settings: trained side by side.
      steps: of training.
      seeds: how many.
      hidden: width of each hidden layer.
      every: steps between looks; None looks once, at the end.
      looked_at: test images for looks where they are many; None takes all.

    Returns: `held_out` and `test`, accuracies of shape (seeds, settings, looks); `params`. One
      that diverged to NaN predicts the first class for all images.
    """
    every, images = every or steps, examples.test[0]
    if every < steps and looked_at and len(images) > looked_at:
        # Spread over all: the first half of MNIST's test images is easier than the second.
        some = np.linspace(0, len(images) - 1, looked_at).astype(int)
        examples = examples._replace(test=(images[some], examples.test[1][some]))
    count = len(examples.train[1])
    drawn = np.stack([batch_indices(seed, 0, steps, BATCH_SIZE, count) for seed in range(seeds)])
    batches = drawn.reshape(seeds, -1, every, BATCH_SIZE)
    table = Setting(*(np.array(column, np.float32) for column in zip(*settings, strict=True)))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    found = trainer(hidden, activation, method)(table, keys, batches, examples)
    return jax.tree.map(np.asarray, found)
