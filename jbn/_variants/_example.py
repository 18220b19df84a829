"""Normalization by running statistics mixed with each example's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact

from jbn._arguments import (
    as_scalar,
    check_number,
    check_statistics,
)
from jbn._axes import (
    along_features,
    reduction_axes,
)
from jbn._batch_norm import (
    check_call,
    check_features,
    vectors,
)
from jbn._center import abs_squared, center, rstd
from jbn._types import BatchNormParams
from jbn._variants._axes import check_examples


def normalize_with_example(
    x: Inexact[ArrayLike, "N ..."],
    mean: Inexact[ArrayLike, "*C"],
    var: Float[ArrayLike, "*C"],
    params: BatchNormParams | None = None,
    *,
    weight: ArrayLike,
    axis: int | Sequence[int] = -1,
    epsilon: ArrayLike = 1e-5,
) -> Array:
    """Normalize x by given statistics mixed with each example's own: inference example weighing.

    With mean_x and var_x of one example over its positions and w = `weight`, the moments of the
    mixture are mean' = w mean_x + (1 - w) mean and
    var' = w var_x + (1 - w) var + w (1 - w) |mean_x - mean|^2, which equals
    w E[x^2 of the example] + (1 - w) E[x^2] - mean'^2 without its cancellation. In training, an
    example is part of the batch that normalizes it; this restores some of that in inference.

    Args:
      x: floating or complex, examples along the first axis.
      mean, var: statistics, `(C,)`, usually the running ones.
      params: scale and bias, `(C,)`; None, or None for either, omits them.
      weight: weight of the example's own statistics, in [0, 1]: 0 is `normalize`, 1 is instance
        norm. May be traced. Choose it on held-out data.
      axis: feature axis or axes, not the first.
      epsilon: added to var', positive. May be traced.

    Returns:
      y, of x's shape and dtype; computed in at least float32. Examples affect each other only
      through rounding. Differentiable with respect to all inputs, including weight. An empty x is
      returned unchanged.

    Raises:
      TypeError, ValueError: as `normalize`; the first axis as a feature axis; a weight known at
        trace time outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, state = jbn.init(1)
      >>> x = jnp.array([[[2.0], [6.0]]])  # One example of two positions: mean 4, var 4.
      >>> y = jbn.normalize_with_example(x, state.mean, state.var, weight=0.5)
      >>> [round(float(v), 3) for v in y[0, :, 0]]  # (x - 2) / sqrt(2 + .5 + 4)
      [0.0, 1.569]

    References:
      Summers, Dinneen, "Four Things Everyone Should Know to Improve Batch
      Normalization", 2020, section 3.1.
    """
    params = BatchNormParams(None, None) if params is None else params
    x, features = check_call(x, params, None, axis, epsilon)
    check_examples(features, axis)
    mean, var = check_statistics(mean, var)
    check_features(x, features, params, mean, var)
    known = check_number("weight", weight, "a number in [0, 1]")
    if known is not None and not 0 <= known <= 1:
        raise ValueError(
            f"Expected `weight`, the weight of the example's own statistics, in [0, 1], got "
            f"{weight}. With 0, only the given statistics are used."
        )
    if x.size == 0:
        return x
    scalars = as_scalar(weight, x), as_scalar(epsilon, x)
    return _normalize_with_example(x, mean, var, params, *scalars, features=features)


@functools.partial(jax.jit, static_argnames="features")
def _normalize_with_example(
    x: Array,
    mean: Array,
    var: Array,
    params: BatchNormParams,
    weight: ArrayLike,
    epsilon: ArrayLike,
    *,
    features: tuple[int, ...],
) -> Array:
    centered = center(x, reduction_axes(x, (0, *features)), None, None, epsilon)
    dtype, real = centered.pivot.dtype, centered.near_rstd.dtype
    mean = along_features(mean, x, features).astype(dtype) - centered.pivot
    var = along_features(var, x, features).astype(real)
    w = jnp.asarray(weight).astype(real)
    # Not by `merge`: same value, but at weight 0 no derivative with respect to the weight.
    gap = centered.remainder - mean
    # All in units of the mixture's standard deviation, since squares may overflow.
    share, rest = jnp.sqrt(jnp.abs(w)), jnp.sqrt(jnp.abs(1 - w))
    std = jnp.hypot(share / centered.near_rstd, rest / rstd(var, epsilon))
    per_unit = jax.lax.stop_gradient(1 / jnp.hypot(std, share * rest * jnp.abs(gap)))
    own = centered.relative_var * jnp.square(per_unit / centered.near_rstd)
    given = var * per_unit * per_unit
    apart = abs_squared(gap * per_unit.astype(dtype))
    mixed = centered._replace(
        remainder=mean + w.astype(dtype) * gap,
        near_rstd=per_unit,
        relative_var=(1 - w) * given + w * own + w * (1 - w) * apart,
    )
    return mixed.normalize(*vectors(params, x, features), epsilon).astype(x.dtype)
