"""Moments of a batch, and merging the moments of its parts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact

from jbn._axes import (
    as_inexact,
    check_batch,
    check_mask,
    feature_axes,
    reduction_axes,
    to_features,
)
from jbn._center import center, merge
from jbn._collectives import AxisName, Pool, jit_over_devices, pool
from jbn._inputs import check_fields, describe
from jbn._types import Moments, WeightedMoments


def moments(
    x: Inexact[ArrayLike, "..."],
    *,
    axis: int | Sequence[int] = -1,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments | WeightedMoments:
    """Compute mean, biased variance and count of a batch, per feature.

    mean = sum(w x) / sum(w), var = sum(w |x - mean|^2) / sum(w), count = sum(w), with w = 1 if no
    mask is given. x is shifted by a value near the mean before it is summed, so that var has
    float32's precision whatever the mean (1e-6 at mean/std 1e5).

    Args:
      x: the batch, floating or complex, any rank.
      axis: feature axis or axes; all others are reduced.
      mask: bool, or non-negative float weights, of x's rank, with length 1 along axes where they do
        not vary. Weights are those of `numpy.cov(..., aweights=w)`: only their ratios matter. A
        negative weight counts as 0. The result is differentiable with respect to the weights.
      axis_name: name, or tuple of names, of mapped axes to pool over, weighted by count.
      axis_index_groups: partition of the indices along `axis_name` (row-major over several names);
        moments are pooled within each group.

    Returns:
      Moments of x's feature shape, at least float32, or WeightedMoments if the mask is float. If
        the total weight is 0, then mean, var and count are 0. A value too large for the dtype, such
        as the variance of values above 1e19 in float32, is clipped to the largest finite number.

    Raises:
      TypeError: integer or boolean x; a mask that is neither boolean nor floating.
      ValueError: axis out of range or given twice; an empty batch; a mask whose rank is not x's or
        that does not broadcast to x; an unbound name; groups that do not partition the axis.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> m = jbn.moments(jnp.array([[1.0], [3.0], [5.0], [7.0]]))
      >>> [float(value[0]) for value in m]
      [4.0, 5.0, 4.0]

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 1.
    """
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    check_batch(x)
    devices = pool(axis_name, axis_index_groups)
    return _moments(x, check_mask(mask, x, features), features=features, pool=devices)


@functools.partial(jit_over_devices, static_argnames=("features",))
def _moments(
    x: Array, mask: Array | None, *, features: tuple[int, ...], pool: Pool | None
) -> Moments | WeightedMoments:
    centered = center(x, reduction_axes(x, features), mask, pool)
    return to_features(centered.moments, features)


def merge_moments(*parts: Moments | WeightedMoments) -> Moments | WeightedMoments:
    """Merge the moments of disjoint parts of a batch into those of the whole, exactly.

    n = sum n_i, mean = sum n_i mean_i / n, var = sum n_i (var_i + |mean_i - mean|^2) / n. Parts of
    count 0 contribute nothing. Use it for shards, gradient accumulation or federated clients.

    Args:
      parts: one or more Moments of the same feature shape.

    Returns:
      Moments of that shape; mean, var and count are 0 where no part has any weight.

    Raises:
      TypeError: a part that is not Moments, such as a list of them.
      ValueError: no parts, or different shapes.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> x = jnp.arange(10.0).reshape(5, 2)
      >>> merged = jbn.merge_moments(jbn.moments(x[:1]), jbn.moments(x[1:]))
      >>> bool(jnp.allclose(merged.var, jbn.moments(x).var))
      True

    References:
      Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """
    wrong = [part for part in parts if not isinstance(part, Moments | WeightedMoments)]
    if not parts or wrong:
        what = describe(wrong[0]) if parts else "none"
        raise (TypeError if parts else ValueError)(
            f"Expected one or more Moments to merge, got {what}. Unpack a list of them, "
            "merge_moments(*parts), and take moments with jbn.moments(x)."
        )
    for part in parts:
        check_fields("part", part)
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(parts)}
    if len(shapes) > 1:
        raise ValueError(
            f"Expected Moments of one feature shape, got {sorted(shapes)}. "
            "Merge moments of the same layer, whose mean, var and count all have that shape."
        )
    return _merge_moments(parts)


@jax.jit
def _merge_moments(parts: tuple[Moments | WeightedMoments, ...]) -> Moments | WeightedMoments:
    mean, var, count = (jnp.stack(leaves) for leaves in zip(*(p[:3] for p in parts), strict=True))
    effective = None
    if any(isinstance(part, WeightedMoments) for part in parts):
        effective = jnp.stack([effective_count(part) for part in parts])
    return merge(mean, jnp.zeros_like(mean), var, count, effective, squared=True).moments


def effective_count(moments: Moments | WeightedMoments) -> Array:
    """Return the n of Bessel's correction n / (n - 1)."""
    return moments.effective_count if isinstance(moments, WeightedMoments) else moments.count
