"""The residual: it stands for x's deviation from the pivot, and is kept for the backward pass."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array


def deviation_of(residual: Array, pivot: Array, per_unit: Array) -> Array:
    """Return the deviation from the pivot, times per_unit.

    This is the residual itself, unless x is in half precision. Then the residual is x and the
    deviation is recomputed, since it is float32 and would take twice x's memory.
    """
    if residual.dtype == pivot.dtype:
        return residual
    return (residual.astype(pivot.dtype) - pivot) * per_unit.astype(pivot.dtype)


def residual_of(x: Array, pivot: Array, per_unit: Array) -> Array:
    """Compute the residual, see `deviation_of`."""
    return (x - pivot) * per_unit.astype(pivot.dtype) if x.dtype == pivot.dtype else x


def from_pivot(
    pivot: Array, empty: Array, residual: Array, old_pivot: Array, per_unit: Array
) -> tuple[Array, Array]:
    """Move the residual to another pivot where nothing has weight, and the old pivot is thus 0."""
    if residual.dtype == pivot.dtype:
        residual = jnp.where(empty, residual - pivot * per_unit.astype(pivot.dtype), residual)
    return residual, jnp.where(empty, pivot, old_pivot)


# Under `checkpoint`, the backward pass keeps only the arguments, which are in memory anyway.
@functools.partial(jax.checkpoint, prevent_cse=False)
def within_range(residual: Array, pivot: Array, per_unit: Array, rstd: Array) -> Array:
    """Replace values by the pivot where they are NaN, or so far off that y is not finite.

    y is also computed where x is masked, and would make the gradients of the vectors NaN.
    """
    deviation = deviation_of(residual, pivot, per_unit)
    within = jnp.isfinite(deviation * (rstd / per_unit).astype(pivot.dtype))
    nearby = 0 if residual.dtype == pivot.dtype else pivot.astype(residual.dtype)
    return jnp.where(within, residual, nearby)


@functools.partial(jax.checkpoint, prevent_cse=False)
def scale_and_shift(residual: Array, pivot: Array, per_unit: Array, a: Array, b: Array) -> Array:
    return deviation_of(residual, pivot, per_unit) * a + b
