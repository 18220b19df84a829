"""The core functions. Arithmetic that needs care with rounding or devices is in `_center`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact

from jbn._arguments import (
    as_scalar,
    check_epsilon,
    check_flag,
    check_momentum,
    check_params,
    check_state,
    check_statistics,
    weight_of_old,
)
from jbn._axes import (
    along_features,
    as_inexact,
    check_batch,
    check_mask,
    feature_axes,
    reduction_axes,
    to_features,
)
from jbn._center import Centered, center, rstd
from jbn._collectives import AxisName, Pool, jit_over_devices, pool
from jbn._dtypes import wide_dtype
from jbn._inputs import as_index, is_inexact
from jbn._running import updated
from jbn._schedules import Schedule
from jbn._types import BatchNormParams, BatchNormState, OptionalState


@overload
def init(
    num_features: int | Sequence[int],
    *,
    use_scale: Literal[True] = True,
    use_bias: Literal[True] = True,
    param_dtype: Any = ...,
) -> tuple[BatchNormParams[Array], BatchNormState]: ...


@overload
def init(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = ...,
) -> tuple[BatchNormParams[Any], BatchNormState]: ...


def init(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> tuple[BatchNormParams[Any], BatchNormState]:
    """Make the parameters and running statistics of one layer: scale 1, bias 0; mean 0, var 1.

    Args:
      num_features: C, or one size per feature axis, in the order of x's axes.
      use_scale: create a scale (gamma); if False, it is None.
      use_bias: create a bias (beta); if False, it is None.
      param_dtype: dtype of scale and bias. Statistics are at least float32; the mean is complex if
        the parameters are.

    Returns:
      `(params, state)`: arrays of shape `(C,)`, and count 0 of shape `()` int32.

    Raises:
      TypeError: num_features neither an int nor ints; param_dtype neither floating nor complex.
      ValueError: num_features not positive.

    Example:
      >>> import jbn
      >>> params, state = jbn.init(64)
      >>> params.scale.shape, state.mean.shape, int(state.count)
      ((64,), (64,), 0)
    """
    if isinstance(num_features, np.ndarray) and num_features.ndim == 1:
        num_features = tuple(num_features.tolist())
    several = tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
    sizes = [as_index(size) for size in several]
    shape = tuple(size for size in sizes if size is not None)
    if len(shape) != len(sizes):
        raise TypeError(
            f"Expected `num_features` to be an int or a tuple of ints, got {num_features!r}. "
            "Pass the length of x's feature axis: x.shape[-1]."
        )
    if not shape or not min(shape) >= 1:
        raise ValueError(
            f"Expected `num_features` to be positive, got {num_features!r}. "
            "Pass the length of x's feature axis: x.shape[-1]."
        )
    use_scale, use_bias = check_flag("use_scale", use_scale), check_flag("use_bias", use_bias)
    if not is_inexact(param_dtype):
        raise TypeError(
            f"Expected a floating or complex `param_dtype`, got {param_dtype}. "
            "The usual one is jnp.float32."
        )
    stats_dtype = wide_dtype(param_dtype)
    params = BatchNormParams(
        scale=jnp.ones(shape, param_dtype) if use_scale else None,
        bias=jnp.zeros(shape, param_dtype) if use_bias else None,
    )
    state = BatchNormState(
        mean=jnp.zeros(shape, stats_dtype),
        var=jnp.ones(shape, jnp.finfo(stats_dtype).dtype),
        count=jnp.zeros((), jnp.int32),
    )
    return params, state


def batch_norm(
    x: Inexact[ArrayLike, "..."],
    params: BatchNormParams,
    state: OptionalState,
    *,
    training: bool,
    axis: int | Sequence[int] = -1,
    momentum: ArrayLike | Schedule = 0.99,
    epsilon: ArrayLike = 1e-5,
    unbiased: bool = True,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, OptionalState]:
    """Normalize x per feature, by batch statistics in training and running statistics otherwise.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias. In training, mean and biased var are those
    of the batch, pooled over the devices along `axis_name`, and the state moves toward them (see
    `update`). They are computed from values shifted by a pivot, which avoids cancellation: in
    float32 the error of y stays near 1e-6 up to mean/std 1e5, at any scale at which x, mean and
    standard deviation are finite. Gradients flow through the statistics, in closed form.

    Args:
      x: the batch, floating or complex, any rank.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`. May be None in training: then none are kept.
      training: static. If False, returns `state` unchanged and ignores `mask` and `axis_name`.
      axis: feature axis or axes; all others are reduced.
      momentum: weight of the *old* statistics, or a schedule of it (see `update`). May be traced.
      epsilon: added to var, positive. May be traced.
      unbiased: apply Bessel's correction n / (n - 1) to the running var, as in the paper.
      mask: bool, or non-negative float weights (see `moments`), of x's rank, with length 1 along
        axes where they do not vary. Masked values are excluded from the statistics and the state
        update; y is still computed for them. If all values are masked, y uses the running
        statistics and the state is returned unchanged. If one value of a feature is left, its
        variance is 0 and y is just the bias; the running mean moves, the running variance does not.
      axis_name: name, or tuple of names, of mapped axes (pmap, shard_map, vmap) to pool over. Under
        jit over sharded arrays the batch is already global; leave it None.
      axis_index_groups: partition of the indices along `axis_name`; statistics are pooled within
        each group. On more than 64 devices, naming one axis of a 2-D mesh sends less data.

    Returns:
      `(y, state)`: y of x's shape and dtype, state of the same shapes and dtypes as before, or
      None.

    Raises:
      TypeError: integer x; complex x with real statistics; a mask that is neither boolean nor
        floating; params or state of another type.
      ValueError: params or state that do not match the features; one value per feature in training,
        whose variance would be 0; an empty batch; invalid mask, axis, momentum, epsilon or names.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(2)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, state = jbn.batch_norm(x, params, state, training=True)
      >>> [[round(float(v), 3) for v in row] for row in y]
      [[-1.0, -1.0], [1.0, 1.0]]

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithms 1 and 2, section 3.
    """
    x, features = check_call(x, params, state, axis, epsilon)
    training, unbiased = check_flag("training", training), check_flag("unbiased", unbiased)
    check_momentum(momentum)
    running: BatchNormState | None = state
    if not training:
        if running is None:
            raise TypeError(
                "Expected `state` with training=False, got None: there are no running statistics "
                "to normalize by. Pass one, or training=True for those of the batch."
            )
        mean, var = running.mean, running.var
        return _normalize(x, mean, var, params, as_scalar(epsilon, x), features=features), state
    devices = pool(axis_name, axis_index_groups)
    check_values(x, features, mask, devices)
    y, new_state = _batch_norm(
        x,
        params,
        state,
        check_mask(mask, x, features),
        weight_of_old(momentum, None if running is None else running.count, x),
        as_scalar(epsilon, x),
        features=features,
        pool=devices,
        unbiased=unbiased,
    )
    return y, new_state


@functools.partial(jit_over_devices, static_argnames=("features", "unbiased"))
def _batch_norm(
    x: Array,
    params: BatchNormParams,
    state: BatchNormState | None,
    mask: Array | None,
    momentum: ArrayLike,
    epsilon: ArrayLike,
    *,
    features: tuple[int, ...],
    pool: Pool | None,
    unbiased: bool,
) -> tuple[Array, BatchNormState | None]:
    guess = running_mean(state, x, features)
    centered = center(x, reduction_axes(x, features), mask, pool, epsilon, guess)
    scale, bias = vectors(params, x, features)
    used = or_running(centered, state, x, features, epsilon)
    y = used.normalize(scale, bias, epsilon).astype(x.dtype)
    return y, move(state, centered, features, momentum, unbiased)


def normalize(
    x: Inexact[ArrayLike, "..."],
    mean: Inexact[ArrayLike, "*C"],
    var: Float[ArrayLike, "*C"],
    params: BatchNormParams | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: ArrayLike = 1e-5,
) -> Array:
    """Normalize x by the given statistics: y = scale * (x - mean) / sqrt(var + epsilon) + bias.

    Args:
      x: floating or complex, any rank.
      mean, var: statistics, `(C,)`.
      params: scale and bias, `(C,)`; None, or None for either, omits them.
      axis: feature axis or axes.
      epsilon: added to var, positive. May be traced.

    Returns:
      y, of x's shape and dtype; computed in at least float32.

    Raises:
      TypeError: integer x.
      ValueError: shapes that do not match; epsilon not positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> y = jbn.normalize(jnp.array([[3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=1e-9)
      >>> float(y[0, 0])
      1.0

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 11.
    """
    params = BatchNormParams(None, None) if params is None else params
    x, features = check_call(x, params, None, axis, epsilon)
    mean, var = check_statistics(mean, var)
    check_features(x, features, params, mean, var)
    return _normalize(x, mean, var, params, as_scalar(epsilon, x), features=features)


@functools.partial(jax.jit, static_argnames="features")
def _normalize(
    x: Array,
    mean: Array,
    var: Array,
    params: BatchNormParams,
    epsilon: ArrayLike,
    *,
    features: tuple[int, ...],
) -> Array:
    dtype = wide_dtype(x.dtype)
    mean, var = (along_features(v, x, features) for v in (mean, var))
    scale, bias = vectors(params, x, features)
    # Two products, since scale / sqrt(var + epsilon) may overflow.
    inverse = rstd(var.astype(jnp.finfo(dtype).dtype), epsilon).astype(dtype)
    y = (x.astype(dtype) - mean.astype(dtype)) * inverse
    y = y if scale is None else y * scale.astype(dtype)
    return (y if bias is None else y + bias.astype(dtype)).astype(x.dtype)


# ---- What the variants share ---------------------------------------------------------------------


def vectors(
    params: BatchNormParams, x: Array, features: tuple[int, ...]
) -> tuple[Array | None, Array | None]:
    """Reshape scale and bias to x's rank."""
    scale, bias = (p if p is None else along_features(p, x, features) for p in params)
    return scale, bias


def running_mean(state: BatchNormState | None, x: Array, features: tuple[int, ...]) -> Array | None:
    """Reshape the running mean, a guess of the batch mean, to x's rank."""
    return None if state is None else along_features(state.mean, x, features)


def or_running(
    centered: Centered,
    state: BatchNormState | None,
    x: Array,
    features: tuple[int, ...],
    epsilon: ArrayLike,
) -> Centered:
    """Use running statistics where nothing has weight; without a state, those of a new one."""
    if state is None:
        zero = jnp.zeros_like(centered.pivot)
        return centered.or_running(zero, jnp.ones_like(centered.near_rstd), epsilon)
    mean, var = (along_features(v, x, features) for v in (state.mean, state.var))
    return centered.or_running(mean, var, epsilon)


def move(
    state: BatchNormState | None,
    centered: Centered,
    features: tuple[int, ...],
    momentum: ArrayLike,
    unbiased: bool,
) -> BatchNormState | None:
    """Update the state, if there is one, with the moments of a batch."""
    if state is None:
        return None
    batch = to_features(centered.moments, features)
    # A batch of symbolic size may have just one value.
    several = centered.has_weight is None and isinstance(centered.residual.size, int)
    return updated(state, batch, momentum, unbiased=unbiased, several=several)


def check_call(
    x: ArrayLike,
    params: BatchNormParams,
    state: BatchNormState | None,
    axis: int | Sequence[int],
    epsilon: ArrayLike,
) -> tuple[Array, tuple[int, ...]]:
    """Check the arguments that all variants share; return x and its feature axes."""
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    check_params(params)
    if state is not None:
        check_state(state)
        check_features(x, features, params, state.mean, state.var)
    check_epsilon(epsilon)
    return x, features


def check_values(
    x: Array, features: tuple[int, ...], mask: ArrayLike | None, devices: Pool | None
) -> None:
    """Reject an empty batch and, without a mask, a batch of one value per feature."""
    check_batch(x)
    values = math.prod(x.shape[a] for a in reduction_axes(x, features))
    if mask is None and values == 1 and (devices is None or devices.smallest_group == 1):
        where = f" on each device, and groups of one along {devices.names}" if devices else ""
        raise ValueError(
            f"Expected more than one value per feature in training, got x.shape={x.shape} with "
            f"feature axes {features}{where}: the batch variance is 0 and y would be the bias "
            "alone. Use a larger batch, pool devices with axis_name, or normalize with "
            "training=False."
        )


def check_features(
    x: Array, features: tuple[int, ...], params: BatchNormParams, mean: Array, var: Array
) -> None:
    expected = tuple(x.shape[a] for a in features)
    given = {"scale": params.scale, "bias": params.bias, "mean": mean, "var": var}
    for name, value in given.items():
        if value is not None and jnp.shape(value) != expected:
            raise ValueError(
                f"Expected `{name}` of shape {expected} for x.shape={x.shape} with feature axes "
                f"{features}, got {jnp.shape(value)}. Check `axis`, or make params and state with "
                f"jbn.init({expected[0] if len(expected) == 1 else expected})."
            )
    if jnp.iscomplexobj(mean) != jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected a mean that is complex or real as x is, got {mean.dtype} for x of {x.dtype}."
            " Make the state with jbn.init(..., param_dtype=x.dtype)."
        )
    if any(jnp.iscomplexobj(p) for p in params) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected real scale and bias for x of {x.dtype}, got complex ones: y could not have "
            "x's dtype. Make them with jbn.init(..., param_dtype=x.dtype)."
        )
