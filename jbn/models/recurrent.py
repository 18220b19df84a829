"""Recurrent networks over sequences: plain, GRU and LSTM, with or without normalized inputs."""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jbn._arguments import check_size
from jbn._dtypes import wide_dtype
from jbn.models.attributes import check_choice, check_function, check_shared
from jbn.models.units import (
    Activation,
    Initializer,
    Norm,
    Placement,
    check_call,
    logits,
    normalize,
    unit,
)

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class Recurrent(nn.Module):
    """A recurrent layer, and a dense layer on its last output.

    The normalization is applied to the input term W x_t, over examples and time jointly, or with
    placement "after" to the states that the output reads. The recurrent term U h is not normalized,
    since its statistics differ from step to step.

    Attributes:
      cell: "rnn", h' = activation(W x + U h + b); "gru"; "lstm".
      hidden: H, width of the state.
      outputs: number of outputs.
      norm, placement: "before" normalizes W x, and the norm's bias is then that of all gates;
        "after" normalizes the states. See `jbn.models.units.unit`.
      activation: the nonlinearity of "rnn", and of the candidate states of the others.
      forget_bias: added to the LSTM's forget gate, or to the GRU's update gate, which likewise
        keeps the old state.
      kernel_init, recurrent_init: initializers of W and U.
      use_bias: use a bias in the gates; None omits it where the normalization cancels it.
      dtype: dtype of the products W x and U h and of the returned states, such as jnp.bfloat16;
        None promotes as Flax does. Gates, the carried state, the last layer and all statistics use
        at least float32.
      param_dtype: dtype of kernels and biases; parameters of normalizations are float32.

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
    use_bias: bool | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Check the attributes."""
        check_shared(self)
        check_choice("cell", self.cell, tuple(GATES))
        check_function("activation", self.activation, "jax.nn.tanh", optional=False)
        check_size("hidden", self.hidden, "Pass the width of the state.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T F"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; `mask` tells which sequences count for the statistics."""
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
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        kernels = [
            self.param(f"recurrent_{i}", self._recurrent_init, (size, size), self.param_dtype)
            for i in range(gates)
        ]
        kernel = jnp.concatenate(kernels, -1)
        inputs, kernel = promote_dtype(inputs, kernel, dtype=self.dtype)
        act, bias = self.activation, self.forget_bias
        # Products are in `dtype`, but values accumulated over time are not rounded to it at each
        # step: in bfloat16, adding 1 to a cell of 256 would not change it.
        dtype, wide = inputs.dtype, wide_dtype(inputs.dtype)

        def times(h: Array, kernel: Array) -> Array:
            return (h.astype(dtype) @ kernel).astype(wide)

        def rnn(h: Array, u: Array) -> tuple[Array, Array]:
            h = act(u + times(h, kernel))
            return h, h

        def gru(h: Array, u: Array) -> tuple[Array, Array]:
            past = times(h, kernel[:, : 2 * size])
            keep = nn.sigmoid(u[:, :size] + past[:, :size] + bias)
            reset = nn.sigmoid(u[:, size : 2 * size] + past[:, size:])
            candidate = act(u[:, 2 * size :] + times(reset * h, kernel[:, 2 * size :]))
            h = keep * h + (1 - keep) * candidate
            return h, h

        def lstm(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = carry
            i, f, g, o = jnp.split(u + times(h, kernel), 4, axis=-1)
            c = nn.sigmoid(f + bias) * c + nn.sigmoid(i) * act(g)
            h = nn.sigmoid(o) * act(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], size), wide)
        start = (zeros, zeros) if self.cell == "lstm" else zeros
        cell: Any = {"rnn": rnn, "gru": gru, "lstm": lstm}[self.cell]

        def step(carry: Any, u: Array) -> tuple[Any, Array]:
            carry, h = cell(carry, u.astype(wide))
            return carry, h.astype(dtype)

        _, states = jax.lax.scan(step, start, jnp.swapaxes(inputs, 0, 1))
        states = jnp.swapaxes(states, 0, 1)
        self.sow("intermediates", "states", states)
        if self.placement == "after":
            states = normalize(
                states,
                self.norm,
                training=training,
                name="state_norm",
                mask=sequences,
                dtype=self.dtype,
            )
        return logits(
            states[:, -1],
            self.outputs,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    @nn.nowrap
    def _recurrent_init(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        """Draw in at least float32: orthogonal kernels need a QR, which half precision lacks."""
        return self.recurrent_init(key, shape, wide_dtype(dtype)).astype(dtype)


class RNN(Recurrent):
    """A plain recurrent network, h' = tanh(W x + U h + b), and a dense layer on its last state.

    With F features and H hidden units: F H + H^2 + H parameters, plus the last layer's. Attributes
    are those of `Recurrent`.

    Example:
      >>> from jbn.models import RNN
      >>> RNN(hidden=8, norm="batch").cell
      'rnn'

    References:
      Elman, "Finding Structure in Time", 1990.
    """


class GRU(Recurrent):
    """A layer of gated recurrent units, and a dense layer on its last state.

    With F features and H hidden units: 3 (F H + H^2 + H) parameters, plus the last layer's.
    Attributes are those of `Recurrent`.

    Example:
      >>> from jbn.models import GRU
      >>> GRU(hidden=8, norm="batch").cell
      'gru'

    References:
      Cho et al., "Learning Phrase Representations", 2014.
    """

    cell: Literal["rnn", "gru", "lstm"] = "gru"


class LSTM(Recurrent):
    """A long short-term memory with a forget bias of 1, and a dense layer on its last state.

    With F features and H hidden units: 4 (F H + H^2 + H) parameters, plus the last layer's.
    Attributes are those of `Recurrent`.

    Example:
      >>> from jbn.models import LSTM
      >>> model = LSTM(hidden=8, norm="batch")
      >>> model.cell, model.forget_bias
      ('lstm', 1.0)

    References:
      Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997. Jozefowicz et al., "An Empirical
      Exploration of Recurrent Network Architectures", 2015 (forget bias).
    """

    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    forget_bias: float = 1.0
