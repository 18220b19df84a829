"""Decay schedules: how much the old running statistics weigh, as a function of the batch count."""

import math
from collections.abc import Callable
from numbers import Real

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

Schedule = Callable[[Int[Array, ""]], ArrayLike]


def cumulative(count: Int[ArrayLike, ""]) -> Float[Array, ""]:
    """Weigh all batches since count 0 equally: count / (count + 1), a schedule for `momentum`.

    The running statistics are then the means over batches that Algorithm 2 asks for.

    Args: count: batches absorbed so far.
    Returns: weight of the old value, float32.

    Example:
      >>> import jbn
      >>> [float(jbn.cumulative(count)) for count in (0, 1, 3)]
      [0.0, 0.5, 0.75]

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 10.
    """
    count = jnp.asarray(count, jnp.result_type(float))
    return count / (count + 1)


def debiased(decay: ArrayLike) -> Schedule:
    """Make the schedule of an exponential average that forgets its initial value at once.

    After t batches, mean = sum_i decay^(t-i) batch_i (1 - decay) / (1 - decay^t). As a weight of
    the old value that is decay (1 - decay^t) / (1 - decay^(t+1)): 0 at count 0, `decay` in the end.

    Args: decay: in [0, 1), the weight of the old value in the long run. May be traced.
    Returns: schedule, count -> weight of the old value, for `momentum`.
    Raises: ValueError: a decay known at trace time outside [0, 1).

    Example:
      >>> import jbn
      >>> schedule = jbn.debiased(0.5)
      >>> [round(float(schedule(count)), 4) for count in (0, 1, 100)]
      [0.0, 0.3333, 0.5]

    References: Kingma, Ba, "Adam", 2015, section 3.
    """
    if isinstance(decay, Real) and not 0 <= decay < 1:
        raise ValueError(
            f"Expected `decay` in [0, 1), got {decay}. For equal weights use jbn.cumulative."
        )

    def schedule(count: Int[ArrayLike, ""]) -> Float[Array, ""]:
        t = jnp.asarray(count, jnp.result_type(float))
        if isinstance(decay, Real):  # In double precision: log(float32(.9999)) is 3e-4 off.
            rate = jnp.asarray(math.log(decay) if decay else -jnp.inf, t.dtype)
        else:
            rate = jnp.log(jnp.asarray(decay, t.dtype))
        # 1 - decay^t without cancellation; 0 at t = 0 for decay 0 as well, where t * rate is NaN.
        missing = jnp.where(t > 0, -jnp.expm1(jnp.where(t > 0, t, 1) * rate), 0)
        return jnp.asarray(decay, t.dtype) * missing / -jnp.expm1((t + 1) * rate)

    return schedule


def moving_average(values: Shaped[ArrayLike, "K ..."], *, window: int) -> Float[Array, "K ..."]:
    """Average each value with the ones before it, `window` of them or as many as there are.

    The simple moving average that textbooks use to explain running statistics.

    Args:
      values: one per step along the first axis, `(K, ...)`.
      window: how many values, at least 1.
    Returns: `(K, ...)`, float32 at least.
    Raises: ValueError: window not a positive int; no values.

    Example:
      >>> import jbn
      >>> jbn.moving_average([100, 110, 130, 120, 140], window=2).tolist()
      [100.0, 105.0, 120.0, 125.0, 130.0]
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(
            f"Expected `window` to be a positive int, got {window!r}. "
            "Pass the number of values to average."
        )
    values = jnp.asarray(values)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(
            f"Expected one or more values along a first axis, got shape {values.shape}. "
            "Pass a sequence with one value per step."
        )
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    window = min(window, values.shape[0])
    # Each window on its own: differences of one running sum would lose digits along the way.
    padded = jnp.concatenate([jnp.zeros((window - 1, *values.shape[1:]), values.dtype), values])
    total = sum(padded[i : i + values.shape[0]] for i in range(window))
    have = jnp.minimum(jnp.arange(1, values.shape[0] + 1), window)
    return total / have.reshape(-1, *(1,) * (values.ndim - 1))
