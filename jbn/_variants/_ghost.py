"""Ghost batch normalization: groups of a batch, each normalized by its own statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact

from jbn._arguments import (
    as_scalar,
    check_flag,
    check_momentum,
    check_size,
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
    running_mean,
    vectors,
)
from jbn._center import center, merge
from jbn._running import update
from jbn._schedules import Schedule
from jbn._sharding import gathered
from jbn._types import BatchNormParams, BatchNormState, OptionalState
from jbn._variants._axes import check_examples, space_axes


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
    """Normalize groups of `batch_size` consecutive examples by their own moments, in training.

    A large batch then has the noise of small ones, which Hoffer et al. find to generalize better.
    A final partial group is normalized on its own. Inference is the same as in `batch_norm`.

    The state is updated once per call with the merged moments of all groups, which are those of the
    whole batch. So the state equals that of `batch_norm` for any `batch_size`, and `momentum` keeps
    its meaning. Hoffer et al. (Algorithm 1) update it with each group in turn, so that the last
    group has the largest weight, even if it is partial; both estimate the same population.

    Args:
      x: the batch, examples along the first axis, floating or complex.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`. May be None in training: then none are kept.
      training: static. If False, returns `state` unchanged and ignores `batch_size` and `mask`.
      batch_size: examples per group, static. If x has no more than that, it is one group.
      axis: feature axis or axes, not the first; all others are reduced.
      momentum, epsilon, unbiased: as for `batch_norm`.
      mask: as for `batch_norm`. A fully masked group is normalized by the running statistics, and
        has no gradient with respect to its weights; if all groups are fully masked, the state is
        returned unchanged.

    Returns:
      `(y, state)`: y of x's shape and dtype, state of the same shapes and dtypes as before. Groups
      do not extend over devices; use `synchronize` to pool the states of several devices.

    Raises:
      TypeError, ValueError: as `batch_norm`; batch_size not a positive int; the first axis as a
        feature axis; a group with one value per feature, whose variance would be 0.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(1)
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> y, state = jbn.ghost_batch_norm(x, params, state, training=True, batch_size=2)
      >>> [round(float(v), 3) for v in y[:, 0]]
      [-1.0, 1.0, -1.0, 1.0]

    References:
      Hoffer, Hubara, Soudry, "Train longer, generalize better", 2017, Algorithm 1.
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
    check_examples(features, axis)
    check_batch(x)
    mask = check_mask(mask, x, features)
    running: BatchNormState | None = state
    examples, size = x.shape[0], batch_size
    if isinstance(examples, int):  # Else it is symbolic, in jax.export.
        size = min(size, examples)
        last = examples % size or size
        if mask is None and last * math.prod(x.shape[a] for a in space_axes(x, features)) == 1:
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
    groups = (examples + size - 1) // size  # jax.export knows this to be positive.
    missing = groups * size - examples
    # Padding completes the last group and has no weight.
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


def _in_groups(x: Array, groups: int, size: int) -> Array:
    """Reshape `(N, ...)` to `(groups, size, ...)`, completing the last group with zeros."""
    x = jnp.pad(x, [(0, groups * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(groups, size, *x.shape[1:])
