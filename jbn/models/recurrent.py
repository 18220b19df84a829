"""Recurrent networks over sequences: plain, GRU and LSTM, their inputs normalized or not."""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbn.models.units import (
    Activation,
    Initializer,
    Norm,
    Placement,
    check_call,
    make_norm,
    unit,
)

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class Recurrent(nn.Module):
    """One recurrent layer, and a dense one on its last output.

    What comes from the input, W x_t, is normalized over examples and time at once, or, placed
    after the nonlinearity, the states that the output reads; what comes from the past, U h, is
    not: its statistics differ from step to step.

    Attributes:
      cell: "rnn", h' = activation(W x + U h + b); "gru"; "lstm".
      hidden: H, width of the state.
      outputs: number of outputs.
      norm, placement: "before" normalizes W x, see `jbn.models.units.unit`, and its bias is then
        that of all gates; "after" the states.
      activation: the nonlinearity of "rnn", and of the candidates of the others.
      forget_bias: added to the LSTM's forget gate, and to the GRU's update gate, which keeps.
      kernel_init, recurrent_init: initializers of W and U.

    The states, `(N, T, H)`, are sown in `intermediates` as `states`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.models import LSTM
      >>> model = LSTM(hidden=8, outputs=1)
      >>> x = jnp.ones((3, 5, 2))
      >>> variables = model.init(jax.random.key(0), x, training=False)
      >>> model.apply(variables, x, training=False).shape
      (3, 1)

    References:
      Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997. Cho et al., "Learning
      Phrase Representations", 2014. Jozefowicz et al., "An Empirical Exploration of Recurrent
      Network Architectures", 2015 (forget bias). Laurent et al., "Batch Normalized Recurrent Neural
      Networks", 2016, section 4 (normalize W x alone).
    """

    cell: Literal["rnn", "gru", "lstm"] = "rnn"
    hidden: int = 100
    outputs: int = 10
    norm: Norm = None
    placement: Placement = "before"
    activation: Activation = nn.tanh
    forget_bias: float = 0.0
    kernel_init: Initializer = nn.initializers.xavier_normal()
    recurrent_init: Initializer = nn.initializers.orthogonal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T F"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; `mask` tells which sequences count for the statistics."""
        if self.cell not in GATES:
            raise ValueError(f"Expected `cell` 'rnn', 'gru' or 'lstm', got {self.cell!r}.")
        x, mask = check_call(x, "N T F", training=training, mask=mask)
        size, gates = self.hidden, GATES[self.cell]
        sequences = None if mask is None else mask[:, None, None]
        inputs = unit(
            functools.partial(nn.Dense, gates * size, kernel_init=self.kernel_init),
            x,
            training=training,
            name="input",
            norm=self.norm if self.placement == "before" else None,
            norm_name="input_norm",
            placement=self.placement,
            mask=sequences,
        )
        kernels = [
            self.param(f"recurrent_{i}", self.recurrent_init, (size, size)) for i in range(gates)
        ]
        kernel = jnp.concatenate(kernels, -1)
        act, bias = self.activation, self.forget_bias

        def rnn(h: Array, u: Array) -> tuple[Array, Array]:
            h = act(u + h @ kernel)
            return h, h

        def gru(h: Array, u: Array) -> tuple[Array, Array]:
            past = h @ kernel[:, : 2 * size]
            keep = nn.sigmoid(u[:, :size] + past[:, :size] + bias)
            reset = nn.sigmoid(u[:, size : 2 * size] + past[:, size:])
            candidate = act(u[:, 2 * size :] + (reset * h) @ kernel[:, 2 * size :])
            h = keep * h + (1 - keep) * candidate
            return h, h

        def lstm(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = carry
            i, f, g, o = jnp.split(u + h @ kernel, 4, axis=-1)
            c = nn.sigmoid(f + bias) * c + nn.sigmoid(i) * act(g)
            h = nn.sigmoid(o) * act(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], size), inputs.dtype)
        start = (zeros, zeros) if self.cell == "lstm" else zeros
        step: Any = {"rnn": rnn, "gru": gru, "lstm": lstm}[self.cell]
        _, states = jax.lax.scan(step, start, jnp.swapaxes(inputs, 0, 1))
        states = jnp.swapaxes(states, 0, 1)
        self.sow("intermediates", "states", states)
        norm = make_norm(self.norm) if self.placement == "after" else None
        if norm is not None:
            masked = {} if mask is None else {"mask": sequences}
            states = norm(use_running_average=not training, name="state_norm")(states, **masked)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init, name="output")(states[:, -1])


RNN = functools.partial(Recurrent, cell="rnn")
GRU = functools.partial(Recurrent, cell="gru")
LSTM = functools.partial(Recurrent, cell="lstm", forget_bias=1.0)
