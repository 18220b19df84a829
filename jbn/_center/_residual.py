"""What stands for the deviation of x from its pivot, and is kept for the backward pass."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array


def deviation_of(residual: Array, pivot: Array, per_unit: Array) -> Array:
    """Deviation from the pivot, times per_unit: the residual, or, for x in half precision, made
    anew from x.

    The deviation of a float16 or bfloat16 x is float32 and would take twice x's memory.
    """
    if residual.dtype == pivot.dtype:
        return residual
    return (residual.astype(pivot.dtype) - pivot) * per_unit.astype(pivot.dtype)


def residual_of(x: Array, pivot: Array, per_unit: Array) -> Array:
    """Make what stands for the deviation, see `deviation_of`."""
    return (x - pivot) * per_unit.astype(pivot.dtype) if x.dtype == pivot.dtype else x


def from_pivot(
    pivot: Array, empty: Array, residual: Array, old_pivot: Array, per_unit: Array
) -> tuple[Array, Array]:
    """Take the residual from another pivot where nothing has weight, so that the old one is 0."""
    if residual.dtype == pivot.dtype:
        residual = jnp.where(empty, residual - pivot * per_unit.astype(pivot.dtype), residual)
    return residual, jnp.where(empty, pivot, old_pivot)


# Under `checkpoint` what is kept for the backward pass are the arguments, which are there anyway.
@functools.partial(jax.checkpoint, prevent_cse=False)
def within_range(residual: Array, pivot: Array, per_unit: Array, rstd: Array) -> Array:
    """Put the pivot in place of what is so far off, or NaN, that y is not finite.

    y is computed where x is masked, too, and the gradient of the vectors would be NaN.
    """
    deviation = deviation_of(residual, pivot, per_unit)
    within = jnp.isfinite(deviation * (rstd / per_unit).astype(pivot.dtype))
    nearby = 0 if residual.dtype == pivot.dtype else pivot.astype(residual.dtype)
    return jnp.where(within, residual, nearby)


@functools.partial(jax.checkpoint, prevent_cse=False)
def scale_and_shift(residual: Array, pivot: Array, per_unit: Array, a: Array, b: Array) -> Array:
    return deviation_of(residual, pivot, per_unit) * a + b
