"""A centered batch: its part on each device, and what all devices share."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbn._center._arithmetic import (
    abs_squared,
    finite,
    is_nonzero,
    near_rstd,
    product,
    total_weight,
    unvmap_any,
    weigh,
)
from jbn._center._merge import Pooled, pooled
from jbn._center._residual import from_pivot, residual_of
from jbn._center._sums import (
    Part,
    about_guess,
    chosen,
    guessed_pivot,
    is_exact,
    local_part,
    not_needed,
    stacked,
)
from jbn._collectives import Pool
from jbn._sharding import like, varying_axes, varying_like

# Up to this D, a checksum can be compared in digits of at least 4 bits, see `_all_equal`.
CHECKSUM_LIMIT = 2**12


class Values(NamedTuple):
    """A centered batch. residual, pivot, per_unit and share are this device's, the rest is common.

    The mean over all devices is shared + remainder. `share` is one unit of this device's weights as
    a fraction of the total weight: 1 / n if all weights are 1.
    """

    residual: Array
    pivot: Array
    per_unit: Array
    shared: Array
    remainder: Array
    near_rstd: Array
    relative_var: Array
    var: Array
    count: Array
    effective_count: Array | None
    share: Array


def values_of(
    x: Array,
    weights: Array | None,
    unit: Array | None,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
    pool: Pool | None,
) -> Values:
    """Center a batch; its weights are in units of `unit`, and at most 2."""
    each = functools.partial(_of_parts, axes=axes, pool=pool)
    if pool is None or not _is_pivot_of_all(guess, x, weights, epsilon, pool):
        return each(x, weights, unit, epsilon, guess)
    return jax.lax.platform_dependent(
        x,
        weights,
        unit,
        epsilon,
        guess,
        tpu=functools.partial(_of_all, axes=axes, pool=pool),
        default=each,
    )


def _of_parts(
    x: Array,
    weights: Array | None,
    unit: Array | None,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
    pool: Pool | None,
    local: "Callable[..., Part] | None" = None,
) -> Values:
    """Center each device's part about a pivot of its own, and merge their moments."""
    n = total_weight(weights, x, axes)
    part = (local or local_part)(x, weights, n, epsilon, guess, axes)
    n = like(n, part.std)
    unit = jnp.asarray(1, n.dtype) if unit is None else like(unit, n)
    count, effective = finite(n * unit), None
    if weights is not None and weights.dtype != jnp.bool_:
        squares = like(total_weight(jnp.square(weights), x, axes), n)
        effective = n * n / jnp.where(is_nonzero(squares), squares, 1)
    if pool is None:
        whole = Pooled(part.pivot, part.remainder, part.std, part.var, unit, n, effective)
    else:
        parts = part.pivot, part.remainder, part.std, count, effective
        whole = pooled(pool, *parts, equal=weights is None)
    residual, pivot = part.residual, part.pivot
    if pool is not None and weights is not None:  # y is also computed if all is masked.
        residual, pivot = from_pivot(whole.pivot, ~is_nonzero(n), residual, pivot, part.per_unit)
    rstd = near_rstd(whole.std, epsilon)
    total = whole.relative_count
    if weights is not None:
        total = jnp.where(is_nonzero(total), total, 1)
    return Values(
        residual=residual,
        pivot=pivot,
        per_unit=part.per_unit,
        shared=whole.pivot,
        remainder=whole.remainder,
        near_rstd=rstd,
        relative_var=jnp.square(whole.std * rstd),
        var=whole.var,
        count=count if pool is None else whole.total,
        effective_count=whole.effective_count,
        share=unit / whole.count_unit / total,
    )


def _is_pivot_of_all(
    guess: Array | None, x: Array, weights: Array | None, epsilon: Array, pool: Pool
) -> bool:
    """Tell whether all devices should have the same guess, and will take the same branch.

    Otherwise, some devices might wait in one branch for others that took the other.
    """
    if guess is None or pool.group_of is not None or pool.size > CHECKSUM_LIMIT:
        return False
    if weights is not None and weights.dtype != jnp.bool_:  # Each device has its own unit.
        return False
    names = frozenset(pool.names)
    of_mask = frozenset() if weights is None else varying_axes(weights)
    uniform = not varying_axes(guess) | varying_axes(epsilon)
    return uniform and varying_axes(x) == names and of_mask <= names


def _of_all(
    x: Array,
    weights: Array | None,
    unit: Array | None,
    epsilon: Array,
    guess: Array,
    axes: tuple[int, ...],
    pool: Pool,
) -> Values:
    """Take sums over all devices about a guess that they share, in one collective of O(C).

    If any feature would lose precision, or if the guesses differ, as copies of a state may whatever
    their type says, center part by part instead. Either all devices do so, or none.
    """
    pivot = guessed_pivot(guess, x, axes)
    weighed = weigh(x.astype(pivot.dtype) - pivot, weights)
    sums = [jnp.sum(v, axes, keepdims=True) for v in (weighed, product(weighed, weighed))]
    n = like(total_weight(weights, x, axes), sums[1].real)
    sums += [] if weights is None else [n]
    rows = jnp.stack([v.astype(pivot.dtype) for v in sums])
    digits = _digits(pivot, pool.size).astype(pivot.dtype)
    total = pool.sum(jnp.concatenate([rows.reshape(-1), digits, digits * digits]))
    total, of_digits = jnp.split(total, [rows.size])
    first, second, *counted = total.reshape(rows.shape)
    count = counted[0].real if counted else n * pool.size
    if weights is not None:  # After the sums, as in `about_guess`.
        pivot = jnp.where(is_nonzero(count), pivot, 0)
    some = jnp.where(is_nonzero(count), count, 1)
    mean = first / some.astype(first.dtype)
    var = jnp.maximum(second.real / some - abs_squared(mean), 0)
    rstd = near_rstd(jnp.sqrt(var), epsilon)
    own = varying_like(pivot, x), varying_like(jnp.ones_like(pivot.real), x)
    relative_var = jnp.square(jnp.sqrt(var) * rstd)
    common = pivot, mean, rstd, relative_var, var, count, 1 / some

    def again(x: Array) -> tuple[Array, Array]:
        parts = _of_parts(x, weights, unit, epsilon, None, axes, pool, about_guess)
        _, pivot, per_unit, *others = (v for v in parts if v is not None)
        return stacked((pivot, per_unit)), stacked(others)

    exact = jnp.all(is_exact(mean, var, epsilon)) & _all_equal(of_digits.real, pool.size)
    shifts = unvmap_any(~exact)
    # Two arrays, since values of each device are typed as varying, and common ones are not.
    others = jax.lax.cond(shifts, again, lambda _: (not_needed(own), not_needed(common)), x)
    pivot, per_unit = chosen(shifts, others[0], own)
    shared, mean, rstd, relative_var, var, count, share = chosen(shifts, others[1], common)
    return Values(
        residual=residual_of(x, pivot, per_unit),
        pivot=pivot,
        per_unit=per_unit,
        shared=shared,
        remainder=mean,
        near_rstd=rstd,
        relative_var=relative_var,
        var=var,
        count=count,
        effective_count=None,
        share=share,
    )


def _digits(pivot: Array, devices: int) -> Array:
    """Compute a 32-bit checksum of a pivot, in digits small enough for `_all_equal` to be exact."""
    power = math.ceil(math.log2(devices))
    size = min(16 - power, (24 - power) // 2)
    parts = [pivot.real, pivot.imag] if jnp.iscomplexobj(pivot) else [pivot]
    bits = jax.lax.bitcast_convert_type(jnp.stack(parts), jnp.uint32).reshape(-1)
    factors = np.random.default_rng(0).integers(2**32, size=bits.size, dtype=np.uint32) | 1
    checksum = jnp.sum(bits * factors, dtype=jnp.uint32)
    shifts = np.arange(0, 32, size, dtype=np.uint32)
    return (checksum >> shifts) & np.uint32(2**size - 1)


def _all_equal(sums: Array, devices: int) -> Array:
    """Tell from the sums of digits and of their squares whether all devices have the same digits.

    D sum(d^2) >= sum(d)^2, with equality only if all d are equal (Cauchy, Schwarz).
    """
    digits, squares = jnp.split(sums.astype(jnp.uint32), 2)
    return jnp.all(squares * np.uint32(devices) == digits * digits)
