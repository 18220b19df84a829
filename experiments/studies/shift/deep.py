"""Networks of many equal layers: how changes propagate through them, and how well they train."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from experiments import sampling
from experiments.studies.shift.data import Data, accuracies
from experiments.studies.shift.weights import glorot, he, sample_networks
from experiments.tasks.split import Examples
from experiments.training import networks, sweep
from experiments.training.deep_mlp import DeepMLP
from experiments.training.networks import Network
from jbn.linen import BatchNorm
from jbn.models.units import Activation, Norm

# ---- How changes propagate -----------------------------------------------------------------------


class HiddenLayers(NamedTuple):
    """For every hidden layer: W x, the last one of a network of that depth, and the input to f."""

    preactivations: Float[Array, "runs depth N width"]
    inputs: Float[Array, "runs depth N width"]


@functools.partial(jax.jit, static_argnames="model")
def hidden_layers(model: DeepMLP, network: Network, x: Float[Array, "N F"]) -> HiddenLayers:
    """Run a batch through every network in training mode, and return the sown values."""

    def one(network: Network) -> HiddenLayers:
        collections = ["intermediates", "batch_stats"]
        _, updated = model.apply(network.variables, x, training=True, mutable=collections)
        sown: Any = updated["intermediates"]
        (first,), (others,) = sown["preactivation"], sown["blocks"]["preactivation"]
        (inputs,), (last,) = sown["blocks"]["inputs_0"], sown["inputs"]
        return HiddenLayers(
            jnp.concatenate([first[None], others]), jnp.concatenate([inputs, last[None]])
        )

    return jax.lax.map(one, network)


def change_kernels(
    network: Network, change: Callable[[np.ndarray, int], np.ndarray], *, at: str = ""
) -> Network:
    """Apply `(W, seed) -> W` to each run's hidden layers, or only to those named by `at`."""

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        layer, name = path[0].key, path[-1].key
        if name != "kernel" or layer == "output" or at not in layer:
            return leaf
        changed = [change(own, 2 * run + (layer == "blocks")) for run, own in enumerate(leaf)]
        return jnp.asarray(np.stack(changed), leaf.dtype)

    return network._replace(params=jax.tree_util.tree_map_with_path(one, network.params))


def nudge(kernel: np.ndarray, seed: int, *, by: float = 0.01) -> np.ndarray:
    """Move weights in a random direction by a fraction of their norm."""
    direction = sampling.rng(seed, "nudge").normal(size=kernel.shape)
    return kernel + by * direction * np.linalg.norm(kernel) / np.linalg.norm(direction)


def enlarge_few(
    kernel: np.ndarray, seed: int, *, share: float = 0.01, factor: float = 10
) -> np.ndarray:
    """Multiply each weight by `factor` with probability `share`."""
    few = sampling.rng(seed, "outliers").random(kernel.shape) < share
    return np.where(few, factor * kernel, kernel)


def changes_by_depth(model: DeepMLP, x: Float[Array, "N F"], runs: int) -> dict[str, np.ndarray]:
    """Change the weights of untrained networks, and measure the effect in every layer.

    Args:
      model: network with ReLU; its weights are drawn with He initialization.
      x: batch.
      runs: number of networks.

    Returns:
      Arrays (runs, depth). nudged: relative change of W x when the first layer's weights move by
      1 %. outliers: standard deviation over examples and units of the inputs to the nonlinearity,
      with one weight in a hundred ten times as large, relative to that without. large: that
      deviation with all weights 1.5 times as large.
    """
    plain = sample_networks(model, optax.identity(), range(runs), x.shape[1], he)
    unchanged = hidden_layers(model, plain, x)
    nudged = hidden_layers(model, change_kernels(plain, nudge, at="first"), x)
    outliers = hidden_layers(model, change_kernels(plain, enlarge_few), x)
    large = hidden_layers(
        model, change_kernels(plain, lambda kernel, _: 1.5 * np.asarray(kernel)), x
    )

    def norm(preactivations: Array) -> np.ndarray:
        return np.asarray(jnp.linalg.norm(preactivations, axis=(2, 3)))

    def deviation(layers: HiddenLayers) -> np.ndarray:
        return np.asarray(jnp.std(layers.inputs, axis=(2, 3)))

    return {
        "nudged": norm(nudged.preactivations - unchanged.preactivations)
        / norm(unchanged.preactivations),
        "outliers": deviation(outliers) / deviation(unchanged),
        "large": deviation(large),
    }


def growth(by_depth: Float[np.ndarray, "runs depth"]) -> Float[np.ndarray, "runs"]:
    """Compute the mean factor per layer, from the first to the last."""
    return (by_depth[:, -1] / by_depth[:, 0]) ** (1 / (by_depth.shape[1] - 1))


# ---- How well they train -------------------------------------------------------------------------


class Variant(NamedTuple):
    """The components of a deep network.

    - deviation: standard deviation of the initial weights, see `weights.sample_networks`.
    - dropout: share of units dropped after every nonlinearity.
    - l2: weight of half the sum of the squared parameters.
    """

    activation: Activation
    deviation: Callable[[int, int], float]
    norm: Norm = None
    dropout: float = 0.0
    l2: float = 0.0


VARIANTS = {
    "sigmoid": Variant(nn.sigmoid, glorot),
    "sigmoid_dropout": Variant(nn.sigmoid, glorot, dropout=0.2),
    "sigmoid_l2": Variant(nn.sigmoid, glorot, l2=1e-4),
    "sigmoid_bn": Variant(nn.sigmoid, glorot, BatchNorm),
    "relu": Variant(nn.relu, he),
    "relu_bn": Variant(nn.relu, he, BatchNorm),
}


def train(
    variant: Variant,
    depth: int,
    width: int,
    data: Data,
    *,
    rates: Sequence[float],
    seeds: int,
    steps: int,
    batch_size: int,
) -> dict[str, Float[np.ndarray, "rates seeds"]]:
    """Train every seed at every rate with momentum .9.

    Returns:
      Accuracy on the images of `validation` and `test`.
    """
    model = DeepMLP(
        depth, width, activation=variant.activation, norm=variant.norm, dropout=variant.dropout
    )

    def one(
        rate: Array, of_seed: tuple[Network, PRNGKeyArray, Array], data: Data
    ) -> dict[str, Array]:
        optimizer = optax.sgd(rate, momentum=0.9)
        start, key, rows = of_seed

        def penalty(params: Any) -> Array:
            return variant.l2 / 2 * optax.tree.norm(params, squared=True)

        def step(network: Network, batch: Examples, i: Array) -> Network:
            rngs = {"dropout": jax.random.fold_in(key, i)}
            x, labels = batch
            return networks.train_step(
                model,
                optimizer,
                network,
                x.astype(jnp.float32),
                labels,
                penalty=penalty,
                rngs=rngs,
            )

        start = start._replace(opt_state=optimizer.init(start.params))
        network, _ = networks.fit(step, start, data.split.train, rows)
        validation, test = accuracies(model, network, data)
        return {"validation": validation, "test": test}

    x, labels = data.split.train
    start = sample_networks(model, optax.identity(), range(seeds), x.shape[1], variant.deviation)
    keys = sampling.keys(range(seeds), "dropout")
    batches = sampling.all_batches(range(seeds), steps, batch_size, len(labels))
    settings = np.asarray(rates, np.float32)
    return sweep.each(one, settings, (start, keys, batches), data, sequential="settings")
