"""Arithmetic that stays in range, and handling of weights."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._dtypes import wide_dtype


def rstd(var: Array, epsilon: ArrayLike) -> Array:
    """Compute 1 / sqrt(var + epsilon), whose derivative is right wherever its value is.

    The derivative of rsqrt contains the cube of its value, which overflows float32 beyond 1e13.
    """
    value = jax.lax.stop_gradient(near_rstd(jnp.sqrt(var), epsilon))
    relative = var * value * value + jnp.asarray(epsilon, var.dtype) * value * value
    return value * jax.lax.rsqrt(relative)


def near_rstd(std: Array, epsilon: ArrayLike) -> Array:
    """Estimate 1 / sqrt(std^2 + epsilon) without squares, at most sqrt(2) times too small."""
    return 1 / (std + jnp.sqrt(jnp.asarray(epsilon, std.dtype)))


def power_of_two(x: Array) -> Array:
    """Round to a power of two whose inverse is also finite."""
    info = jnp.finfo(x.dtype)
    within = jax.lax.clamp(4 * info.tiny, x, info.max / 4)
    return jax.lax.reduce_precision(within, exponent_bits=info.nexp, mantissa_bits=0)


def finite(x: Array) -> Array:
    """Replace infinity by the largest finite number of the dtype."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def root(x: Array) -> Array:
    """Compute the square root, with derivative 0 where x is 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def inverse(x: Array) -> Array:
    """Compute 1 / x, and 0 where x is 0."""
    return jnp.where(is_nonzero(x), 1 / jnp.where(is_nonzero(x), x, 1), 0)


def abs_squared(x: Array) -> Array:
    """Compute |x|^2, which is real."""
    return product(x, x)


def product(x: Array, y: Array) -> Array:
    """Compute Re(conj(x) y), which is x y for real x and y."""
    return (jnp.conj(x) * y).real if jnp.iscomplexobj(x) else x * y


def is_nonzero(weights: Array) -> Array:
    """Tell where a weight or count is not 0; NaN counts as nonzero."""
    return weights if weights.dtype == jnp.bool_ else ~(weights <= 0)


def weigh(x: Array, weights: Array | None) -> Array:
    if weights is None:
        return x
    present = jnp.where(is_nonzero(weights), x, 0)
    return present if weights.dtype == jnp.bool_ else present * weights.astype(x.dtype)


def total_weight(weights: Array | None, x: Array, axes: tuple[int, ...]) -> Array:
    """Sum weights per feature, multiplying by the length of axes along which they do not vary."""
    dtype = jnp.finfo(wide_dtype(x.dtype)).dtype
    if weights is None:
        return jnp.asarray(math.prod(x.shape[a] for a in axes), dtype)
    repeated = math.prod(x.shape[a] for a in axes if weights.shape[a] == 1)
    # Counting in float32 stops at 2^24. Below, use floats, to share the collective of x's sums.
    many = not isinstance(x.size, int) or x.size > 2**24
    counted = jnp.int32 if many and weights.dtype == jnp.bool_ else dtype
    total = jnp.sum(weights, axes, keepdims=True, dtype=counted)
    return total.astype(dtype) * repeated


def as_pivot(mean: Array) -> Array:
    """Round to three bits fewer than the dtype has, so that every use sees the same number.

    Otherwise the compiler may contract x - total / n into one multiply-add, which subtracts an
    unrounded pivot; the rounded one that other devices see is then up to 4e-3 off at mean/std 1e5.
    """
    info = jnp.finfo(mean.dtype)
    bits = {"exponent_bits": info.nexp, "mantissa_bits": info.nmant - 3}
    if jnp.iscomplexobj(mean):
        parts = (jax.lax.reduce_precision(part, **bits) for part in (mean.real, mean.imag))
        return jax.lax.complex(*parts)
    return jax.lax.reduce_precision(mean, **bits)


def may_overflow(x: Array) -> bool:
    """Tell whether squares of x, in the dtype of statistics, may overflow or vanish."""
    return jnp.finfo(x.dtype).nexp == jnp.finfo(wide_dtype(x.dtype)).nexp


@jax.custom_batching.custom_vmap
def unvmap_any(predicate: Array) -> Array:
    """Reduce a predicate over a vmapped batch, so that a branch on it stays a branch."""
    return predicate


@unvmap_any.def_vmap
def _unvmap_any_batched(axis_size, in_batched, predicate):
    return unvmap_any(jnp.any(predicate)), False
