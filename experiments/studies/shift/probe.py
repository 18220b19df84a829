"""The probe of training: inputs of layers, their gradients, the loss along a step."""

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

ALONG = np.linspace(0.5, 4, 8)  # Where the loss is probed, in steps, as Santurkar et al. do.
PROBE_EXAMPLES = 500  # Whose inputs to the last nonlinearity are probed, always the same.


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
    """Train by plain gradient descent, and probe the network on the way.

    Args:
      model: without BN or with it.
      rate: learning rate.
      data: examples.
      start, keys, batches: of every seed. The keys are for noise; a probe takes the batch that
        comes next, so there is one more than there are steps.
      every: steps between evaluations.
      gradients: probe gradients and landscape too, not the inputs alone.

    Returns:
      arrays with a leading axis of seeds: `accuracy` on the test set; `percentiles`,
      (evaluations, 3, units), of the last nonlinearity's inputs in training mode, so that with
      noise they are those that training sees; with `gradients`, what `probe_step` gives, for each.
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
    """Compute what enters the last hidden layer's nonlinearity, in training mode."""
    collections = ["intermediates", "batch_stats"]
    _, sown = model.apply(network.variables, x, training=True, mutable=collections, rngs=rngs)
    (inputs,) = sown["intermediates"][f"activation_input_{len(model.hidden) - 1}"]
    return inputs


def loss_on(
    model: nn.Module, network: Network, batch: Examples, rngs: Any
) -> Callable[[Any], Array]:
    """Make params -> loss on a batch in training mode; the noise, too, is the same every time."""
    x, labels = batch[0].astype(jnp.float32), batch[1]

    def loss(params: Any) -> Array:
        variables = {"params": params, "batch_stats": network.batch_stats}
        outputs, _ = model.apply(variables, x, training=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.mean(cross_entropy(outputs, labels))

    return loss


def probe_step(loss: Callable[[Any], Array], params: Any, rate: float) -> dict[str, Array]:
    """Probe one step of gradient descent: how it shifts gradients, how the loss goes along it.

    Returns:
      gradient_shift: relative change of the gradient of a layer when all before it have
      moved, mean over those that have any before; loss_range: largest - smallest loss from half a
      step to four; gradient_change: the largest on the way, relative to the gradient.
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
    """Put each dense layer of an `MLP` with its normalization, from the input to the output."""
    numbers = sorted({name.rpartition("_")[2] for name in params if name != "output"}, key=int)
    layers = {i: {n: own for n, own in params.items() if n.endswith(f"_{i}")} for i in numbers}
    return {**layers, "output": {"output": params["output"]}}


def from_settled(
    over_training: Float[np.ndarray, "seeds evaluations ..."], every: int
) -> tuple[Int[np.ndarray, "L"], Float[np.ndarray, "seeds L ..."]]:
    """Leave out the first 1,000 steps, or half of fewer than 2,000: there, all is drift.

    Returns:
      the numbers of the steps, and what is left.
    """
    steps = every * np.arange(over_training.shape[1])
    settled = steps >= settled_from(steps[-1])
    return steps[settled], over_training[:, settled]


def drifts(percentiles: Float[np.ndarray, "seeds evaluations 3 units"], every: int) -> np.ndarray:
    """Compute the drift of the medians for each seed, once training has settled."""
    _, settled = from_settled(percentiles, every)
    return np.asarray([diagnostics.drift(of_seed).median for of_seed in settled])
