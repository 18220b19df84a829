"""Batch renormalization: batch statistics, corrected toward running statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, Int

from jbn._arguments import (
    as_scalar,
    check_flag,
    check_momentum,
    check_number,
    check_state,
    weight_of_old,
)
from jbn._axes import (
    along_features,
    check_mask,
    reduction_axes,
)
from jbn._batch_norm import (
    batch_norm,
    check_call,
    check_values,
    move,
    or_running,
    running_mean,
    vectors,
)
from jbn._center import center, rstd
from jbn._collectives import AxisName, Pool, jit_over_devices, pool
from jbn._schedules import Schedule, at_count
from jbn._types import BatchNormParams, BatchNormState

Limit = ArrayLike | Callable[[Int[Array, ""]], ArrayLike]


def batch_renorm(
    x: Inexact[ArrayLike, "..."],
    params: BatchNormParams,
    state: BatchNormState,
    *,
    training: bool,
    r_max: Limit,
    d_max: Limit,
    axis: int | Sequence[int] = -1,
    momentum: ArrayLike | Schedule = 0.99,
    epsilon: ArrayLike = 1e-5,
    unbiased: bool = True,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, BatchNormState]:
    """Normalize x by batch statistics, corrected toward the running statistics, in training.

    y = scale * (xhat * r + d) + bias, with xhat of `batch_norm`, sigma = sqrt(var + epsilon),
    r = clip(sigma_batch / sigma_running, 1 / r_max, r_max) and
    d = clip((mean_batch - mean_running) / sigma_running, -d_max, d_max). The running statistics
    are those before the update. No gradient flows through r and d. Where neither is clipped, y is
    the same as in inference, so training on small or dependent batches matches inference.

    With r_max = 1 and d_max = 0, values and gradients are those of `batch_norm`. Inference is
    always the same as in `batch_norm`.

    Args:
      x: the batch, floating, any rank.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`.
      training: static. If False, returns `state` unchanged.
      r_max: limit of r, at least 1, or a schedule of it: a function of `state.count`. May be
        traced. Start at 1 to let the running statistics settle first.
      d_max: limit of d, at least 0, or a schedule of it. May be traced.
      axis, momentum, epsilon, unbiased, mask, axis_name, axis_index_groups: as for `batch_norm`.

    Returns:
      `(y, state)`: y of x's shape and dtype, the state that `batch_norm` returns.

    Raises:
      TypeError, ValueError: as `batch_norm`; complex x; r_max or d_max out of range.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(1)
      >>> r_max = lambda count: jnp.interp(count, jnp.array([5e3, 4e4]), jnp.array([1.0, 3.0]))
      >>> x = jnp.array([[1.0], [5.0]])
      >>> y, _ = jbn.batch_renorm(x, params, state, training=True, r_max=r_max, d_max=0.5)
      >>> [round(float(v), 3) for v in y[:, 0]]
      [-0.5, 1.5]

    References:
      Ioffe, "Batch Renormalization", 2017, Algorithm 1; section 4 for the schedules:
      r_max 1 to 3 over steps 5k to 40k, d_max 0 to 5 over steps 5k to 25k.
    """
    training = check_flag("training", training)
    check_limit(r_max, "r_max", 1)
    check_limit(d_max, "d_max", 0)
    if not training:
        return batch_norm(
            x, params, state, training=False, axis=axis, momentum=momentum, epsilon=epsilon
        )
    check_state(state)
    x, features = check_call(x, params, state, axis, epsilon)
    unbiased = check_flag("unbiased", unbiased)
    check_momentum(momentum)
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected real x, got {x.dtype}: a complex d has no order to be clipped in. "
            "Use jbn.batch_norm, or stack real and imaginary parts as features."
        )
    devices = pool(axis_name, axis_index_groups)
    check_values(x, features, mask, devices)
    return _batch_renorm(
        x,
        params,
        state,
        check_mask(mask, x, features),
        (
            _limit_at(r_max, state.count, x, "r_max", 1),
            _limit_at(d_max, state.count, x, "d_max", 0),
        ),
        weight_of_old(momentum, state.count, x),
        as_scalar(epsilon, x),
        features=features,
        pool=devices,
        unbiased=unbiased,
    )


@functools.partial(jit_over_devices, static_argnames=("features", "unbiased"))
def _batch_renorm(
    x: Array,
    params: BatchNormParams,
    state: BatchNormState,
    mask: Array | None,
    limits: tuple[ArrayLike, ArrayLike],
    momentum: ArrayLike,
    epsilon: ArrayLike,
    *,
    features: tuple[int, ...],
    pool: Pool | None,
    unbiased: bool,
) -> tuple[Array, BatchNormState | None]:
    guess = running_mean(state, x, features)
    centered = center(x, reduction_axes(x, features), mask, pool, epsilon, guess)
    used = or_running(centered, state, x, features, epsilon)
    dtype = centered.pivot.dtype
    mean, var = (along_features(v, x, features).astype(dtype) for v in (state.mean, state.var))
    r_max, d_max = (jnp.asarray(limit).astype(dtype) for limit in limits)
    running_rstd = rstd(var, epsilon)
    batch_rstd = used.affine_coefficients(None, None, epsilon)[0] * used.per_unit
    r = jnp.clip(running_rstd / batch_rstd, 1 / r_max, r_max)
    # Both means relative to the pivot: adding it to the remainder first would lose digits of d.
    d = jnp.clip((used.remainder - (mean - used.pivot)) * running_rstd, -d_max, d_max)
    # Limits that allow only r = 1 or d = 0 replace NaN as well.
    r, d = jnp.where(r_max == 1, 1, r), jnp.where(d_max == 0, 0, d)
    r, d = jax.lax.stop_gradient((r, d))
    # scale (xhat r + d) + bias is batch norm with other parameters.
    scale, bias = (v if v is None else v.astype(dtype) for v in vectors(params, x, features))
    shift = d if scale is None else d * scale
    y = used.normalize(
        r if scale is None else r * scale, shift if bias is None else shift + bias, epsilon
    )
    return y.astype(x.dtype), move(state, centered, features, momentum, unbiased)


def check_limit(limit: Any, name: str, least: int) -> None:
    """Check r_max or d_max where its value is known; a schedule passes."""
    if callable(limit):
        return
    known = check_number(name, limit, f"a number of at least {least} or a schedule")
    if known is not None and not known >= least:
        raise ValueError(
            f"Expected `{name}` to be at least {least}, got {limit}. "
            "r_max=1 with d_max=0 is plain batch norm; 3 and 5 are the paper's last values."
        )


def _limit_at(limit: Limit, count: Array, x: Array, name: str, least: int) -> ArrayLike:
    """Evaluate the schedule of r_max or d_max."""
    value = at_count(name, limit, count) if callable(limit) else limit
    check_limit(value, name, least)
    return as_scalar(value, x)
