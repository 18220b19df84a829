"""The gap between the statistics of training and of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jbn._arguments import as_scalar, check_epsilon
from jbn.diagnostics._checks import (
    check_count,
    check_momentum,
    precise,
)
from jbn.diagnostics._statistics import Statistics, statistics


class Gap(NamedTuple):
    """How far a layer's running statistics are from the true ones.

    All fields are numbers, `()`, and the worst case over the layer's features.

    - mean: |running mean - true mean| in units of the true standard deviation.
    - std: |log2(running std / true std)|, which is 1 if one is twice the other.
    - noise: the larger of these two, between the batch and the truth if both are given.
    - digits: bits, of float32's 24, that E[x^2] - E[x]^2 would lose: log2(1 + mean^2/var).
    - batches: `effective_batches` of the running statistics.
    - stale: `initial_weight`, the remaining weight of the initial values 0 and 1.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    noise: Float[Array, ""]
    digits: Float[Array, ""]
    batches: Float[Array, ""]
    stale: Float[Array, ""]


def train_eval_gap(
    running: Any,
    batch: Any,
    population: Any | None = None,
    *,
    epsilon: ArrayLike = 1e-5,
    momentum: ArrayLike | None = None,
    count: ArrayLike | None = None,
) -> dict[str, Gap]:
    """Compare running statistics with those that training uses, layer by layer.

    Training normalizes by the batch, evaluation by the running statistics. If `population` is given
    (from `jbn.population`), it is taken as the truth, and the batch is compared with it as well;
    otherwise the batch is taken as the truth.

    Args:
      running: pytree of statistics after training.
      batch: pytree of the same structure, with the statistics of one batch: updated with momentum
        0.
      population: pytree of the same structure, with averages over many batches, or None.
      epsilon: epsilon of the layers, added to every variance.
      momentum: momentum of the layers, in [0, 1); with None, `batches` and `stale` are NaN.
      count: number of batches absorbed, for layers without a count of their own; with None,
        `batches` and `stale` of these are NaN.

    Returns:
      Dict from the name of each layer to its Gap.

    Raises:
      ValueError: different layers or shapes; no statistics at all; epsilon, momentum or count out
        of range.
      TypeError: a momentum or count that is not a number, such as a schedule.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> trained = {"norm": {"mean": jnp.array([1.0]), "var": jnp.array([4.0])}}
      >>> batch = {"norm": {"mean": jnp.array([5.0]), "var": jnp.array([16.0])}}
      >>> gap = diagnostics.train_eval_gap(trained, batch)["norm"]
      >>> round(float(gap.mean), 3), round(float(gap.std), 3)
      (1.0, 1.0)
    """
    check_epsilon(epsilon)
    if momentum is not None:
        check_momentum(momentum, below_one=True)
    if count is not None:
        check_count(count)
    layers = statistics(running)
    batches = _same_layers(layers, statistics(batch), "batch")
    truths = batches
    if population is not None:
        truths = _same_layers(layers, statistics(population), "population")
    gaps = {}
    for name, (mean, var, absorbed) in layers.items():
        true_mean, true_var, _ = truths[name]
        absorbed = count if absorbed is None else absorbed
        here, seen, true = (mean, var), batches[name][:2], (true_mean, true_var)
        shift, scale, noise, lost = _distances(here, seen, true, as_scalar(epsilon, mean))
        effective = stale = _as_float32(np.nan)
        if absorbed is not None and momentum is not None:
            effective = effective_batches(absorbed, momentum)
            stale = initial_weight(absorbed, momentum)
        gaps[name] = Gap(shift, scale, noise, lost, effective, stale)
    return gaps


def effective_batches(count: ArrayLike, momentum: ArrayLike) -> Float[Array, ""]:
    """Compute the effective number of batches in an exponential average.

    (sum w)^2 / sum w^2 over the weights w_i = (1 - momentum) momentum^(count - i) of the batches
    absorbed. It approaches (1 + momentum) / (1 - momentum), which is 199 for .99.

    Args:
      count: number of batches absorbed.
      momentum: weight of the old value, in [0, 1).

    Returns:
      float32; 0 at count 0. Computed in double precision unless an argument is traced.

    Raises:
      ValueError: a known count below 0, or momentum outside [0, 1).
      TypeError: arguments that are not numbers.

    Example:
      >>> from jbn import diagnostics
      >>> [round(float(diagnostics.effective_batches(t, 0.5)), 3) for t in (0, 1, 2, 100)]
      [0.0, 1.0, 1.8, 3.0]

    References:
      Kish, "Survey Sampling", 1965, section 8.2.
    """
    check_count(count)
    check_momentum(momentum, below_one=True)
    m, t = precise(momentum, count)
    kept = m**t
    return _as_float32((1 - kept) * (1 + m) / ((1 + kept) * (1 - m)))


def initial_weight(count: ArrayLike, momentum: ArrayLike) -> Float[Array, ""]:
    """Compute the weight that the initial mean 0 and var 1 still have: momentum^count.

    Running statistics are stale while it is large: at momentum .99 it is .37 after 100 batches.

    Args:
      count: number of batches absorbed.
      momentum: weight of the old value, in [0, 1].

    Returns:
      float32, in [0, 1]. Computed in double precision unless an argument is traced.

    Raises:
      ValueError: a known count below 0, or momentum outside [0, 1].
      TypeError: arguments that are not numbers.

    Example:
      >>> from jbn import diagnostics
      >>> round(float(diagnostics.initial_weight(100, 0.99)), 3)
      0.366
    """
    check_count(count)
    check_momentum(momentum, below_one=False)
    m, t = precise(momentum, count)
    return _as_float32(m**t)


def _as_float32(value: Any) -> Array:
    return value if isinstance(value, jax.Array) else jax.device_put(np.float32(value))


def _same_layers(
    layers: Mapping[str, Any], others: dict[str, Statistics], what: str
) -> dict[str, Statistics]:
    if layers.keys() != others.keys():
        raise ValueError(
            f"Expected `{what}` with the layers {sorted(layers)}, got {sorted(others)}. "
            "Take both from the same model."
        )
    for name, other in others.items():
        if other.mean.shape != layers[name].mean.shape:
            raise ValueError(
                f"Expected `{what}` with shape {layers[name].mean.shape} in layer {name!r}, got "
                f"{other.mean.shape}. Take both from the same model."
            )
    return others


@jax.jit
def _distances(
    here: tuple[Array, Array],
    seen: tuple[Array, Array],
    true: tuple[Array, Array],
    epsilon: ArrayLike,
) -> tuple[Array, Array, Array, Array]:
    """Compute the first four fields of a layer's `Gap`."""
    shift, scale = _distance(here, true, epsilon)
    noise = jnp.maximum(*_distance(seen, true, epsilon))
    mean, var = true
    return shift, scale, noise, jnp.log2(1 + jnp.max(jnp.abs(mean) ** 2 / (var + epsilon)))


def _distance(
    one: tuple[Array, Array], true: tuple[Array, Array], epsilon: ArrayLike
) -> tuple[Array, Array]:
    """Return the worst differences of means, in true stds, and of stds, as |log2| of the ratio."""
    std, true_std = (jnp.sqrt(var + epsilon) for _, var in (one, true))
    shift = jnp.max(jnp.abs(one[0] - true[0]) / true_std)
    return shift, jnp.max(jnp.abs(jnp.log2(std / true_std)))
