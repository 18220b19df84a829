"""Backpropagation by hand: the chain rule through dense layers, BN and sigmoids, in NumPy."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from experiments import sampling
from experiments.studies.gradients.deep import sample_weights
from experiments.training import networks
from jbn.models import MLP


def backpropagate(
    params: Mapping[str, Any], x: np.ndarray, labels: np.ndarray, *, epsilon: float = 1e-5
) -> dict[str, Any]:
    """Compute the gradient of a sigmoid network with BN: downstream = upstream x local.

    Args:
      params: parameters of `jbn.models.MLP(norm="batch")`.
      x: inputs, (N, F).
      labels: classes, (N,).

    Returns:
      gradient of the mean cross-entropy, with the structure of params.

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, section 3, for BN's.
    """
    n, depth, cache = len(x), sum(name.startswith("dense") for name in params), []
    for i in range(depth):
        u = x @ params[f"dense_{i}"]["kernel"]
        std = np.sqrt(u.var(0, keepdims=True) + epsilon)
        xhat = (u - u.mean(0, keepdims=True)) / std
        norm = params[f"norm_{i}"]
        y = 1 / (1 + np.exp(-(norm["scale"][None] * xhat + norm["bias"][None])))
        cache.append((x, std, xhat, y))
        x = y
    logits = x @ params["output"]["kernel"] + params["output"]["bias"][None]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)

    upstream = (probabilities - np.eye(logits.shape[1])[labels]) / n
    gradient: dict[str, Any] = {"output": {"kernel": x.T @ upstream, "bias": upstream.sum(0)}}
    upstream = upstream @ params["output"]["kernel"].T
    for i in reversed(range(depth)):
        x, std, xhat, y = cache[i]
        upstream = upstream * y * (1 - y)  # The sigmoid's local gradient.
        scale, bias = (upstream * xhat).sum(0), upstream.sum(0)
        gradient[f"norm_{i}"] = {"scale": scale, "bias": bias}
        centered = upstream - bias[None] / n - xhat * scale[None] / n
        upstream = params[f"norm_{i}"]["scale"][None] / std * centered  # BN's local gradient.
        gradient[f"dense_{i}"] = {"kernel": x.T @ upstream}
        upstream = upstream @ params[f"dense_{i}"]["kernel"].T  # The matrix product's.
    return gradient


def backprop_errors(seeds: Iterable[int]) -> list[float]:
    """Compare with jax.grad in float64; return the largest error for each seed.

    Errors are relative to the largest value of their leaf.
    """
    model, n, features = MLP(hidden=(20, 10), norm="batch"), 16, 12

    @jax.jit
    @jax.grad
    def by_jax(params: Any, x: Array, labels: Array) -> Array:
        y, _ = model.apply({"params": params}, x, training=True, mutable=["batch_stats"])
        return networks.cross_entropy(y, labels).mean()

    errors = []
    for seed in seeds:
        x = sampling.rng(seed, "inputs").normal(size=(n, features))
        labels = sampling.rng(seed, "labels").integers(0, 10, n)
        (variables,) = sample_weights(model, x, [seed])
        rng = sampling.rng(seed, "scales and biases")
        # Scales other than 1 and biases other than 0 would expose a mistake in them.
        params = jax.tree.map(
            lambda leaf, rng=rng: leaf + 0.3 * rng.normal(size=leaf.shape), variables["params"]
        )
        ours = backpropagate(params, x, labels)
        with jax.enable_x64(True):
            expected = jax.tree.map(np.asarray, by_jax(params, x, labels))
        differences = jax.tree.map(
            lambda a, b: np.max(np.abs(a - b)) / np.max(np.abs(b)), ours, expected
        )
        errors.append(max(jax.tree.leaves(differences)))
    return errors
