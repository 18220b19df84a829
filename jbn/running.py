"""How running statistics move."""

from numbers import Real

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._schedules import Schedule
from jbn.types import BatchNormState, Moments


def update(
    state: BatchNormState,
    moments: Moments,
    *,
    momentum: ArrayLike | Schedule,
    unbiased: bool = True,
) -> BatchNormState:
    """Move running statistics towards the moments of one batch.

    new = momentum * old + (1 - momentum) * batch, for mean and var, where the batch's var takes
    Bessel's factor n / (n - 1) if `unbiased`. The only place where running statistics move.

    Args:
      state: running statistics, `(C,)`.
      moments: of the batch, `(C,)`; var biased.
      momentum: weight of the *old* value, in [0, 1] (PyTorch's momentum is 1 - this), or a
        schedule of it: a function of `state.count`, such as `jbn.cumulative`. May be traced.
      unbiased: correct var by n / (n - 1). Where n is 1 or less, var stays as it is.

    Returns:
      BatchNormState of the same shapes and dtypes, count one higher. A feature without any weight
      keeps its statistics; if all are without, the state comes back unchanged.

    Raises:
      ValueError: a momentum known at trace time outside [0, 1]; shapes that differ.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, state = jbn.init(1)
      >>> batch = jbn.moments(jnp.array([[1.0], [3.0]]))
      >>> state = jbn.update(state, batch, momentum=0.5)
      >>> float(state.mean[0]), float(state.var[0]), int(state.count)
      (1.0, 1.5, 1)

    References: Ioffe, Szegedy, "Batch Normalization", 2015, section 3.1 and Algorithm 2.
    """
    if jnp.shape(state.mean) != jnp.shape(moments.mean):
        raise ValueError(
            f"Expected moments of the state's shape {jnp.shape(state.mean)}, got "
            f"{jnp.shape(moments.mean)}. Make the state with jbn.init for these features."
        )
    old_weight = momentum(state.count) if callable(momentum) else momentum
    check_momentum(old_weight)
    n = moments.count
    bessel = jnp.where(n > 1, n / jnp.where(n > 1, n - 1, 1), 1) if unbiased else 1
    has = n > 0

    def moved(old: Array, batch: Array) -> Array:
        dtype = jnp.promote_types(old.dtype, batch.dtype)
        weight = jnp.asarray(old_weight, jnp.finfo(dtype).dtype)
        return jnp.where(has, weight * old + (1 - weight) * batch, old).astype(old.dtype)

    return BatchNormState(
        mean=moved(state.mean, moments.mean),
        var=moved(state.var, moments.var * bessel),
        count=state.count + jnp.any(has).astype(state.count.dtype),
    )


def check_momentum(momentum: ArrayLike) -> None:
    """Reject a momentum outside [0, 1], where its value is known without waiting for a device."""
    if isinstance(momentum, Real) and not 0 <= momentum <= 1:
        raise ValueError(
            f"Expected `momentum`, the weight of the old value, in [0, 1], got {momentum}. "
            "PyTorch's momentum is 1 minus this one."
        )
