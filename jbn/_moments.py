"""Moments of a batch, and of parts put together."""

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

    mean = sum(w x) / sum(w), var = sum(w |x - mean|^2) / sum(w), count = sum(w), with w = 1 where
    no mask is given. Sums are shifted by a value near the mean, so that var is right to float32's
    precision whatever the mean (1e-6 at mean/std 1e5).

    Args:
      x: the batch, floating or complex, any rank.
      axis: feature axis or axes; all others are reduced.
      mask: bool, or non-negative float weights, of x's rank, with length 1 where they do not vary.
        Weights are those of `numpy.cov(..., aweights=w)`: only their ratios count. A negative
        weight counts as 0. The result can be differentiated with respect to them.
      axis_name: name, or tuple of names, of mapped axes to pool over, weighted by count.
      axis_index_groups: partition of the indices along `axis_name` (row-major over several names);
        pools within each group.

    Returns:
      Moments of x's feature shape, float32 at least; WeightedMoments where weights are float.
        Where no weight is left: 0, 0 and count 0. What is beyond the dtype's largest number, as
        the variance of values above 1e19 in float32, is that number.

    Raises:
      TypeError: integer or boolean x; a mask neither boolean nor floating.
      ValueError: axis out of range or given twice; empty batch; a mask of another rank than x's, or
        that does not broadcast to it; name not bound; groups that do not partition the axis.

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
    """Pool moments of disjoint parts of a batch: exactly those of the whole.

    n = sum n_i, mean = sum n_i mean_i / n, var = sum n_i (var_i + |mean_i - mean|^2) / n. Parts of
    count 0 add nothing. The same for shards, accumulation steps, and federated clients.

    Args:
      parts: one or more, all of one feature shape.

    Returns:
      Moments of that shape; 0, 0 and count 0 where no part has any weight.

    Raises:
      TypeError: a part that is no Moments, such as a list of them.
      ValueError: no parts, or shapes that differ.

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
            "Give the parts that belong together, with mean, var and count of that shape."
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
    """Return n of Bessel's factor."""
    return moments.effective_count if isinstance(moments, WeightedMoments) else moments.count
