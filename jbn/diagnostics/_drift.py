"""How the inputs of a layer change during training."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jbn.diagnostics._checks import (
    as_inexact,
)


class Drift(NamedTuple):
    """How the input distribution of each unit changes during training: means over units, `()`.

    - median: largest |median - first median|.
    - spread: ratio of the largest to the smallest distance between the outer percentiles.
    """

    median: Float[Array, ""]
    spread: Float[Array, ""]


def drift(over_training: Float[ArrayLike, "K Q C"]) -> Drift:
    """Measure internal covariate shift as Ioffe & Szegedy do, by percentiles during training.

    Args:
      over_training: K results of `percentiles`, with Q odd and the median in the middle.

    Returns:
      Drift; spread is inf if the percentiles of a unit ever coincide.

    Raises:
      ValueError: no percentiles, or an even number, which has no median in the middle.
      TypeError: integers.

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, section 4.1, Fig. 1 (b, c).
    """
    remedy = "Stack rows of percentiles(x, (15, 50, 85))."
    values = as_inexact("over_training", over_training, remedy)
    if values.ndim != 3 or values.shape[1] % 2 == 0 or not values.size:
        raise ValueError(
            f"Expected percentiles of shape (K, Q, C) with Q odd, got {values.shape}. {remedy}"
        )
    median, spread = values[:, values.shape[1] // 2], values[:, -1] - values[:, 0]
    return Drift(
        jnp.mean(jnp.max(jnp.abs(median - median[:1]), axis=0)),
        jnp.mean(jnp.max(spread, axis=0) / jnp.min(spread, axis=0)),
    )
