"""The adding problem: networks trained on it at every rate, and the effect of clipping."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from experiments import sampling
from experiments.stats import selection
from experiments.studies.recurrent.config import CHANCE, Config
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn.models.recurrent import Recurrent


def sample_adding(
    seed: int, sequences: int, length: int
) -> tuple[Float[np.ndarray, "N T 2"], Float[np.ndarray, "N"]]:
    """Sample sequences of values with one marker in each half, and the sums of marked values."""
    rng, rows = sampling.rng(seed, "sequences"), np.arange(sequences)
    x = np.zeros((sequences, length, 2), np.float32)
    x[..., 0] = rng.random((sequences, length))
    x[rows, rng.integers(0, length // 2, sequences), 1] = 1
    x[rows, rng.integers(length // 2, length, sequences), 1] = 1
    return x, x.prod(2).sum(1)


def sample_sequences(
    config: Config, seeds: int, steps: int, length: int
) -> tuple[Any, Any, Int[np.ndarray, "steps batch"]]:
    """Sample training examples, each used once, and held-out ones for every seed; and batches."""
    count = steps * config.batch_size
    sequences = [sample_adding(seed, count + 2 * config.held_out, length) for seed in range(seeds)]
    x, y = (np.stack(arrays) for arrays in zip(*sequences, strict=True))
    batches = np.arange(count, dtype=np.int32).reshape(steps, -1)
    return (x[:, :count], y[:, :count]), (x[:, count:], y[:, count:]), batches


def squared_error(outputs: Any, target: Float[Array, "N"]) -> Float[Array, "N"]:
    """Compute the loss of each sequence."""
    return (outputs[:, 0] - target) ** 2


def set_gates(params: Any, key: PRNGKeyArray, kind: str, length: int) -> Any:
    """Set an LSTM's gate biases; with "lstm", memories last from 1 to `length` steps."""
    layer = params["input"]
    size = layer["bias"].shape[0] // 4  # The bias holds the gates i, f, g, o.
    chrono = jnp.log(jax.random.uniform(key, (size,), minval=1.0, maxval=length - 1.0))
    inward, forget = (-chrono, chrono) if kind == "lstm" else (0.0, 1.0)
    bias = layer["bias"].at[:size].set(inward).at[size : 2 * size].set(forget)
    return {**params, "input": {**layer, "bias": bias}}


def learn(config: Config, kinds: tuple[str, ...], length: int) -> dict[str, ArrayLike]:
    """Train networks at every rate: "rnn", or "lstm" (chrono) and "lstm_1" (forget bias 1).

    Returns:
      By kind, the errors on two sets of held-out sequences, (rates, seeds, evaluations, 2).
    """
    cell: Any = "rnn" if "rnn" in kinds else "lstm"
    model = Recurrent(cell=cell, hidden=config.hidden, outputs=1)
    examples, held_out, batches = sample_sequences(config, config.seeds, config.steps, length)

    def init(weights: PRNGKeyArray, gates: PRNGKeyArray, kind: str) -> Any:
        params = model.init(weights, jnp.ones((1, 1, 2)), training=False)["params"]
        return params if kind == "rnn" else set_gates(params, gates, kind, length)

    def one(setting: dict[str, Array], of_seed: tuple[Any, Any, Any], shared: Any) -> Array:
        params, examples, held_out = of_seed
        params = jax.tree.map(lambda leaf: leaf[setting["kind"]], params)
        rate = setting["rate"]
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))
        network = Network(params, {}, optimizer.init(params))

        def step(network: Network, batch: tuple[Array, Array], _: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch, loss=squared_error)

        def observe(network: Network) -> Array:
            x, y = held_out
            errors = squared_error(model.apply(network.variables, x, training=False), y)
            return errors.reshape(2, -1).mean(1)

        every = config.steps // config.looks
        return networks.fit(step, network, examples, batches, observe=observe, every=every)[1]

    keys = [sampling.keys(range(config.seeds), purpose) for purpose in ("weights", "gates")]
    params = [jax.vmap(functools.partial(init, kind=kind))(*keys) for kind in kinds]
    by_seed = jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *params)
    # One program for all kinds, since each takes long to compile. Running the settings one after
    # another takes no longer, and far less memory.
    settings = sweep.grid(kind=range(len(kinds)), rate=config.rates)
    errors = sweep.each(one, settings, (by_seed, examples, held_out), sequential="settings")
    return dict(zip(kinds, np.split(errors, len(kinds)), strict=True))


def at_best_rate(
    errors: Float[np.ndarray, "rates seeds evaluations 2"],
) -> Float[np.ndarray, "..."]:
    """Choose the rate by the last errors on the first held-out set; return errors on the second.

    A diverged run ranks below all others. If its rate is chosen nevertheless, it counts as always
    answering 1.
    """
    best = errors[selection.best(errors[:, :, -1, 0], "lowest"), :, :, 1]
    return np.where(np.isfinite(best), best, CHANCE)


def clipping(config: Config) -> dict[str, ArrayLike]:
    """Train RNNs with large recurrent weights by gradient descent, without and with clipping.

    Both use the same initial weights and batches.

    Returns:
      The last error of each seed on held-out sequences.
    """
    steps, length = config.clip_steps, config.clip_length
    examples, held_out, batches = sample_sequences(config, config.clip_seeds, steps, length)
    orthogonal = nn.initializers.orthogonal(config.clip_gain)
    model = Recurrent(hidden=config.hidden, outputs=1, recurrent_init=orthogonal)

    def one(clip: Array, of_seed: tuple[PRNGKeyArray, Any, Any], shared: Any) -> Array:
        key, examples, (x, y) = of_seed
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(config.clip_rate))
        network = networks.init(model, optimizer, key, x[:1])

        def step(network: Network, batch: tuple[Array, Array], _: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch, loss=squared_error)

        network, _ = networks.fit(step, network, examples, batches)
        return squared_error(model.apply(network.variables, x, training=False), y).mean()

    clips = np.array([np.inf, config.clip])  # Infinity never clips.
    keys = sampling.keys(range(config.clip_seeds), "weights")
    unclipped, clipped = sweep.each(one, clips, (keys, examples, held_out))
    return {"unclipped": unclipped, "clipped": clipped}
