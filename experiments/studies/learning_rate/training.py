"""Training of sigmoid and ReLU networks on MNIST, with many rates and initial weights at once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from experiments import sampling
from experiments.studies.learning_rate.config import BATCH_SIZE
from experiments.tasks.data import Dataset, binary
from experiments.tasks.split import Split, sample_split, spread
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn.models import MLP

ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}
METHODS = {"none": None, "batch": "batch"}


class Setting(NamedTuple):
    """How a network is trained; fields that are arrays describe many networks."""

    rate: Any
    sigma: Any
    half_life: Any = np.inf


class Examples(NamedTuple):
    """Binary images, (N, pixels), with labels; and batches of them for population statistics."""

    split: Split
    population: Any


def sample_examples(dataset: Dataset, *, validation: int, population_batches: int) -> Examples:
    """Draw training and validation images, and batches for population statistics."""
    split = sample_split(dataset, binary, validation=validation, dtype=np.uint8)
    images, labels = split.train
    rows = sampling.batch_indices(
        0, 0, population_batches, BATCH_SIZE, len(labels), purpose="population"
    )
    return Examples(split, images[rows])


def floats(images: Array) -> Array:
    """Convert images, which are kept as bytes, to the input of a network."""
    return images.astype(jnp.float32)


@functools.cache
def trainer(hidden: tuple[int, ...], activation: str, method: str) -> Callable[..., Any]:
    """Make the program that trains one kind of network, cached for all calls.

    Returns:
      `(settings, (keys, batches), examples)` -> validation and test accuracies after each chunk
      of batches, and the last parameters; leading axes are (settings, seeds).
    """

    def train(
        setting: Setting, of_seed: tuple[PRNGKeyArray, Array], examples: Examples
    ) -> dict[str, Any]:
        key, batches = of_seed
        init = nn.initializers.normal(setting.sigma)
        model = MLP(
            hidden, activation=ACTIVATIONS[activation], kernel_init=init, norm=METHODS[method]
        )
        optimizer = optax.sgd(lambda count: setting.rate * 0.5 ** (count / setting.half_life))

        def step(network: Network, batch: tuple[Array, Array], i: Array) -> Network:
            return networks.train_step(model, optimizer, network, floats(batch[0]), batch[1])

        def chunk(network: Network, rows: Array) -> tuple[Network, tuple[Array, Array]]:
            network, _ = networks.fit(step, network, examples.split.train, rows)
            variables = network.variables
            if method == "batch":
                population = networks.population(model, network, floats(examples.population))
                variables["batch_stats"] = population
            validation, test = (
                networks.accuracy(model, variables, floats(images), labels)
                for images, labels in (examples.split.validation, examples.split.test)
            )
            return network, (validation, test)

        pixels = examples.population.shape[-1]
        network = networks.init(model, optimizer, key, jnp.ones((1, pixels)))
        network, (validation, test) = jax.lax.scan(chunk, network, batches)
        return {"validation": validation, "test": test, "params": network.params}

    # All settings of a seed share each batch, so that one product applies all their weights to it.
    return sweep.program(train, sequential="seeds")


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
    """Train with every setting and every seed.

    Args:
      examples: from `sample_examples`.
      activation, method: keys of ACTIVATIONS and METHODS.
      settings: trained side by side.
      steps: number of training steps.
      seeds: number of seeds.
      hidden: width of each hidden layer.
      every: steps between evaluations; None evaluates once, at the end.
      looked_at: number of test images if there are several evaluations; None uses all.

    Returns:
      `validation` and `test`, accuracies (settings, seeds, evaluations); `params`. A network that
      diverged to NaN predicts the first class for all images.
    """
    every, (images, labels) = every or steps, examples.split.test
    if every < steps and looked_at and len(labels) > looked_at:
        some = spread(len(labels), looked_at)
        few = examples.split._replace(test=(images[some], labels[some]))
        examples = examples._replace(split=few)
    count = len(examples.split.train[1])
    rows = sampling.all_batches(range(seeds), steps, BATCH_SIZE, count)
    batches = rows.reshape(seeds, -1, every, BATCH_SIZE)
    table = Setting(*(np.array(column, np.float32) for column in zip(*settings, strict=True)))
    keys = sampling.keys(range(seeds), "weights")
    results = trainer(hidden, activation, method)(table, (keys, batches), examples)
    return jax.tree.map(np.asarray, results)
