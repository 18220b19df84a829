"""Moments of a batch, and of parts put together: checks of the arguments around `centre`."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact

from jbn._center import Centred, centre, merge, wide_dtype
from jbn.collectives import AxisName, pool
from jbn.types import Moments


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
    centred = centre_features(x, features, mask, axis_name, axis_index_groups)
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
        raise ValueError(
            "Expected one or more Moments to merge, got none. Unpack them: merge_moments(*parts)."
        )
    shapes = {jnp.shape(leaf) for part in parts for leaf in part}
    if len(shapes) > 1:
        raise ValueError(
            f"Expected Moments of one feature shape, got {sorted(shapes)}. "
            "Give the parts that belong together, with mean, var and count of that shape."
        )
    mean, var, count = (jnp.stack(leaves) for leaves in zip(*parts, strict=True))
    pivot, remainder, var, count = merge(mean, jnp.zeros_like(mean), var, count)
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
        raise TypeError(
            f"Expected `axis` to be an int or a tuple of ints, got {axis!r}. "
            "Name the feature axis, which is -1 for channels last and 1 for channels first."
        )
    if ndim == 0:
        raise ValueError("Expected x with a feature axis, got a scalar. Reshape it: x[None].")
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(
            f"Expected `axis` within -{ndim} to {ndim - 1} for x of {ndim} axes, got {axis}. "
            "Name the feature axis, which is -1 for channels last and 1 for channels first."
        )
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) != len(axes) or not axes:
        raise ValueError(
            f"Expected one or more different axes, got {axis} for x of {ndim} axes. "
            "Name each feature axis once."
        )
    return axes


def to_features(vector: Array, features: tuple[int, ...]) -> Array:
    """Drop the axes of length 1 that stand for the reduced ones."""
    return vector.reshape([vector.shape[a] for a in features])


def centre_features(
    x: Array,
    features: tuple[int, ...],
    mask: ArrayLike | None,
    axis_name: AxisName | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> Centred:
    """Check the arguments and centre the batch, per feature."""
    if x.size == 0:
        raise ValueError(
            f"Expected at least one value per feature, got an empty batch of shape {x.shape}. "
            "Skip the step, or pad the batch and mask the padding."
        )
    axes = tuple(a for a in range(x.ndim) if a not in features)
    weights = None if mask is None else as_weights(mask, x)
    return centre(x, axes, weights, pool(axis_name, axis_index_groups))


def as_weights(mask: ArrayLike, x: Array) -> Array:
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
    return mask.astype(jnp.finfo(wide_dtype(x)).dtype)
