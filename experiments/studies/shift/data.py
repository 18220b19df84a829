"""Binary images for the study `shift`, and the accuracy on them."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from experiments.studies.shift.config import Config
from experiments.tasks.data import Dataset, binary
from experiments.tasks.split import Examples, Split, sample_split
from experiments.training import networks
from experiments.training.networks import Network


class Data(NamedTuple):
    """Binary images as uint8 rows, and batches of training images for population statistics."""

    split: Split
    population: UInt8[Array, "K N F"]


def prepare(dataset: Dataset, config: Config) -> Data:
    """Draw images; the first training images, in random order, give population statistics."""
    split = sample_split(
        dataset,
        binary,
        validation=config.test_examples,
        train=config.train_examples,
        test=config.test_examples,
        dtype=np.uint8,
    )
    batches = min(config.train_examples // config.batch_size, 20)
    population = split.train[0][: batches * config.batch_size]
    return jax.device_put(Data(split, population.reshape(batches, config.batch_size, -1)))


def accuracies(model: nn.Module, network: Network, data: Data) -> tuple[Array, Array]:
    """Compute validation and test accuracy in inference mode, without noise.

    BN uses population statistics. A diverged network outputs NaN, whose argmax is class 0, so it
    counts as chance.
    """
    variables = network.variables
    if network.batch_stats:
        batches = data.population.astype(jnp.float32)
        population = networks.population(model, network, batches)
        variables = {**variables, "batch_stats": population}

    def accuracy(of: Examples) -> Array:
        x, labels = of
        return networks.accuracy(model, variables, x.astype(jnp.float32), labels)

    return accuracy(data.split.validation), accuracy(data.split.test)
