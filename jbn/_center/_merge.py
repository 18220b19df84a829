"""Merging the moments of parts of a batch, from devices or one after another."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jbn._center._arithmetic import (
    abs_squared,
    as_pivot,
    finite,
    inverse,
    is_nonzero,
    power_of_two,
    root,
)
from jbn._collectives import Pool
from jbn._types import Moments, WeightedMoments

# Gathering the moments of D devices is O(D*C). Beyond this D, two sums of O(C) replace it.
GATHER_LIMIT = 64


class Pooled(NamedTuple):
    """Moments of several parts about one pivot. The total weight is count_unit * relative_count."""

    pivot: Array
    remainder: Array
    std: Array
    var: Array
    count_unit: Array
    relative_count: Array
    effective_count: Array | None

    @property
    def total(self) -> Array:
        """The total weight, at most the largest number of its dtype."""
        return finite(self.count_unit * self.relative_count)

    @property
    def moments(self) -> Moments | WeightedMoments:
        """Moments of the whole."""
        return as_moments(self.pivot + self.remainder, self.var, self.total, self.effective_count)


def pooled(
    pool: Pool,
    pivot: Array,
    remainder: Array,
    std: Array,
    count: Array,
    effective_count: Array | None = None,
    *,
    equal: bool = False,
) -> Pooled:
    """Merge the parts of all devices, with the same result on each.

    `equal` means that counts are known to be the same everywhere, and need not be communicated;
    `effective_count` is communicated if weights are float.
    """
    together = _by_gather if pool.size <= GATHER_LIMIT else _by_sums
    return together(pool, pivot, remainder, std, count, effective_count, equal)


def _by_gather(pool, pivot, remainder, std, count, effective_count, equal) -> Pooled:
    parts = [pivot, remainder, std]
    parts += [] if equal else [count]
    parts += [] if effective_count is None else [effective_count]
    gathered = pool.gather(jnp.stack([part.astype(pivot.dtype) for part in parts]))
    gathered = [gathered[:, i] for i in range(len(parts))]
    pivots, remainders, stds = gathered[0], gathered[1], gathered[2].real
    counts = jnp.broadcast_to(count[None], stds.shape) if equal else gathered[3].real
    effectives = None if effective_count is None else gathered[-1].real
    members = pool.members()
    if members is not None:
        counts = jnp.where(members.reshape(-1, *(1,) * count.ndim), counts, 0)
    return merge(pivots, remainders, stds, counts, effectives, squared=False)


def _by_sums(pool, pivot, remainder, std, count, effective_count, equal) -> Pooled:
    """Merge by two sums of O(C): for a shared pivot near the mean, then for moments about it."""
    real, dtype = std.dtype, pivot.dtype
    devices = 2.0 ** math.ceil(math.log2(pool.size))  # A power of two: division by it is exact.
    has = is_nonzero(count).astype(real)
    size = jnp.abs(pivot) / devices + jnp.abs(remainder) / devices + std / devices
    near = (pivot + remainder) / devices
    rows = [has * near, has * size, has] + ([] if equal else [count / devices])
    near, size, present, *total = pool.sum(jnp.stack([row.astype(dtype) for row in rows]))
    present = jnp.maximum(present.real, 1)
    shared = as_pivot(near * (devices / present).astype(dtype))
    unit = power_of_two(size.real * (devices / present))
    relative_count = total[0].real if total else count / devices * present
    share = (count / devices) / jnp.where(is_nonzero(relative_count), relative_count, 1)
    delta = ((pivot - shared) + remainder) / unit.astype(dtype)
    rows = [share * delta, share * (jnp.square(std / unit) + abs_squared(delta))]
    if effective_count is not None:
        rows += [share * share / jnp.where(is_nonzero(effective_count), effective_count, 1)]
    first, second, *squares = pool.sum(jnp.stack([row.astype(dtype) for row in rows]))
    var = jnp.maximum(second.real - abs_squared(first), 0)
    effective = inverse(squares[0].real) if squares else None
    return Pooled(
        shared,
        first * unit.astype(dtype),
        root(var) * unit,
        finite(var * unit * unit),
        jnp.full_like(relative_count, devices),
        relative_count,
        effective,
    )


def merge(
    pivot: Array,
    remainder: Array,
    spread: Array,
    count: Array,
    effective_count: Array | None,
    *,
    squared: bool,
) -> Pooled:
    """Pool parts, stacked along the first axis, about the pivot of the first that is not empty.

    `spread` is their standard deviation or, if `squared`, their variance. The result can be
    differentiated with respect to the variance, but the variance may overflow.
    """
    has = is_nonzero(count)
    size = jnp.abs(pivot) + jnp.abs(remainder) + (jnp.sqrt(spread) if squared else spread)
    # The unit of squares. Its inverse square must be finite, so that 0 times that is 0.
    largest = jnp.maximum(jnp.max(jnp.where(has, size, 0), 0), jnp.finfo(spread.dtype).tiny ** 0.5)
    unit = jax.lax.stop_gradient(power_of_two(largest))
    var = spread / unit[None] / unit[None] if squared else jnp.square(spread / unit[None])
    wide = unit.astype(pivot.dtype)
    pivot, remainder = (jnp.where(has, v, 0) / wide[None] for v in (pivot, remainder))
    shared = _first(pivot, has)
    delta = jnp.where(has, (pivot - shared[None]) + remainder, 0)

    largest = jnp.max(count, axis=0)
    count_unit = jax.lax.stop_gradient(jnp.where(is_nonzero(largest), power_of_two(largest), 1))
    relative = jnp.where(has, count / count_unit[None], 0)
    total = jnp.sum(relative, axis=0)
    share = relative / jnp.where(is_nonzero(total), total, 1)[None]
    if effective_count is not None:
        squares = jnp.sum(share * share / jnp.where(has, effective_count, 1), axis=0)
        effective_count = inverse(squares)

    mean = jnp.sum(share.astype(delta.dtype) * delta, axis=0)
    squares = jnp.where(has, var, 0) + abs_squared(delta - mean[None])
    merged = jnp.sum(share * squares, axis=0)
    return Pooled(
        shared * wide,
        mean * wide,
        root(merged) * unit,
        finite(merged * unit * unit),
        count_unit,
        total,
        effective_count,
    )


def _first(parts: Array, has: Array) -> Array:
    """Take each feature from the first part that is not empty; 0 if all are empty."""
    earlier = jnp.cumsum(has.astype(jnp.int32), axis=0)
    return jnp.sum(jnp.where(has & (earlier == 1), parts, 0), axis=0)


def as_moments(
    mean: Array, var: Array, count: Array, effective_count: Array | None
) -> Moments | WeightedMoments:
    if effective_count is None:
        return Moments(mean, var, count)
    return WeightedMoments(mean, var, count, effective_count)
