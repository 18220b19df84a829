"""Measurements during training: inputs and gradients of layers, and the loss along a step."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.stats.drift import PERCENTILES, settled_from
from experiments.studies.shift.data import Data, accuracies
from experiments.tasks.split import Examples
from experiments.training import networks
from experiments.training.networks import Network, cross_entropy
from jbn import diagnostics
from jbn.models import MLP

ALONG = np.linspace(0.5, 4, 8)  # Where the loss is probed, in units of a step (Santurkar et al.).
PROBE_EXAMPLES = 500  # Fixed examples at which the inputs of the last nonlinearity are measured.


@functools.partial(jax.jit, static_argnames=("model", "rate", "every", "gradients"))
def train_and_probe(
    model: MLP,
    rate: float,
    data: Data,
    start: Network,
    keys: PRNGKeyArray,
    batches: Int[Array, "seeds steps+1 batch"],
    *,
    every: int,
    gradients: bool,
) -> dict[str, Array]:
    """Train by plain gradient descent, and probe the network at regular intervals.

    Args:
      model: network with or without BN.
      rate: learning rate.
      data: examples.
      start, keys, batches: initial network, key for noise, and batches of every seed. A probe uses
        the next batch, so there is one batch more than there are steps.
      every: steps between evaluations.
      gradients: whether to probe gradients and landscape as well as inputs.

    Returns:
      Arrays with a leading axis of seeds: `accuracy` on the test set; `percentiles`,
      (evaluations, 3, units), of the last nonlinearity's inputs in training mode, and so with noise
      if there is any; with `gradients`, the results of `probe_step` at each evaluation.
    """
    optimizer, train = optax.sgd(rate), data.split.train

    def fit(start: Network, key: PRNGKeyArray, rows: Array) -> tuple[Network, Network]:
        def step(network: Network, batch: Examples, i: Array) -> Network:
            x, labels = batch
            x, rngs = x.astype(jnp.float32), {"noise": jax.random.fold_in(key, i)}
            return networks.train_step(model, optimizer, network, x, labels, rngs=rngs)

        return networks.fit(step, start, train, rows[:-1], observe=lambda now: now, every=every)

    def probe(at: tuple[Network, PRNGKeyArray, Array]) -> dict[str, Array]:
        network, key, rows = at
        rngs = {"noise": key}
        x = train[0][:PROBE_EXAMPLES].astype(jnp.float32)
        inputs = last_inputs(model, network, x, rngs)
        results = {"percentiles": diagnostics.percentiles(inputs, PERCENTILES)}
        if gradients:
            batch = jax.tree.map(lambda leaf: leaf[rows], train)
            loss = loss_on(model, network, batch, rngs)
            results |= probe_step(loss, network.params, rate)
        return results

    def probe_all(at: tuple[Network, PRNGKeyArray, Array]) -> dict[str, Array]:
        history, key, rows = at
        following = rows[::every]
        later = jax.random.split(jax.random.fold_in(key, len(rows)), len(following))
        return jax.lax.map(probe, (history, later, following))

    last, history = jax.vmap(fit)(start, keys, batches)
    _, accuracy = jax.vmap(lambda network: accuracies(model, network, data))(last)
    return {"accuracy": accuracy, **jax.lax.map(probe_all, (history, keys, batches))}


def last_inputs(model: MLP, network: Network, x: Array, rngs: Any) -> Float[Array, "N units"]:
    """Compute the inputs to the last hidden layer's nonlinearity in training mode."""
    collections = ["intermediates", "batch_stats"]
    _, sown = model.apply(network.variables, x, training=True, mutable=collections, rngs=rngs)
    (inputs,) = sown["intermediates"][f"activation_input_{len(model.hidden) - 1}"]
    return inputs


def loss_on(
    model: nn.Module, network: Network, batch: Examples, rngs: Any
) -> Callable[[Any], Array]:
    """Make params -> loss on a batch in training mode, with the same noise at every call."""
    x, labels = batch[0].astype(jnp.float32), batch[1]

    def loss(params: Any) -> Array:
        variables = {"params": params, "batch_stats": network.batch_stats}
        outputs, _ = model.apply(variables, x, training=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.mean(cross_entropy(outputs, labels))

    return loss


def probe_step(loss: Callable[[Any], Array], params: Any, rate: float) -> dict[str, Array]:
    """Probe one step of gradient descent: the shift of gradients, and the loss along the step.

    Returns:
      gradient_shift: relative change of a layer's gradient once all layers before it have taken
      their step, mean over all layers but the first; loss_range: largest minus smallest loss from
      half a step to four; gradient_change: largest change of the gradient there, relative to the
      gradient.
    """
    gradient = jax.grad(loss)(params)
    moved = jax.tree.map(lambda p, g: p - rate * g, params, gradient)

    def loss_by_layer(layers: Any) -> Array:
        return loss({name: own for layer in layers.values() for name, own in layer.items()})

    layers = by_layer(params)
    shifts = diagnostics.gradient_shift(loss_by_layer, layers, by_layer(moved), list(layers))
    relative = jnp.stack([shift.relative for shift in shifts.values()])
    landscape = diagnostics.landscape(loss, params, rate * ALONG)
    return {
        "gradient_shift": jnp.mean(relative[1:]),
        "loss_range": jnp.max(landscape.loss) - jnp.min(landscape.loss),
        "gradient_change": jnp.max(landscape.gradient_change) / optax.tree.norm(gradient),
    }


def by_layer(params: Any) -> dict[str, Any]:
    """Group each dense layer of an `MLP` with its normalization, from input to output."""
    numbers = sorted({name.rpartition("_")[2] for name in params if name != "output"}, key=int)
    layers = {i: {n: own for n, own in params.items() if n.endswith(f"_{i}")} for i in numbers}
    return {**layers, "output": {"output": params["output"]}}


def from_settled(
    over_training: Float[np.ndarray, "seeds evaluations ..."], every: int
) -> tuple[Int[np.ndarray, "L"], Float[np.ndarray, "seeds L ..."]]:
    """Drop the first 1,000 steps, or the first half if fewer than 2,000: early on, all is drift.

    Returns:
      The numbers of the remaining steps, and their values.
    """
    steps = every * np.arange(over_training.shape[1])
    settled = steps >= settled_from(steps[-1])
    return steps[settled], over_training[:, settled]


def drifts(percentiles: Float[np.ndarray, "seeds evaluations 3 units"], every: int) -> np.ndarray:
    """Compute the drift of the medians for each seed, once training has settled."""
    _, settled = from_settled(percentiles, every)
    return np.asarray([diagnostics.drift(of_seed).median for of_seed in settled])
