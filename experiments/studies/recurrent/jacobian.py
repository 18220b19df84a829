"""The Jacobian of a recurrent state with respect to an earlier one: what the state remembers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from experiments import sampling
from experiments.studies.recurrent.config import (
    EVALUATE_EVERY,
    FORGET_BIASES,
    STEPS_BACK,
    Config,
)
from experiments.training import networks, sweep


def jacobian(
    move: Callable[[Array, Array], Array],
    start: Float[Array, "S"],
    inputs: Float[Array, "T F"],
    *,
    every: int,
) -> tuple[Float[Array, "evaluations"], Float[Array, "evaluations S S"]]:
    """Compute d state_T / d state_0 for T = 0, every, 2 every, ... as exp(logarithm) * matrix.

    At every step the product of the steps' Jacobians is divided by its norm, whose logarithm is
    accumulated: otherwise the product would soon underflow in float32.

    `move` maps state and input to the next state; `every` divides the number of inputs.
    """

    def step(at: Any, x: Array, _: Array) -> Any:
        state, product, log = at
        state, push = jax.linearize(lambda state: move(state, x[0]), state)
        product = jax.vmap(push, in_axes=1, out_axes=1)(product)
        norm = jnp.linalg.norm(product)
        return state, product / norm, log + jnp.log(norm)

    begin, rows = (start, jnp.eye(len(start)), jnp.zeros(())), np.arange(len(inputs))[:, None]
    _, history = networks.fit(step, begin, inputs, rows, observe=lambda at: at[:0:-1], every=every)
    return history


def log_norms(
    config: Config, cell: nn.RNNCellBase, part: slice, forget_biases: tuple[int, ...] = (0,)
) -> list[Float[np.ndarray, "biases seeds evaluations"]]:
    """Compute ln of the spectral norm of a Flax cell's Jacobian, by forget bias and seed.

    Returns:
      The values for the Jacobian of the whole state, and for its rows and columns of `part`.
    """
    shape = config.jacobian_seeds, STEPS_BACK, config.jacobian_inputs
    inputs = sampling.rng(0, "inputs").normal(size=shape).astype(np.float32)
    keys = sampling.keys(range(len(inputs)), "weights")
    carry: Any = cell.initialize_carry(keys[0], inputs[0, 0].shape)  # Zeros for any key.
    start, unravel = ravel_pytree(carry)
    params: Any = jax.vmap(lambda key: cell.init(key, carry, inputs[0, 0])["params"])(keys)

    def one(bias: Array, of_seed: tuple[Any, Array], shared: Any) -> tuple[Array, Array]:
        params, inputs = of_seed
        if "hf" in params:  # An LSTM's forget gate.
            gate = params["hf"]
            params = {**params, "hf": {**gate, "bias": gate["bias"] + bias}}

        def move(state: Array, x: Array) -> Array:
            return ravel_pytree(cell.apply({"params": params}, unravel(state), x)[0])[0]

        return jacobian(move, start, inputs, every=EVALUATE_EVERY)

    log, product = sweep.each(one, np.array(forget_biases), (params, inputs))
    blocks = product, product[..., part, part]
    return [log + np.log(np.linalg.norm(block, 2, axis=(-2, -1))) for block in blocks]


def jacobians(config: Config) -> dict[str, ArrayLike]:
    """Measure every cell with the same seeds and inputs."""
    size, whole = config.jacobian_hidden, slice(None)
    memory = slice(size)  # An LSTM's carry is (c, h).
    lstm, of_memory = log_norms(config, nn.OptimizedLSTMCell(size), memory, FORGET_BIASES)
    rnn, gru = (log_norms(config, cell(size), whole)[0][0] for cell in (nn.SimpleCell, nn.GRUCell))
    return {"rnn": rnn, "gru": gru, "state": lstm, "memory": of_memory}
