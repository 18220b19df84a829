"""Initial weights of the study `shift`."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments import sampling
from experiments.training.networks import Network


def sample_networks(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seeds: Sequence[int],
    features: int,
    deviation: Callable[[int, int], float],
) -> Network:
    """Sample a network for each seed, with a leading axis of seeds.

    Kernels depend only on the seed and their place in the network, not on the norm. They are drawn
    by NumPy: XLA would take longer to compile `model.init` than all the training.

    Args:
      deviation: (inputs, outputs) of a kernel -> standard deviation of its weights.
    """
    init = functools.partial(model.init, training=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, features)))
    places = itertools.count()

    def fill(path: tuple[Any, ...], leaf: Any) -> Array:
        name, shape = path[-1].key, (len(seeds), *leaf.shape)
        if name != "kernel":
            return jax.device_put(np.full(shape, name in ("scale", "var"), leaf.dtype))
        place, scale = next(places), deviation(*leaf.shape[-2:])
        rngs = [sampling.rng(seed, f"weights {place}") for seed in seeds]
        kernels = [rng.normal(0, scale, shape[1:]) for rng in rngs]
        return jax.device_put(np.stack(kernels).astype(leaf.dtype))

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    params = variables["params"]
    return Network(params, variables.get("batch_stats", {}), jax.vmap(optimizer.init)(params))


def glorot(inputs: int, outputs: int) -> float:
    """Return the deviation that on average preserves the variance of values and gradients."""
    return (2 / (inputs + outputs)) ** 0.5


def he(inputs: int, outputs: int) -> float:
    """Return the deviation that preserves the variance of values through ReLU."""
    del outputs
    return (2 / inputs) ** 0.5
