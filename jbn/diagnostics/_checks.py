"""Argument checks of `jbn.diagnostics`: arrays, numbers in range, losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jbn._inputs import as_array, describe, describe_result


def precise(*numbers: ArrayLike) -> list[Any]:
    """Return numbers in double precision, unless one is traced.

    In float32, 1 - .999999 is off by 5 %.
    """
    if any(isinstance(number, jax.core.Tracer) for number in numbers):
        return [jnp.asarray(number, jnp.float32) for number in numbers]
    return [np.asarray(number, np.float64) for number in numbers]


def check_momentum(momentum: Any, *, below_one: bool) -> None:
    """Reject a known momentum outside [0, 1], or 1 itself with `below_one`."""
    remedy = (
        "It is the weight of the old value; for a schedule, pass its decay. `count` comes first."
    )
    most = np.nextafter(1, 0) if below_one else 1
    check_number("momentum", momentum, 0, most, "in [0, 1)" if below_one else "in [0, 1]", remedy)


def check_count(count: Any) -> None:
    """Reject a known count below 0."""
    check_number("count", count, 0, np.inf, "0 or more", "Pass the number of batches absorbed.")


def check_number(
    name: str,
    value: Any,
    least: float,
    most: float,
    interval: str,
    remedy: str,
    *,
    kind: str = "a number",
) -> None:
    """Reject a value, or an array with one, that is not a number or known to be out of range."""
    if any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(value)):
        return
    try:
        array = np.asarray(value)
    except ValueError:  # Nested lists of different lengths.
        array = np.asarray(None)
    if not jnp.issubdtype(array.dtype, jnp.integer) | jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"Expected `{name}` to be {kind}, got {describe(value)}. {remedy}")
    if not np.all((array >= least) & (array <= most)):
        raise ValueError(f"Expected `{name}` to be {interval}, got {value}. {remedy}")


def check_single(name: str, value: Any, remedy: str) -> None:
    """Reject several numbers where one is expected."""
    if isinstance(value, list | tuple) or np.ndim(value):
        raise ValueError(f"Expected `{name}` to be one number, got {describe(value)}. {remedy}")


def as_inexact(name: str, value: Any, remedy: str) -> Array:
    """Return the value as a floating or complex array."""
    values = as_array(name, value, remedy)
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        raise TypeError(f"Expected `{name}` to be floating, got {values.dtype}. {remedy}")
    return values


def check_batch(x: Array, least_axes: int) -> None:
    """Reject an x without values, or with too few axes."""
    if x.ndim < least_axes or not x.size:
        raise ValueError(
            f"Expected x to be non-empty{', (N, ..., C)' if least_axes else ''}, got shape "
            f"{x.shape}. Pass a batch, or x[None] for one example."
        )


def check_loss(loss: Any, params: Any) -> None:
    """Reject a loss or params that cannot be differentiated, before JAX does."""
    if not callable(loss):
        raise TypeError(
            f"Expected `loss` to be a function of params, got {describe(loss)}. Pass it first."
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        as_inexact(
            f"params, {jax.tree_util.keystr(path)}",
            leaf,
            "Let the loss close over values that are not trained.",
        )
    value = jax.eval_shape(loss, params)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"Expected a loss that returns one number, got {describe_result(value)}. Take the mean "
            "over the batch."
        )
