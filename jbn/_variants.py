"""Batch normalization by statistics other than the whole batch's: ghost batches, renorm, blends.

Each is `batch_norm` with other vectors: y = (deviation * per_unit) * a + b about the pivot of
`_center`, so all keep its precision and its one array for the backward pass.

Two more need no function. *Frozen* statistics: `jbn.normalize(x, state.mean, state.var, params)`;
the gradient passes to x, params and, if asked for, to mean and var, but not through them to a
batch. *Batch and running statistics pooled*, the running ones weighing as `k` values (Schneider et
al., "Improving robustness against common corruptions by covariate shift adaptation", 2020):

  >>> import jax.numpy as jnp, jbn
  >>> params, state = jbn.init(1)
  >>> x, k = jnp.array([[2.0], [6.0]]), 2.0
  >>> running = jbn.Moments(state.mean, state.var, jnp.full_like(state.var, k))
  >>> both = jbn.merge_moments(jbn.moments(x), running)
  >>> y = jbn.normalize(x, both.mean, both.var, params)
  >>> float(both.mean[0]), float(both.var[0])
  (2.0, 6.5)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact, Int

from jbn._arguments import (
    as_scalar,
    check_flag,
    check_momentum,
    check_number,
    check_size,
    check_state,
    check_statistics,
    weight_of_old,
)
from jbn._axes import (
    along_features,
    check_batch,
    check_mask,
    reduction_axes,
    to_features,
)
from jbn._batch_norm import (
    batch_norm,
    check_call,
    check_features,
    check_values,
    move,
    or_running,
    running_mean,
    vectors,
)
from jbn._center import abs_squared, center, merge, rstd
from jbn._collectives import AxisName, Pool, jit_over_devices, pool
from jbn._running import update
from jbn._schedules import Schedule, at_count
from jbn._sharding import gathered
from jbn._types import BatchNormParams, BatchNormState, OptionalState

Limit = ArrayLike | Callable[[Int[Array, ""]], ArrayLike]


def ghost_batch_norm(
    x: Inexact[ArrayLike, "N ..."],
    params: BatchNormParams,
    state: OptionalState,
    *,
    training: bool,
    batch_size: int,
    axis: int | Sequence[int] = -1,
    momentum: ArrayLike | Schedule = 0.99,
    epsilon: ArrayLike = 1e-5,
    unbiased: bool = True,
    mask: ArrayLike | None = None,
) -> tuple[Array, OptionalState]:
    """Normalize each `batch_size` consecutive examples by their own moments, in training.

    A large batch then has the noise of small ones, which Hoffer et al. find to generalize better.
    What is left over at the end is a group of its own. In inference as `batch_norm`.

    The state moves once per call, by the moments of all groups merged, which are the batch's own:
    it is the state that `batch_norm` returns, whatever `batch_size`, and `momentum` keeps its
    meaning. Hoffer et al. (Algorithm 1) move it by each group in turn, so that the last group
    weighs most and a ragged one as much as a full one; both estimate the same population.

    Args:
      x: the batch, examples along the first axis, floating or complex.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`. None in training keeps none.
      training: static. If False, returns `state` unchanged and ignores `batch_size` and `mask`.
      batch_size: examples per group, static. As many as x has or more make one group.
      axis: feature axis or axes, not the first; all others are reduced.
      momentum, epsilon, unbiased: as for `batch_norm`.
      mask: as for `batch_norm`. A group without any weight is normalized by the running
        statistics, and has no gradient by its weights; if all are without, the state comes back
        unchanged.

    Returns:
      `(y, state)`: y of x's shape and dtype, state of the shapes and dtypes it came with. Groups
      are of this device; pool states that devices moved by themselves with `synchronize`.

    Raises:
      TypeError, ValueError: as `batch_norm`; batch_size not a positive int; the first axis a
        feature axis; a group with one value per feature, where the variance would be 0.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(1)
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> y, state = jbn.ghost_batch_norm(x, params, state, training=True, batch_size=2)
      >>> [round(float(v), 3) for v in y[:, 0]]
      [-1.0, 1.0, -1.0, 1.0]

    References: Hoffer, Hubara, Soudry, "Train longer, generalize better", 2017, Algorithm 1.
    """
    batch_size = check_size(
        "batch_size", batch_size, "Pass the number of examples per group, such as 32."
    )
    if not check_flag("training", training):
        return batch_norm(
            x, params, state, training=False, axis=axis, momentum=momentum, epsilon=epsilon
        )
    x, features = check_call(x, params, state, axis, epsilon)
    unbiased = check_flag("unbiased", unbiased)
    check_momentum(momentum)
    _check_examples(features, axis)
    check_batch(x)
    mask = check_mask(mask, x, features)
    running: BatchNormState | None = state
    examples, size = x.shape[0], batch_size
    if isinstance(examples, int):  # Else it is a symbol of jax.export.
        size = min(size, examples)
        last = examples % size or size
        if mask is None and last * math.prod(x.shape[a] for a in _space(x, features)) == 1:
            raise ValueError(
                "Expected more than one value per feature in every group in training, got x.shape="
                f"{x.shape} with batch_size={batch_size}, whose last group has one: its variance "
                "is 0 and y would be the bias alone. Use a batch_size that leaves no single "
                "example, drop that example, or mask it."
            )
    return _ghost_batch_norm(
        x,
        params,
        state,
        mask,
        weight_of_old(momentum, None if running is None else running.count, x),
        as_scalar(epsilon, x),
        size=size,
        features=features,
        unbiased=unbiased,
    )


@functools.partial(jax.jit, static_argnames=("size", "features", "unbiased"))
def _ghost_batch_norm(
    x: Array,
    params: BatchNormParams,
    state: BatchNormState | None,
    mask: Array | None,
    momentum: ArrayLike,
    epsilon: ArrayLike,
    *,
    size: int,
    features: tuple[int, ...],
    unbiased: bool,
) -> tuple[Array, BatchNormState | None]:
    examples = x.shape[0]
    groups = (examples + size - 1) // size  # Which jax.export knows to be positive.
    missing = groups * size - examples
    # Padding completes the last group and weighs nothing.
    whole = isinstance(missing, int) and missing == 0
    if mask is None and not whole:
        mask = jnp.ones((1,) * x.ndim, bool)
    grouped = _in_groups(x, groups, size)
    if mask is not None:
        mask = _in_groups(jnp.broadcast_to(mask, (examples, *mask.shape[1:])), groups, size)
    # The group is one more feature axis.
    over = reduction_axes(grouped, (0, *(a + 1 for a in features)))
    guess = running_mean(state, x, features)
    guess = guess if guess is None else guess[None]
    centered = center(grouped, over, mask, None, epsilon, guess)
    scale, bias = (v if v is None else v[None] for v in vectors(params, x, features))
    used = centered
    if mask is not None:
        mean = jnp.zeros((1, *centered.pivot.shape[1:]), centered.pivot.dtype)
        var = jnp.ones_like(mean, dtype=centered.near_rstd.dtype)
        if state is not None:
            mean, var = (along_features(v, x, features)[None] for v in (state.mean, state.var))
        used = centered.or_running(mean, var, epsilon)
    y = used.normalize(scale, bias, epsilon)
    y = y.reshape(examples + missing, *x.shape[1:])[:examples].astype(x.dtype)
    if state is None:
        return y, None
    parts = centered.pivot, centered.remainder, centered.var, centered.count
    parts = jax.tree.map(lambda v: gathered(v, (0,)), (*parts, centered.effective_count))
    merged = merge(*parts, squared=True)
    batch = to_features(merged.moments, features)
    return y, update(state, batch, momentum=momentum, unbiased=unbiased)


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
    """Normalize x by the batch, corrected towards the running statistics, in training.

    y = scale * (xhat * r + d) + bias, with xhat of `batch_norm`, sigma = sqrt(var + epsilon),
    r = clip(sigma_batch / sigma_running, 1 / r_max, r_max) and
    d = clip((mean_batch - mean_running) / sigma_running, -d_max, d_max), by the statistics before
    they move. No gradient passes through r and d. Where neither is clipped, y is what inference
    gives, so that training on small or dependent batches learns what inference computes.

    r_max = 1 and d_max = 0 are `batch_norm`, its values and gradients; inference is the same, too.

    Args:
      x: the batch, floating, any rank.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`.
      training: static. If False, returns `state` unchanged.
      r_max: limit of r, at least 1, or a schedule of it: a function of `state.count`. May be
        traced. Starting at 1 lets the running statistics settle first.
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

    References: Ioffe, "Batch Renormalization", 2017, Algorithm 1; section 4 for the schedules:
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
    # Both means seen from the pivot: rounded into one number first, d would lose its digits.
    d = jnp.clip((used.remainder - (mean - used.pivot)) * running_rstd, -d_max, d_max)
    # Limits that leave nothing leave nothing of NaN either.
    r, d = jnp.where(r_max == 1, 1, r), jnp.where(d_max == 0, 0, d)
    r, d = jax.lax.stop_gradient((r, d))
    # scale (xhat r + d) + bias is batch norm with other parameters.
    scale, bias = (v if v is None else v.astype(dtype) for v in vectors(params, x, features))
    shift = d if scale is None else d * scale
    y = used.normalize(
        r if scale is None else r * scale, shift if bias is None else shift + bias, epsilon
    )
    return y.astype(x.dtype), move(state, centered, features, momentum, unbiased)


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

    With mean_x, var_x of one example over its positions and w = `weight`, the moments of the
    mixture: mean' = w mean_x + (1 - w) mean and
    var' = w var_x + (1 - w) var + w (1 - w) |mean_x - mean|^2, which is
    w E[x^2 of the example] + (1 - w) E[x^2] - mean'^2 without its cancellation. In training an
    example is part of the batch that normalizes it; this restores some of that in inference.

    Args:
      x: floating or complex, examples along the first axis.
      mean, var: statistics, `(C,)`, mostly the running ones.
      params: scale and bias, `(C,)`; None, or None for either, leaves them out.
      weight: of the example's own statistics, in [0, 1]: 0 is `normalize`, 1 is instance norm. May
        be traced. To be chosen on held-out data.
      axis: feature axis or axes, not the first.
      epsilon: added to var', positive. May be traced.

    Returns: y, of x's shape and dtype; computed in float32 at least. Examples affect each
      other by rounding alone. Differentiable by everything, weight included.
    Raises: TypeError, ValueError: as `normalize`; the first axis a feature axis; no values; a
      weight known at trace time outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, state = jbn.init(1)
      >>> x = jnp.array([[[2.0], [6.0]]])  # One example of two positions: mean 4, var 4.
      >>> y = jbn.normalize_with_example(x, state.mean, state.var, weight=0.5)
      >>> [round(float(v), 3) for v in y[0, :, 0]]  # (x - 2) / sqrt(2 + .5 + 4)
      [0.0, 1.569]

    References: Summers, Dinneen, "Four Things Everyone Should Know to Improve Batch
      Normalization", 2020, section 3.1.
    """
    params = BatchNormParams(None, None) if params is None else params
    x, features = check_call(x, params, None, axis, epsilon)
    _check_examples(features, axis)
    mean, var = check_statistics(mean, var)
    check_features(x, features, params, mean, var)
    known = check_number("weight", weight, "a number in [0, 1]")
    if known is not None and not 0 <= known <= 1:
        raise ValueError(
            f"Expected `weight`, that of the example's own statistics, in [0, 1], got {weight}."
            " 0 uses the given statistics alone."
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
    # Not by `merge`, which is its value: at weight 0 that has no derivative by the weight.
    gap = centered.remainder - mean
    # All in units of the mixture's deviation, for squares may overflow.
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


def _check_examples(features: tuple[int, ...], axis: int | Sequence[int]) -> None:
    if 0 in features:
        raise ValueError(
            f"Expected examples along the first axis, got the feature axis {axis}, which is the "
            "first. Move it: jnp.moveaxis(x, 0, -1)."
        )


def _space(x: Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """List the axes that are neither examples nor features."""
    return tuple(a for a in reduction_axes(x, features) if a != 0)


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


def _in_groups(x: Array, groups: int, size: int) -> Array:
    """Reshape `(N, ...)` to `(groups, size, ...)`, completing the last group with zeros."""
    x = jnp.pad(x, [(0, groups * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(groups, size, *x.shape[1:])
