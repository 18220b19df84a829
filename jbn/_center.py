"""A batch about its pivot: the sums over the batch, their derivative, their merge over devices.

E[x^2] - E[x]^2 cancels when the mean is large: at mean/std 1e4 in float32 it is NaN. Here sums are
taken of `deviation = x - pivot` with a pivot near the mean, and two rules keep that exact:
- pivot and remainder (the mean of the deviation) are not rounded into one number before x is
  normalised: (x - pivot) - remainder has an error of 1e-6 where x - (pivot + remainder) has 4e-3;
- devices exchange (pivot, remainder, var, count) and merge those, not sums about zero.

References: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983: shifted
sums, merge of parts. Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 1 and section 3.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jbn.collectives import Pool
from jbn.types import Moments

# A gather of all devices' moments is O(D*C). Beyond this D two sums of O(C) take its place.
GATHER_LIMIT = 64

# Sums about 0 are kept while mean^2 <= 2 var: the error of the normalised output is then at most
# 3e-6; it is 4e-6 at mean = 2 std and grows with the square.
WELL_CONDITIONED = 2.0


class Centred(NamedTuple):
    """A batch about its pivot. Vectors keep x's rank, with 1 where an axis was reduced.

    The batch's mean is pivot + remainder. A device's deviation is from its own pivot; `remainder`
    is the mean of all devices seen from there, so `deviation - remainder` is exact everywhere.
    `kept` stands for the deviation, see `_deviation`.
    """

    kept: Array
    pivot: Array
    remainder: Array
    moments: Moments

    def scale_and_shift(self, a: Array, b: Array) -> Array:
        """Compute deviation * a + b, keeping no more than `kept` and vectors for the backward."""
        return _scale_and_shift(self.kept, self.pivot, a, b)


def centre(x: Array, axes: tuple[int, ...], weights: Array | None, pool: Pool | None) -> Centred:
    """Centre a batch about a pivot near its mean, with the moments of all devices.

    Args:
      x: floating or complex, not empty.
      axes: the axes to reduce.
      weights: None, or boolean or float of x's rank, broadcastable to x.
      pool: the devices that share statistics.
    """
    if weights is not None:  # y is computed where x is masked; NaN there must not reach a gradient.
        x = jnp.where((weights > 0) | jnp.isfinite(x), x, 0)
    kept, local_pivot, pivot, remainder, var, count = _centre(x, weights, axes, pool)
    local_pivot, pivot = jax.lax.stop_gradient((local_pivot, pivot))
    seen_from_here = remainder if pool is None else (pivot - local_pivot) + remainder
    return Centred(kept, local_pivot, seen_from_here, Moments(pivot + remainder, var, count))


def wide_dtype(x: Array) -> jnp.dtype:
    """Dtype of arithmetic and statistics: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _deviation(kept: Array, pivot: Array) -> Array:
    """Deviation from the pivot: what is kept, or, for x in half precision, made anew from x.

    The deviation of a float16 or bfloat16 x is float32 and would take twice x's memory.
    """
    return kept if kept.dtype == pivot.dtype else kept.astype(pivot.dtype) - pivot


# Under `checkpoint` what is kept for the backward pass are the arguments, not the deviation.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _scale_and_shift(kept: Array, pivot: Array, a: Array, b: Array) -> Array:
    return _deviation(kept, pivot) * a + b


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _centre(
    x: Array, weights: Array | None, axes: tuple[int, ...], pool: Pool | None
) -> tuple[Array, ...]:
    """Compute kept, local pivot, pivot, remainder, var, count; the last four of all devices.

    The derivative is that of the moments themselves, written about the pivot. Its transpose is
    the closed form dx = dy c1 + deviation c2 + c3 of the paper's section 3, so reverse mode keeps
    one array and vectors, and forward mode and second order come from the same few lines.
    """
    kept, pivot, remainder, var = _local(x, weights, axes)
    count = jnp.broadcast_to(_count(weights, x.shape, axes), var.shape).astype(var.dtype)
    if pool is None:
        return kept, pivot, pivot, remainder, var, count
    return kept, pivot, *pooled(pool, pivot, remainder, var, count, weights is None)


@_centre.defjvp
def _centre_jvp(axes, pool, primals, tangents):
    x, weights = primals
    dx, dweights = tangents
    out = _centre(x, weights, axes, pool)
    kept, local_pivot, pivot, remainder, var, count = out
    mean = remainder if pool is None else (pivot - local_pivot) + remainder
    if weights is None or weights.dtype == jnp.bool_:
        dweights = None
    sums = jax.checkpoint(_tangent_sums, prevent_cse=False, static_argnums=7)(
        dx, dweights, kept, local_pivot, mean, var, weights, axes
    )
    if pool is not None:
        sums = pool.sum(sums)
    n = jnp.where(count > 0, count, 1)
    dcount = jnp.zeros_like(count) if dweights is None else sums[2].real
    unmoved = jnp.zeros_like(local_pivot), jnp.zeros_like(pivot)
    return out, (dx, *unmoved, sums[0] / n, sums[1].real / n, dcount)


def _tangent_sums(
    dx: Array,
    dweights: Array | None,
    kept: Array,
    pivot: Array,
    mean: Array,
    var: Array,
    weights: Array | None,
    axes: tuple[int, ...],
) -> Array:
    """Compute n d mean and n d var, and d n where weights are differentiated, stacked.

    d mean = sum(w dx) / n, d var = 2 sum(w dx (deviation - mean)) / n, with the mean taken out of
    the sum: its factor is a vector.
    """
    dx = dx.astype(mean.dtype)
    deviation = _deviation(kept, pivot)
    wdx = dx
    if weights is not None:
        wdx, deviation = _weigh(dx, weights), jnp.where(weights > 0, deviation, 0)
    total = jnp.sum(wdx, axes, keepdims=True)
    sums = [total, 2 * (_inner(deviation, wdx, axes) - (jnp.conj(mean) * total).real)]
    if dweights is not None and weights is not None:
        dw = jnp.broadcast_to(jnp.where(weights > 0, dweights, 0), kept.shape)
        sums[0] += jnp.sum(dw * (deviation - mean), axes, keepdims=True)
        sums[1] += jnp.sum(dw * (abs_squared(deviation - mean) - var), axes, keepdims=True)
        sums.append(jnp.sum(dw, axes, keepdims=True))
    return jnp.stack([s.astype(mean.dtype) for s in sums])


def _local(x: Array, weights: Array | None, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """Compute kept, pivot, remainder and var of this device's part.

    Two ways, since what is cheap differs. On accelerators a subtraction inside a reduction is
    free and a branch on data is not. On CPU, XLA runs reductions of x itself as library kernels
    (2 to 3 times as fast) but first writes `x - pivot` to memory, and a branch is free.
    """
    return jax.lax.platform_dependent(
        x,
        weights,
        cpu=functools.partial(_shift_if_needed, axes=axes),
        default=functools.partial(_shift, axes=axes),
    )


def _shift(x: Array, weights: Array | None, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """Take sums about the mean."""
    pivot = _as_pivot(_mean(x.astype(wide_dtype(x)), weights, axes))
    kept, remainder, var = _about(pivot, x, weights, axes)
    return kept, pivot, remainder, var


def _shift_if_needed(x: Array, weights: Array | None, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """Take sums about 0, and again about the mean if any feature would lose precision by it."""
    wide = x.astype(wide_dtype(x))
    mean = _mean(wide, weights, axes)
    second = _mean(wide, weights, axes, squared=True)
    var = jnp.maximum(second - abs_squared(mean), 0)
    # isfinite: the squares overflow at 1e19, the deviations' need not.
    calm = (abs_squared(mean) <= WELL_CONDITIONED * var) & jnp.isfinite(second)
    cancels = _anywhere(jnp.any(~calm))
    pivot = _as_pivot(mean)
    # In this order: with the branches swapped, XLA copies x in the one that only returns it.
    kept, remainder, var = jax.lax.cond(
        cancels,
        lambda x, mean, var: _about(pivot, x, weights, axes),
        lambda x, mean, var: (x, mean, var),
        x,
        mean,
        var,
    )
    return kept, jnp.where(cancels, pivot, 0), remainder, var


@jax.custom_batching.custom_vmap
def _anywhere(predicate: Array) -> Array:
    """Take a predicate for all of a vmapped batch at once, so that `cond` on it stays a branch."""
    return predicate


@_anywhere.def_vmap
def _anywhere_batched(axis_size, in_batched, predicate):
    return _anywhere(jnp.any(predicate)), False


def _as_pivot(mean: Array) -> Array:
    """Round to three bits less than the dtype has, so that every use sees the same number.

    Else the compiler may contract x - total / n into one multiply-add, which subtracts an unrounded
    pivot; the rounded one that other devices see is then up to 4e-3 off at mean/std 1e5.
    """
    info = jnp.finfo(mean.dtype)
    bits = {"exponent_bits": info.nexp, "mantissa_bits": info.nmant - 3}
    if jnp.iscomplexobj(mean):
        parts = (jax.lax.reduce_precision(part, **bits) for part in (mean.real, mean.imag))
        return jax.lax.complex(*parts)
    return jax.lax.reduce_precision(mean, **bits)


def _about(
    pivot: Array, x: Array, weights: Array | None, axes: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Compute kept, remainder and var about a pivot."""
    deviation = x.astype(pivot.dtype) - pivot
    remainder = _mean(deviation, weights, axes)
    second = _mean(deviation, weights, axes, squared=True)
    kept = deviation if x.dtype == pivot.dtype else x
    return kept, remainder, jnp.maximum(second - abs_squared(remainder), 0)


def _mean(
    x: Array, weights: Array | None, axes: tuple[int, ...], *, squared: bool = False
) -> Array:
    count = _count(weights, x.shape, axes)
    if weights is None:
        total = _inner(x, x, axes) if squared else jnp.sum(x, axes, keepdims=True)
        return total / count
    # `where` before the product: what is masked may be NaN.
    total = (
        _inner(jnp.where(weights > 0, x, 0), _weigh(x, weights), axes)
        if squared
        else (jnp.sum(_weigh(x, weights), axes, keepdims=True))
    )
    return total / jnp.where(count > 0, count, 1)


def _inner(x: Array, y: Array, axes: tuple[int, ...]) -> Array:
    """Sum Re(conj(x) y), which is the product for real x and y."""
    return jnp.sum((jnp.conj(x) * y).real, axes, keepdims=True)


def _weigh(x: Array, weights: Array) -> Array:
    kept = jnp.where(weights > 0, x, 0)
    return kept if weights.dtype == jnp.bool_ else kept * weights


def _count(weights: Array | None, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Total weight per feature, summed over what varies and multiplied by what does not."""
    if weights is None:
        return jnp.asarray(math.prod(shape[a] for a in axes), jnp.float32)
    repeated = math.prod(shape[a] for a in axes if weights.shape[a] == 1)
    dtype = jnp.promote_types(weights.dtype, jnp.float32)
    return jnp.sum(weights, axes, keepdims=True, dtype=dtype) * repeated


def abs_squared(x: Array) -> Array:
    """|x|^2, real."""
    return (jnp.conj(x) * x).real


def pooled(
    pool: Pool, pivot: Array, remainder: Array, var: Array, count: Array, equal: bool
) -> tuple[Array, ...]:
    """Merge the parts of all devices into pivot, remainder, var and count, the same on each.

    `equal` says that counts are known to be the same everywhere, and need not travel.
    """
    if pool.size <= GATHER_LIMIT:
        dtype = pivot.dtype
        parts = [pivot, remainder, var.astype(dtype)] + ([] if equal else [count.astype(dtype)])
        gathered = pool.gather(jnp.stack(parts))
        counts = (
            jnp.broadcast_to(count, (pool.size, *count.shape)) if equal else gathered[:, 3].real
        )
        members = pool.members()
        if members is not None:
            counts = jnp.where(members.reshape(-1, *(1,) * count.ndim), counts, 0)
        return merge(gathered[:, 0], gathered[:, 1], gathered[:, 2].real, counts)

    # Two sums of O(C): a pivot that all share, near the mean of all, then the moments about it.
    has = (count > 0).astype(var.dtype)
    near, devices = pool.sum(jnp.stack([has * (pivot + remainder), has.astype(pivot.dtype)]))
    shared = _as_pivot(near / jnp.maximum(devices.real, 1))
    delta = (pivot - shared) + remainder
    sums = [count, count * delta, count * (var + abs_squared(delta))]
    total, first, second = pool.sum(jnp.stack([s.astype(pivot.dtype) for s in sums]))
    total = total.real
    n = jnp.where(total > 0, total, 1)
    mean = first / n
    return shared, mean, jnp.maximum(second.real / n - abs_squared(mean), 0), total


def merge(pivot: Array, remainder: Array, var: Array, count: Array) -> tuple[Array, ...]:
    """Pool parts, stacked along the first axis, about the pivot of the first that is not empty."""
    has = count > 0
    first = jnp.argmax(has, axis=0, keepdims=True)
    shared = jnp.take_along_axis(jnp.where(has, pivot, 0), first, axis=0)
    delta = jnp.where(has, (pivot - shared) + remainder, 0)
    total = jnp.sum(count, axis=0)
    n = jnp.where(total > 0, total, 1)
    mean = jnp.sum(count * delta, axis=0) / n
    spread = jnp.where(has, var, 0) + abs_squared(delta - mean[None])
    return shared[0], mean, jnp.sum(count * spread, axis=0) / n, total
