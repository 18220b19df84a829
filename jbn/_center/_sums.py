"""Sums over this device's part of the batch, about a pivot."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbn._center._arithmetic import (
    abs_squared,
    as_pivot,
    finite,
    inverse,
    is_nonzero,
    may_overflow,
    power_of_two,
    product,
    unvmap_any,
    weigh,
)
from jbn._center._residual import residual_of
from jbn._dtypes import wide_dtype
from jbn._sharding import is_explicitly_sharded, like_reduced, varying_like

# Sums about 0 are kept while mean^2 <= 2 var: the error of the normalized output is then at most
# 3e-6; it is 4e-6 at mean = 2 std and grows with the square.
WELL_CONDITIONED = 2.0


# From this many values on, reading x once less is worth an additional small kernel.
SAMPLE_FROM = 1024


class Part(NamedTuple):
    """Moments of this device's part about its pivot, and the residual (see `deviation_of`)."""

    residual: Array
    pivot: Array
    per_unit: Array
    remainder: Array
    std: Array
    var: Array


def local_part(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> Part:
    """Compute the moments of this device's part, which has n values, or weights whose sum is n.

    There are three ways to read x only once, since platforms differ in what is cheap:
    - CPU: sums about 0. XLA runs reductions of x itself as library kernels, 2 to 3 times as fast,
      but would write `x - pivot` to memory first. A branch on data is free.
    - TPU: sums about the guess. XLA computes them inside the convolution that makes x, as long as
      the pivot does not come from x. A branch is free.
    - GPU: sums about a median of a few rows of x. A branch waits for the host here, which takes
      longer than a second pass.
    """
    return jax.lax.platform_dependent(
        x,
        weights,
        n,
        epsilon,
        guess,
        cpu=functools.partial(_about_zero, axes=axes),
        tpu=functools.partial(about_guess, axes=axes),
        default=functools.partial(_about_sample, axes=axes),
    )


def _about_zero(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> Part:
    """Take sums about 0, and again about the mean if any feature would lose precision."""
    wide = x.astype(wide_dtype(x.dtype))
    mean, var = _mean_and_var(wide, weights, n, axes)
    in_range, calm = _trust(mean, var, epsilon)

    def in_range_again(x: Array) -> tuple[Array, Array | None]:
        return _pivot_and_unit(x, weights, n, epsilon, axes)

    def about_mean(x: Array, *_: Array) -> Part:
        pivot, unit = as_pivot(mean), None
        if may_overflow(x):  # Return only vectors from these branches: XLA would copy an array.
            shifts = unvmap_any(jnp.any(~in_range))
            plain = pivot, jnp.ones_like(var)
            pivot, unit = jax.lax.cond(shifts, in_range_again, lambda _: plain, x)
        return _about(pivot, unit, x, weights, n, axes)

    # The other branch only returns its arguments: otherwise XLA would copy x in it.
    about_zero = Part(x, jnp.zeros_like(mean), jnp.ones_like(var), mean, jnp.sqrt(var), var)
    shifts = unvmap_any(jnp.any(~(calm & in_range)))
    return jax.lax.cond(shifts, about_mean, lambda *part: Part(*part), *about_zero)


def about_guess(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> Part:
    """Take sums about a guess, and again about the mean if any feature would lose precision.

    The branches return only vectors, so that x is not kept for them.
    """
    if guess is None:
        return _about_mean(x, weights, n, epsilon, axes=axes)
    pivot = guessed_pivot(guess, x, axes)
    near = _about(pivot, None, x, weights, n, axes)
    if weights is not None:  # After the sums, so that one collective adds up these and n.
        near = near._replace(pivot=jnp.where(is_nonzero(n), pivot, 0))
    exact = is_exact(near.remainder, near.var, epsilon)

    def again(x: Array) -> Array:
        return stacked(_about_mean(x, weights, n, epsilon, axes=axes)[1:])

    shifts = unvmap_any(jnp.any(~exact))
    others = jax.lax.cond(shifts, again, lambda _: not_needed(near[1:]), x)
    pivot, per_unit, *moments = chosen(shifts, others, near[1:])
    return Part(residual_of(x, pivot, per_unit), pivot, per_unit, *moments)


def stacked(vectors: Sequence[Array]) -> Array:
    """Stack vectors into one array, in the dtype of the first, which is the pivot.

    A branch then returns a single array, and vectors that already exist are `chosen` after it: on a
    TPU, each array that a branch returns costs a kernel.
    """
    return jnp.stack([v.astype(vectors[0].dtype) for v in vectors])


def not_needed(vectors: Sequence[Array]) -> Array:
    """Make zeros to return from a branch in place of stacked vectors."""
    array = stacked(vectors)
    return varying_like(jnp.zeros_like(array), array)


def chosen(shifts: Array, others: Array, vectors: Sequence[Array]) -> list[Array]:
    """Take the others, which are stacked, if `shifts`, else the vectors."""
    return [
        jnp.where(shifts, other if jnp.iscomplexobj(vector) else other.real, vector)
        for other, vector in zip(others, vectors, strict=True)
    ]


def guessed_pivot(guess: Array, x: Array, axes: tuple[int, ...]) -> Array:
    guess = guess.astype(wide_dtype(x.dtype))
    return like_reduced(as_pivot(jnp.where(jnp.isfinite(guess), guess, 0)), x, axes)


def _about_sample(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> Part:
    """Take sums about Tukey's ninther, a median of nine values of each feature.

    Up to three outliers among the nine do not make it an outlier. If it is one, at a distance d, at
    least four values of the batch are that far off, so d^2 / var is at most N / 4, and the error of
    var at most N / 4 rounding errors.

    References:
      Tukey, "The Ninther, a Technique for Low-Effort Robust (Resistant) Location in Large
    Samples", 1978.
    """
    sample = _sample(x, weights, axes)
    if sample is None:
        return _about_mean(x, weights, n, epsilon, axes=axes)
    three = _median(*jnp.split(sample, 3))
    pivot = as_pivot(_median(*jnp.split(three, 3))[0])
    if weights is not None:  # Masked values may be NaN.
        pivot, sample = (
            jnp.where(is_nonzero(n), pivot, 0),
            jnp.where(is_nonzero(n)[None], sample, 0),
        )
    if not may_overflow(x):
        return _about(pivot, None, x, weights, n, axes)
    unit = _unit(sample, None, epsilon, (0,))[0]
    # Other values may be far from these nine. In this unit, squares that matter beside those of the
    # nine do not underflow, and none overflows up to 2^115 / N, about 1e27, times the largest
    # deviation of the nine. If all nine are equal, sqrt(epsilon) is used for this deviation.
    near = jnp.max(jnp.abs(sample - pivot[None]), 0)
    near = jnp.where(near > 0, near, jnp.sqrt(epsilon))
    size = math.prod(x.shape[a] for a in axes)
    sum_unit = power_of_two(near * (2.0**51 / math.sqrt(size)))
    return _about(pivot, unit, x, weights, n, axes, sum_unit)


def _sample(x: Array, weights: Array | None, axes: tuple[int, ...]) -> Array | None:
    """Take nine values of each feature from all over the batch, stacked.

    Return None if the batch is small, or if its weights are not one boolean mask for all features:
    a value of small weight may be far from all others. One gather takes them, which costs one
    collective if x is sharded; a slice would cost several.
    """
    sizes = [x.shape[a] for a in axes]
    is_known = all(isinstance(size, int) for size in sizes)
    if not is_known or math.prod(sizes) < SAMPLE_FROM or is_explicitly_sharded(x, axes):
        return None
    # Spread by the golden ratio, so that the places share no period with the batch.
    places = np.array([int((i + i * 0.618 % 1) / 9 * math.prod(sizes)) for i in range(9)])
    where = np.unravel_index(places, sizes)
    if weights is not None:
        features = [a for a in range(x.ndim) if a not in axes]
        if weights.dtype != jnp.bool_ or any(weights.shape[a] != 1 for a in features):
            return None
        where = jnp.unravel_index(_next(weights, places, sizes, features), sizes)
    index: list[Any] = [slice(None)] * x.ndim
    for axis, positions in zip(axes, where, strict=True):
        index[axis] = positions
    # NumPy's rule: the new axis replaces the indexed ones if these are adjacent, else it is first.
    at = axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0
    sample = jnp.moveaxis(x[tuple(index)], at, 0).astype(wide_dtype(x.dtype))
    return jnp.expand_dims(sample, [a + 1 for a in axes])


def _next(mask: Array, places: np.ndarray, sizes: list[int], features: list[int]) -> Array:
    """Find, for each place, the next one that is not masked, or any if all are."""
    size = math.prod(sizes)
    mask = jnp.broadcast_to(jnp.squeeze(mask, features), sizes).reshape(size)
    ahead = (jnp.arange(size)[None] - places[:, None]) % size
    return (jnp.min(jnp.where(mask[None], ahead, size), 1) + places) % size


def _median(a: Array, b: Array, c: Array) -> Array:
    if jnp.iscomplexobj(a):
        parts = ([v.real for v in (a, b, c)], [v.imag for v in (a, b, c)])
        return jax.lax.complex(*(_median(*part) for part in parts))
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


# Traced once for all the paths that fall back to it.
@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _about_mean(
    x: Array, weights: Array | None, n: Array, epsilon: Array, axes: tuple[int, ...]
) -> Part:
    """Take sums about the mean: two passes over x."""
    return _about(*_pivot_and_unit(x, weights, n, epsilon, axes), x, weights, n, axes)


def _pivot_and_unit(
    x: Array, weights: Array | None, n: Array, epsilon: Array, axes: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """Compute the mean as the pivot, and a unit in which no square overflows, None for 1."""
    wide = x.astype(wide_dtype(x.dtype))
    # Divided before the sum, which may overflow where the mean does not.
    part = 1 / n if weights is None else inverse(n)
    mean = jnp.sum(weigh(wide, weights) * part.astype(wide.dtype), axes, keepdims=True)
    unit = _unit(wide, weights, epsilon, axes) if may_overflow(x) else None
    return as_pivot(mean), unit


def _unit(x: Array, weights: Array | None, epsilon: Array, axes: tuple[int, ...]) -> Array:
    """Choose a power of two as the unit that keeps squares of x in range; 1 if they are anyway."""
    present = jnp.abs(x) if weights is None else jnp.where(is_nonzero(weights), jnp.abs(x), 0)
    size = jnp.maximum(jnp.max(present, axes, keepdims=True), jnp.sqrt(epsilon))
    info = jnp.finfo(size.dtype)
    return power_of_two(size / jax.lax.clamp(info.tiny**0.25, size, info.max**0.25))


def _about(
    pivot: Array,
    unit: Array | None,
    x: Array,
    weights: Array | None,
    n: Array,
    axes: tuple[int, ...],
    sum_unit: Array | None = None,
) -> Part:
    """Compute moments about a pivot in a unit, None for 1; sums may have a unit of their own."""
    sum_unit = unit if sum_unit is None else sum_unit
    deviation = x.astype(pivot.dtype) - pivot
    per_unit = jnp.ones_like(pivot.real) if unit is None else 1 / unit
    residual = deviation if unit is None else deviation * per_unit.astype(pivot.dtype)
    summand = residual
    if sum_unit is not None and sum_unit is not unit:
        summand = deviation * (1 / sum_unit).astype(pivot.dtype)
    mean, var = _mean_and_var(summand, weights, n, axes)
    std = jnp.sqrt(var)
    if sum_unit is not None:
        mean, std = mean * sum_unit.astype(pivot.dtype), std * sum_unit
        var = finite(var * sum_unit * sum_unit)
        # In a unit above 1, keep std above rounding errors; otherwise y would consist of them.
        std = jnp.maximum(std, 2.0**-34 * jnp.abs(pivot) * (1 - per_unit))
    return Part(
        residual=residual if x.dtype == pivot.dtype else x,
        pivot=pivot,
        per_unit=per_unit,
        remainder=mean,
        std=std,
        var=var,
    )


def _mean_and_var(
    x: Array, weights: Array | None, n: Array, axes: tuple[int, ...]
) -> tuple[Array, Array]:
    """Compute mean and var by sums about 0."""
    weighed = weigh(x, weights)
    mean = _mean(weighed, weights, n, axes)
    # `where` before the product: masked values may be NaN.
    present = x if weights is None else jnp.where(is_nonzero(weights), x, 0)
    second = _mean(product(present, weighed), weights, n, axes)
    return mean, jnp.maximum(second - abs_squared(mean), 0)


def _mean(weighed: Array, weights: Array | None, n: Array, axes: tuple[int, ...]) -> Array:
    n = n if weights is None else jnp.where(is_nonzero(n), n, 1)
    return jnp.sum(weighed, axes, keepdims=True) / n.astype(weighed.dtype)


def is_exact(mean: Array, var: Array, epsilon: Array) -> Array:
    """Tell whether sums about some pivot give var without cancellation, overflow or underflow."""
    in_range, calm = _trust(mean, var, epsilon)
    return in_range & calm


def _trust(mean: Array, var: Array, epsilon: Array) -> tuple[Array, Array]:
    """Tell whether squares in sums about some pivot are in range, and whether var is exact."""
    squared = abs_squared(mean)
    second = var + squared
    limits = jnp.finfo(second.dtype)
    # Where squares of x underflow, nothing is known about its deviation.
    calm = squared <= WELL_CONDITIONED * var
    calm &= (second > limits.tiny * 2**24) | (mean == 0)
    # Otherwise squares of x overflow, or underflow while epsilon is as small as they are.
    in_range = (second < limits.max**0.84) & (second + epsilon > limits.tiny**0.5)
    return in_range, calm
