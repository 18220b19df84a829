"""Random numbers by seed and purpose: no two purposes share a stream, whatever their seeds.

`default_rng(5)` and `default_rng([5, 0])` are the same generator, and so are two JAX keys made from
one seed. Here the purpose is hashed with the seed: weights, batches and subsets of one seed are
independent, and every study that asks for the batches of seed 3 gets the same ones.
"""

import hashlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32, PRNGKeyArray


def rng(seed: int, purpose: str) -> np.random.Generator:
    """Make a NumPy generator for one purpose.

    Example:
      >>> from experiments import sampling
      >>> weights, batches = (sampling.rng(0, name) for name in ("weights", "batches"))
      >>> bool(weights.random() == batches.random())
      False
      >>> sampling.rng(0, "weights").integers(100, size=3).tolist()
      [38, 64, 74]
    """
    return np.random.default_rng(_words(seed, purpose))


def keys(seeds: Iterable[int], purpose: str, *, impl: str = "threefry2x32") -> PRNGKeyArray:
    """Make JAX keys for one purpose, one per seed, (seeds,).

    Example:
      >>> from experiments import sampling
      >>> sampling.keys(range(3), "weights").shape
      (3,)
    """
    length = {"threefry2x32": 2, "rbg": 4}[impl]
    data = np.stack([_words(seed, purpose)[:length] for seed in seeds])
    return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)


def batch_indices(
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    num_examples: int,
    *,
    purpose: str = "batches",
) -> Int32[np.ndarray, "steps batch"]:
    """Draw the batches of steps `start` to `stop`, determined by seed, purpose and step alone.

    Every epoch is a permutation of all examples. Batches are cut from the concatenated epochs, so
    all have the same size.
    """
    first, last = start * batch_size, stop * batch_size
    epochs = range(first // num_examples, -(-last // num_examples))
    order = np.concatenate(
        [rng(seed, f"{purpose}, epoch {epoch}").permutation(num_examples) for epoch in epochs]
    )
    offset = epochs.start * num_examples
    return order[first - offset : last - offset].reshape(-1, batch_size).astype(np.int32)


def all_batches(
    seeds: Iterable[int], steps: int, batch_size: int, num_examples: int
) -> Int32[np.ndarray, "seeds steps batch"]:
    """Draw the batches of every seed, from the first step on."""
    return np.stack([batch_indices(seed, 0, steps, batch_size, num_examples) for seed in seeds])


def _words(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.sha256(f"{purpose}: {seed}".encode()).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)
