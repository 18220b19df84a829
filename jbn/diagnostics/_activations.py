"""Slopes, saturation and dead units of a nonlinearity, and percentiles of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jbn._inputs import describe, describe_result
from jbn._sharding import gathered
from jbn.diagnostics._checks import (
    as_inexact,
    check_batch,
    check_number,
    check_single,
)

Activation = Callable[[Array], Array]


def slopes(x: Float[ArrayLike, "..."], activation: Activation) -> Float[Array, "..."]:
    """Compute |activation'(x)| elementwise.

    Args:
      x: floating, any shape.
      activation: elementwise function. For one that mixes values, such as softmax, slopes of
        single values are not defined.

    Returns:
      Slopes, of x's shape.

    Raises:
      TypeError: integer x; an activation that is not a function or does not return floats.
      ValueError: an activation that changes the shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> diagnostics.slopes(jnp.array([-1.0, 2.0]), jax.nn.relu).tolist()
      [0.0, 1.0]
    """
    x = as_inexact("x", x, "Pass x.astype(jnp.float32), then the activation.")
    if not callable(activation):
        raise TypeError(
            f"Expected `activation` to be a function, got {describe(activation)}. Pass one such as "
            "jax.nn.relu after x."
        )
    y = jax.eval_shape(activation, x)
    if not (hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.inexact)):
        raise TypeError(
            f"Expected an activation that returns floats, got {describe_result(y)}. Without a "
            "derivative there is no slope."
        )
    if y.shape != x.shape:
        raise ValueError(
            f"Expected an elementwise activation, which returns x.shape={x.shape}, got {y.shape}. "
            "Change the shape of x beforehand."
        )
    return jnp.abs(jax.jvp(activation, (x,), (jnp.ones_like(x),))[1])


def saturation(
    x: Float[ArrayLike, "N ..."], activation: Activation, *, threshold: float = 0.01
) -> Float[Array, ""]:
    """Compute the share of values at which the nonlinearity is flat: |activation'(x)| < threshold.

    Args:
      x: inputs of the nonlinearity.
      activation: elementwise function.
      threshold: slope below which the nonlinearity counts as flat, positive.

    Returns:
      Share, in [0, 1].

    Raises:
      ValueError: empty x; a threshold that is not positive or not a single number. See also
        `slopes`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> float(diagnostics.saturation(jnp.array([0.0, 9.0, -9.0, 1.0]), jax.nn.sigmoid))
      0.5
    """
    check_number(
        "threshold",
        threshold,
        np.nextafter(0, 1),
        np.finfo(float).max,
        "positive and finite",
        "No slope is below 0, and a flat one is 0.",
    )
    check_single("threshold", threshold, "Call saturation for each, or compare `slopes` with them.")
    slope = slopes(x, activation)
    check_batch(slope, 0)
    return jnp.mean(slope < threshold)


def dead_units(x: Float[ArrayLike, "N ... C"], activation: Activation) -> Float[Array, ""]:
    """Compute the share of units (last axis) whose slope is 0 for all values of the batch.

    Args:
      x: inputs of the nonlinearity, `(N, ..., C)`.
      activation: elementwise function.

    Returns:
      Share, in [0, 1].

    Raises:
      ValueError: empty x, or x without a batch axis. See also `slopes`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> float(diagnostics.dead_units(jnp.array([[1.0, -1.0], [2.0, -3.0]]), jax.nn.relu))
      0.5
    """
    slope = slopes(x, activation)
    check_batch(slope, 2)
    return jnp.mean(jnp.all(slope == 0, axis=tuple(range(slope.ndim - 1))))


def percentiles(
    x: Float[ArrayLike, "N ... C"], q: Sequence[float] = (15, 50, 85)
) -> Float[Array, "Q C"]:
    """Compute percentiles of each unit (last axis) over the batch, as in Fig. 1 (b, c).

    Args:
      x: `(N, ..., C)`.
      q: Q percentages, each in [0, 100].

    Returns:
      `(Q, C)`.

    Raises:
      ValueError: empty x, or x without a batch axis; a q that is not a list of percentages.
      TypeError: integer x; a q that is not a list of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> diagnostics.percentiles(jnp.array([[0.0], [1.0], [4.0]]), (0, 50, 100)).tolist()
      [[0.0], [1.0], [4.0]]

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, section 4.1.
    """
    remedy = "Pass a list such as (15, 50, 85)."
    x = as_inexact("x", x, "Pass x.astype(jnp.float32).")
    check_batch(x, 2)
    check_number("q", q, 0, 100, "percentages in [0, 100]", remedy, kind="a list of numbers")
    shares = q if isinstance(q, jax.Array) else jax.device_put(np.asarray(q, np.float32))
    if shares.ndim != 1 or not shares.size:
        raise ValueError(f"Expected `q` to be a list of percentages, got {describe(q)}. {remedy}")
    return _percentiles(x, shares.astype(jnp.finfo(x.dtype).dtype))


@jax.jit
def _percentiles(x: Array, shares: Array) -> Array:
    rows = gathered(x, range(x.ndim))  # Percentiles sort; JAX cannot along a sharded axis.
    return jnp.percentile(rows.reshape(-1, x.shape[-1]), shares, axis=0)
