"""Batch normalization by statistics other than the whole batch's: ghost batches, renorm, blends.

Each is `batch_norm` with other vectors: y = deviation * a + b about the pivot of `centre`, so all
keep its precision and its one array for the backward pass.

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

import math
from collections.abc import Callable, Sequence
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact, Int

from jbn._center import Centred, abs_squared, merge
from jbn._schedules import Schedule
from jbn.batch_norm import batch_norm, check_epsilon, check_features, factors
from jbn.collectives import AxisName
from jbn.moments import as_inexact, as_weights, centre_features, feature_axes, to_features
from jbn.running import check_momentum, update
from jbn.types import BatchNormParams, BatchNormState, Moments

Limit = ArrayLike | Callable[[Int[Array, ""]], ArrayLike]


def ghost_batch_norm(
    x: Inexact[ArrayLike, "N ..."],
    params: BatchNormParams,
    state: BatchNormState,
    *,
    training: bool,
    batch_size: int,
    axis: int | Sequence[int] = -1,
    momentum: ArrayLike | Schedule = 0.99,
    epsilon: ArrayLike = 1e-5,
    unbiased: bool = True,
    mask: ArrayLike | None = None,
) -> tuple[Array, BatchNormState]:
    """Normalise each `batch_size` consecutive examples by their own moments, in training.

    A large batch then has the noise of small ones, which Hoffer et al. find to generalise better.
    What is left over at the end is a group of its own. In inference as `batch_norm`.

    The state moves once per call, by the moments of all groups merged, which are the batch's own:
    it is the state that `batch_norm` returns, whatever `batch_size`, and `momentum` keeps its
    meaning. Hoffer et al. (Algorithm 1) move it by each group in turn, so that the last group
    weighs most and a ragged one as much as a full one; both estimate the same population.

    Args:
      x: the batch, examples along the first axis, floating or complex.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`.
      training: static; False returns the state as it came and ignores batch_size and mask.
      batch_size: examples per group, static. As many as x has or more make one group.
      axis: feature axis or axes, not the first; all others are reduced.
      momentum, epsilon, unbiased: as for `batch_norm`.
      mask: as for `batch_norm`. A group without any weight is normalised by the running
        statistics; if all are without, the state comes back unchanged.

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
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
        raise ValueError(
            f"Expected `batch_size` to be a positive int, got {batch_size!r}. "
            "Pass the number of examples per group, such as 32."
        )
    if training is not True:
        return batch_norm(
            x, params, state, training=training, axis=axis, momentum=momentum, epsilon=epsilon
        )
    x, features = _checked(x, axis, params, state, momentum, epsilon)
    _check_examples(features, axis)
    examples = x.shape[0]
    if x.size == 0:
        centre_features(x, features, None, None, None)  # Says what to do with an empty batch.
    size = min(int(batch_size), examples)
    last = examples % size or size
    if mask is None and last * _values(x, (0, *features)) == 1:
        raise ValueError(
            "Expected more than one value per feature in every group in training, got x.shape="
            f"{x.shape} with batch_size={batch_size}, whose last group has one: its variance is 0 "
            "and y would be the bias alone. Use a batch_size that leaves no single example, drop "
            "that example, or mask it."
        )

    # The group is one more feature axis; padding completes the last one and weighs nothing.
    weights = None if mask is None else as_weights(mask, x)
    if weights is None and last < size:
        weights = jnp.ones((1,) * x.ndim, bool)
    grouped = _in_groups(x, size)
    if weights is not None:
        weights = _in_groups(jnp.broadcast_to(weights, (examples, *weights.shape[1:])), size)
    centred = centre_features(grouped, (0, *(a + 1 for a in features)), weights, None, None)
    mean, var = (v.reshape(1, *centred.pivot.shape[1:]) for v in (state.mean, state.var))
    remainder, used = _or_running(centred, mean, var, weights is not None)
    a, b = factors(remainder, used, BatchNormParams(None, None), epsilon)
    y = centred.scale_and_shift(*_affine(a, b, params))

    pivot, local, spread, count = merge(
        centred.pivot, centred.remainder, centred.moments.var, centred.moments.count
    )
    batch = Moments(*(to_features(v, features) for v in (pivot + local, spread, count)))
    state = update(state, batch, momentum=momentum, unbiased=unbiased)
    return y.reshape(-1, *x.shape[1:])[:examples].astype(x.dtype), state


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
    """Normalise x by the batch, corrected towards the running statistics, in training.

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
      training: static; False returns the state as it came.
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
    r_limit = _limit(r_max, state.count, "r_max", 1)
    d_limit = _limit(d_max, state.count, "d_max", 0)
    if training is not True:
        return batch_norm(
            x, params, state, training=training, axis=axis, momentum=momentum, epsilon=epsilon
        )
    x, features = _checked(x, axis, params, state, momentum, epsilon)
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected real x, got {x.dtype}: a complex d has no order to be clipped in. "
            "Use jbn.batch_norm, or stack real and imaginary parts as features."
        )
    if mask is None and axis_name is None and _values(x, features) == 1:
        raise ValueError(
            f"Expected more than one value per feature in training, got x.shape={x.shape} with "
            f"feature axis {axis}: the batch variance is 0 and y would not depend on x but through "
            "d, which has no gradient. Use a larger batch, pool devices with axis_name, or "
            "normalise with training=False."
        )
    centred = centre_features(x, features, mask, axis_name, axis_index_groups)
    mean, var = (v.reshape(centred.pivot.shape) for v in (state.mean, state.var))
    remainder, used = _or_running(centred, mean, var, mask is not None)

    real = used.dtype
    rstd = jax.lax.rsqrt(var.astype(real) + jnp.asarray(epsilon, real))
    r_limit, d_limit = jnp.asarray(r_limit, real), jnp.asarray(d_limit, real)
    r = jnp.clip(jnp.sqrt(used + jnp.asarray(epsilon, real)) * rstd, 1 / r_limit, r_limit)
    # Both means seen from the pivot: rounded into one number first, d would lose its digits.
    d = jnp.clip((remainder - (mean.astype(real) - centred.pivot)) * rstd, -d_limit, d_limit)
    r, d = jax.lax.stop_gradient((r, d))
    # scale (xhat r + d) + bias is batch norm with other parameters.
    scale, bias = (None if p is None else p.reshape(r.shape).astype(real) for p in params)
    shift = d if scale is None else d * scale
    corrected = BatchNormParams(
        r if scale is None else r * scale, shift if bias is None else shift + bias
    )
    y = centred.scale_and_shift(*factors(remainder, used, corrected, epsilon))
    batch = Moments(*(to_features(v, features) for v in centred.moments))
    return y.astype(x.dtype), update(state, batch, momentum=momentum, unbiased=unbiased)


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
    """Normalise x by given statistics mixed with each example's own: inference example weighing.

    With mean_x, var_x of one example over its positions and w = `weight`, the moments of the
    mixture: mean' = w mean_x + (1 - w) mean and
    var' = w var_x + (1 - w) var + w (1 - w) |mean_x - mean|^2, which is
    w E[x^2 of the example] + (1 - w) E[x^2] - mean'^2 without its cancellation. In training an
    example is part of the batch that normalises it; this restores some of that in inference.

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
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    _check_examples(features, axis)
    params = BatchNormParams(None, None) if params is None else params
    mean, var = jnp.asarray(mean), jnp.asarray(var)
    check_features(x, features, params, mean, var)
    check_epsilon(epsilon)
    if isinstance(weight, Real) and not 0 <= weight <= 1:
        raise ValueError(
            f"Expected `weight`, that of the example's own statistics, in [0, 1], got {weight}."
            " 0 uses the given statistics alone."
        )
    centred = centre_features(x, (0, *features), None, None, None)
    given, spread = (v.reshape(1, *centred.pivot.shape[1:]) for v in (mean, var))
    own = centred.moments.var
    # Not by `merge`, which is its value: at weight 0 that has no derivative by the weight.
    w = jnp.asarray(weight, own.dtype)
    given = given.astype(centred.pivot.dtype) - centred.pivot
    gap = centred.remainder - given
    spread = (1 - w) * spread.astype(own.dtype) + w * own + w * (1 - w) * abs_squared(gap)
    a, b = factors(given + w * gap, spread, BatchNormParams(None, None), epsilon)
    return centred.scale_and_shift(*_affine(a, b, params)).astype(x.dtype)


def _checked(
    x: ArrayLike,
    axis: int | Sequence[int],
    params: BatchNormParams,
    state: BatchNormState,
    momentum: ArrayLike | Schedule,
    epsilon: ArrayLike,
) -> tuple[Array, tuple[int, ...]]:
    """Check what all share; return x and its feature axes."""
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    check_features(x, features, params, state.mean, state.var)
    check_epsilon(epsilon)
    if not callable(momentum):
        check_momentum(momentum)
    return x, features


def _check_examples(features: tuple[int, ...], axis: int | Sequence[int]) -> None:
    if 0 in features:
        raise ValueError(
            f"Expected examples along the first axis, got the feature axis {axis}, which is the "
            "first. Move it: jnp.moveaxis(x, 0, -1)."
        )


def _values(x: Array, kept: tuple[int, ...]) -> int:
    """Count the values that are reduced for one position along the axes that are kept."""
    return math.prod(size for a, size in enumerate(x.shape) if a not in kept)


def _limit(limit: Limit, count: Array, name: str, least: int) -> ArrayLike:
    """Evaluate the schedule of r_max or d_max, and check it where its value is known."""
    value = limit(count) if callable(limit) else limit
    if isinstance(value, Real) and not value >= least:
        raise ValueError(
            f"Expected `{name}` to be at least {least}, got {value}. "
            "r_max=1 with d_max=0 is plain batch norm; 3 and 5 are the paper's last values."
        )
    return value


def _affine(a: Array, b: Array, params: BatchNormParams) -> tuple[Array, Array]:
    """Apply scale and bias, `(C,)`, to the factors of each group or example."""
    scale, bias = (p if p is None else p.reshape(1, *a.shape[1:]).astype(a.dtype) for p in params)
    a, b = (a, b) if scale is None else (a * scale, b * scale)
    return a, b if bias is None else b + bias


def _in_groups(x: Array, size: int) -> Array:
    """Reshape `(N, ...)` to `(groups, size, ...)`, completing the last group with zeros."""
    missing = -x.shape[0] % size
    if missing:
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])


def _or_running(centred: Centred, mean: Array, var: Array, masked: bool) -> tuple[Array, Array]:
    """Return remainder and var, where nothing has weight those of the running statistics."""
    remainder, own = centred.remainder, centred.moments.var
    if not masked:
        return remainder, own
    has = centred.moments.count > 0
    return jnp.where(has, remainder, mean - centred.pivot), jnp.where(has, own, var)
