"""Stable moments of a batch: masks, named axes, groups, merge.

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
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact

from jbn.collectives import AxisName, Pool, pool
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
    """

    deviation: Array
    pivot: Array
    remainder: Array
    moments: Moments


def moments(
    x: Inexact[ArrayLike, "..."],
    *,
    axis: int | Sequence[int] = -1,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Compute mean, biased variance and count of a batch, per feature.

    mean = sum(w x) / sum(w), var = sum(w |x - mean|^2) / sum(w), count = sum(w), with w = 1 where
    no mask is given. Sums are shifted by a value near the mean, so that var is right to float32's
    precision whatever the mean (1e-6 at mean/std 1e5).

    Args:
      x: the batch, floating or complex, any rank.
      axis: feature axis or axes; all others are reduced.
      mask: bool, or non-negative float weights, broadcastable to x. Weights count as frequencies,
        and the result can be differentiated with respect to them.
      axis_name: name, or tuple of names, of mapped axes to pool over, weighted by count.
      axis_index_groups: partition of the indices along `axis_name` (row-major over several names);
        pools within each group.

    Returns:
      Moments of x's feature shape, float32 at least. Where no weight is left: 0, 0 and count 0.

    Raises:
      TypeError: integer or boolean x; a mask neither boolean nor floating.
      ValueError: axis out of range or given twice; empty batch; mask that does not broadcast to x;
        name not bound; groups that do not partition the axis.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> m = jbn.moments(jnp.array([[1.0], [3.0], [5.0], [7.0]]))
      >>> [float(value[0]) for value in m]
      [4.0, 5.0, 4.0]

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 1.
    """
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    centred = centre(x, features, mask, pool(axis_name, axis_index_groups))
    return Moments(*(to_features(v, features) for v in centred.moments))


def merge_moments(*parts: Moments) -> Moments:
    """Pool moments of disjoint parts of a batch: exactly those of the whole.

    n = sum n_i, mean = sum n_i mean_i / n, var = sum n_i (var_i + |mean_i - mean|^2) / n. Parts of
    count 0 add nothing. The same for shards, accumulation steps, and federated clients.

    Args: parts: one or more, all of one feature shape.
    Returns: Moments of that shape; 0, 0 and count 0 where no part has any weight.
    Raises: ValueError: no parts, or shapes that differ.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> x = jnp.arange(10.0).reshape(5, 2)
      >>> merged = jbn.merge_moments(jbn.moments(x[:1]), jbn.moments(x[1:]))
      >>> bool(jnp.allclose(merged.var, jbn.moments(x).var))
      True

    References: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """
    if not parts:
        raise ValueError("Expected one or more Moments to merge, got none.")
    shapes = {jnp.shape(leaf) for part in parts for leaf in part}
    if len(shapes) > 1:
        raise ValueError(f"Expected Moments of one feature shape, got {sorted(shapes)}.")
    mean, var, count = (jnp.stack(leaves) for leaves in zip(*parts, strict=True))
    pivot, remainder, var, count = _merge(mean, jnp.zeros_like(mean), var, count)
    return Moments(pivot + remainder, var, count)


def as_inexact(x: ArrayLike) -> Array:
    """Check that x is floating or complex."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"Expected floating or complex x, got {dtype}. Convert it: x.astype(jnp.float32)."
        )
    return jnp.asarray(x)


def feature_axes(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Turn `axis` into non-negative axes in ascending order, the order of the statistics' shape."""
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    if isinstance(axis, str) or not all(hasattr(a, "__index__") for a in given):
        raise TypeError(f"Expected `axis` to be an int or a tuple of ints, got {axis!r}.")
    if ndim == 0:
        raise ValueError("Expected x with a feature axis, got a scalar. Reshape it: x[None].")
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(
            f"Expected `axis` within -{ndim} to {ndim - 1} for x of {ndim} axes, got {axis}."
        )
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) != len(axes) or not axes:
        raise ValueError(f"Expected one or more different axes, got {axis} for x of {ndim} axes.")
    return axes


def to_features(vector: Array, features: tuple[int, ...]) -> Array:
    """Drop the axes of length 1 that stand for the reduced ones."""
    return vector.reshape([vector.shape[a] for a in features])


def centre(
    x: Array, features: tuple[int, ...], mask: ArrayLike | None, pool: Pool | None
) -> Centred:
    """Centre a batch about a pivot near its mean, with the moments of all devices."""
    if x.size == 0:
        raise ValueError(
            f"Expected at least one value per feature, got an empty batch of shape {x.shape}. "
            "Skip the step, or pad the batch and mask the padding."
        )
    axes = tuple(a for a in range(x.ndim) if a not in features)
    weights = None if mask is None else _weights(mask, x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if weights is not None:  # y is computed where x is masked; NaN there must not reach a gradient.
        x = jnp.where((weights > 0) | jnp.isfinite(x), x, 0)
    deviation, local_pivot, pivot, remainder, var, count = _centre(x, weights, axes, pool)
    local_pivot, pivot = jax.lax.stop_gradient((local_pivot, pivot))
    seen_from_here = remainder if pool is None else (pivot - local_pivot) + remainder
    return Centred(deviation, local_pivot, seen_from_here, Moments(pivot + remainder, var, count))


def _weights(mask: ArrayLike, x: Array) -> Array:
    """Give the mask x's rank: bool as it is, weights in the dtype of var."""
    mask = jnp.asarray(mask)
    if not (mask.dtype == jnp.bool_ or jnp.issubdtype(mask.dtype, jnp.floating)):
        raise TypeError(
            f"Expected a boolean `mask` or float weights, got {mask.dtype}. Write mask != 0."
        )
    fits = mask.ndim <= x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape[::-1], x.shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"Expected `mask` to broadcast to x.shape={x.shape}, got {mask.shape}. "
            "Reshape it to x's rank, with 1 where it does not vary: (N, 1, 1, 1) per example."
        )
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    if mask.dtype == jnp.bool_:
        return mask
    return mask.astype(jnp.finfo(jnp.promote_types(x.dtype, jnp.float32)).dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _centre(
    x: Array, weights: Array | None, axes: tuple[int, ...], pool: Pool | None
) -> tuple[Array, ...]:
    """Compute deviation, local pivot, pivot, remainder, var, count; the last four of all devices.

    The derivative is that of the moments themselves, written about the pivot. Its transpose is
    the closed form dx = dy c1 + deviation c2 + c3 of the paper's section 3, so reverse mode keeps
    the deviation and vectors, and forward mode and second order come from the same four lines.
    """
    deviation, pivot, remainder, var = _local(x, weights, axes)
    count = jnp.broadcast_to(_count(weights, x.shape, axes), var.shape).astype(var.dtype)
    if pool is None:
        return deviation, pivot, pivot, remainder, var, count
    return deviation, pivot, *_pooled(pool, pivot, remainder, var, count, weights is None)


@_centre.defjvp
def _centre_jvp(axes, pool, primals, tangents):
    x, weights = primals
    dx, dweights = tangents
    out = _centre(x, weights, axes, pool)
    deviation, local_pivot, pivot, remainder, var, count = out
    m = remainder if pool is None else (pivot - local_pivot) + remainder

    # d mean = sum(w dx) / n and d var = 2 sum(w dx (deviation - m)) / n, as sums to be pooled.
    wdx = dx if weights is None else _weigh(dx, weights)
    d = deviation if weights is None else jnp.where(weights > 0, deviation, 0)
    sums = [
        jnp.sum(wdx, axes, keepdims=True),
        2 * _inner(d, wdx, axes) - 2 * (jnp.conj(m) * jnp.sum(wdx, axes, keepdims=True)).real,
    ]
    if weights is not None and weights.dtype != jnp.bool_:
        dw = jnp.broadcast_to(jnp.where(weights > 0, dweights, 0), x.shape)
        sums[0] += jnp.sum(dw * (d - m), axes, keepdims=True)
        sums[1] += jnp.sum(dw * (abs_squared(d - m) - var), axes, keepdims=True)
        sums.append(jnp.sum(dw, axes, keepdims=True))
    pooled = jnp.stack([s.astype(x.dtype) for s in sums])
    if pool is not None:
        pooled = pool.sum(pooled)
    n = jnp.where(count > 0, count, 1)
    dmean, dvar = pooled[0] / n, pooled[1].real / n
    dcount = pooled[2].real if len(sums) == 3 else jnp.zeros_like(count)
    zero = jnp.zeros_like(pivot)
    return out, (dx, jnp.zeros_like(local_pivot), zero, dmean, dvar, dcount)


def _local(x: Array, weights: Array | None, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """Compute deviation, pivot, remainder and var of this device's part.

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
    return _about(_as_pivot(_mean(x, weights, axes)), x, weights, axes)


def _shift_if_needed(x: Array, weights: Array | None, axes: tuple[int, ...]) -> tuple[Array, ...]:
    """Take sums about 0, and again about the mean if any feature would lose precision by it."""
    mean = _mean(x, weights, axes)
    second = _mean(x, weights, axes, squared=True)
    var = jnp.maximum(second - abs_squared(mean), 0)
    # isfinite: the squares overflow at 1e19, the deviations' need not.
    calm = (abs_squared(mean) <= WELL_CONDITIONED * var) & jnp.isfinite(second)
    cancels = _anywhere(jnp.any(~calm))

    pivot = _as_pivot(mean)

    def shift(x: Array, mean: Array, var: Array) -> tuple[Array, ...]:
        deviation, _, remainder, var = _about(pivot, x, weights, axes)
        return deviation, remainder, var

    # In this order: with the branches swapped, XLA copies x in the one that only returns it.
    deviation, remainder, var = jax.lax.cond(
        cancels, shift, lambda x, mean, var: (x, mean, var), x, mean, var
    )
    return deviation, jnp.where(cancels, pivot, 0), remainder, var


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
) -> tuple[Array, ...]:
    deviation = x - pivot
    remainder = _mean(deviation, weights, axes)
    second = _mean(deviation, weights, axes, squared=True)
    return deviation, pivot, remainder, jnp.maximum(second - abs_squared(remainder), 0)


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


def _pooled(
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
        return _merge(gathered[:, 0], gathered[:, 1], gathered[:, 2].real, counts)

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


def _merge(pivot: Array, remainder: Array, var: Array, count: Array) -> tuple[Array, ...]:
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
