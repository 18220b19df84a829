"""The update of running statistics."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._arguments import check_flag, check_state, weight_of_old
from jbn._dtypes import promote_types
from jbn._inputs import check_fields, describe
from jbn._moments import effective_count
from jbn._schedules import Schedule
from jbn._sharding import like
from jbn._types import BatchNormState, Moments, WeightedMoments


def update(
    state: BatchNormState,
    moments: Moments | WeightedMoments,
    *,
    momentum: ArrayLike | Schedule,
    unbiased: bool = True,
) -> BatchNormState:
    """Move running statistics toward the moments of one batch.

    new = momentum * old + (1 - momentum) * batch, for mean and var. With `unbiased`, the batch's
    var is first multiplied by Bessel's correction n / (n - 1), where n is the count, or the
    effective count with float weights. All running statistics are updated here.

    Args:
      state: running statistics, `(C,)`.
      moments: moments of the batch, `(C,)`, with biased var.
      momentum: weight of the *old* value, in [0, 1] (PyTorch's momentum is 1 - this), or a
        schedule of it: a function of `state.count`, such as `jbn.cumulative`. May be traced. At 0
        the old value is replaced and at 1 it is kept, even if the other value is NaN.
      unbiased: apply Bessel's correction to var.

    Returns:
      BatchNormState of the same shapes and dtypes. count increases by one, up to the largest value
      of its dtype. Where n is 1, the mean moves and var does not, since one value has no variance.
      A feature with total weight 0 keeps its statistics; if all features do, the state is returned
      unchanged. A variance too large for the dtype is clipped to the largest finite number.

    Raises:
      TypeError: state or moments of another type.
      ValueError: a momentum known at trace time outside [0, 1]; different shapes.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, state = jbn.init(1)
      >>> batch = jbn.moments(jnp.array([[1.0], [3.0]]))
      >>> state = jbn.update(state, batch, momentum=0.5)
      >>> float(state.mean[0]), float(state.var[0]), int(state.count)
      (1.0, 1.5, 1)

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, section 3.1 and Algorithm 2.
    """
    check_state(state)
    unbiased = check_flag("unbiased", unbiased)
    if not isinstance(moments, (Moments, WeightedMoments)):
        raise TypeError(
            f"Expected `moments` to be jbn.Moments, got {describe(moments)}. "
            "Take them with jbn.moments(x)."
        )
    check_fields("moments", moments)
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(moments)}
    if shapes != {jnp.shape(state.mean)}:
        raise ValueError(
            f"Expected moments of the state's shape {jnp.shape(state.mean)}, got "
            f"{sorted(shapes)}. Make the state with jbn.init for these features."
        )
    weight = weight_of_old(momentum, state.count, moments.mean)
    return updated(state, moments, weight, unbiased=unbiased)


@functools.partial(jax.jit, static_argnames=("unbiased", "several"))
def updated(
    state: BatchNormState,
    moments: Moments | WeightedMoments,
    momentum: ArrayLike,
    *,
    unbiased: bool,
    several: bool = False,
) -> BatchNormState:
    """Move running statistics as `update` does, with arguments that are already checked.

    `several` means that every feature is known to have more than one value.
    """
    n = effective_count(moments)
    if several:
        has_one = has_two = None
        factor = n / (n - 1)
    else:
        has_one = ~(moments.count <= 0)
        # A single float weight has n = 1 up to rounding.
        has_two = has_one & ~(n <= 1 + 4 * jnp.finfo(n.dtype).eps)
        factor = jnp.where(has_two, n / jnp.where(has_two, n - 1, 1), 1)
    var = moments.var * factor if unbiased else moments.var
    var = jnp.minimum(var, jnp.finfo(var.dtype).max)

    def moved(old: Array, batch: Array, has: Array | None) -> Array:
        dtype = promote_types(old.dtype, batch.dtype)
        batch = like(batch, old)
        weight = jnp.asarray(momentum).astype(jnp.finfo(dtype).dtype)
        # A value of weight 0 may be NaN.
        old_part = jnp.where((weight != 0) | jnp.isfinite(old), old.astype(dtype), 0)
        new_part = jnp.where((weight != 1) | jnp.isfinite(batch), batch.astype(dtype), 0)
        new = weight.astype(dtype) * old_part + (1 - weight).astype(dtype) * new_part
        new = new.astype(old.dtype)
        return new if has is None else jnp.where(like(has, old), new, old)

    absorbed = jnp.asarray(True) if has_one is None else jnp.any(has_one)
    if jnp.issubdtype(state.count.dtype, jnp.integer):  # It must not wrap around.
        absorbed = absorbed & (state.count < jnp.iinfo(state.count.dtype).max)
    return BatchNormState(
        mean=moved(state.mean, moments.mean, has_one),
        var=moved(state.var, var, has_two),
        count=state.count + absorbed.astype(state.count.dtype),
    )
