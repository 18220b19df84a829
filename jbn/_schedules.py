"""Schedules: functions of the batch count, for `momentum` and for the limits of batch renorm.

Those made here are frozen dataclasses: they can be pickled, and equal ones are equal static
arguments. Each is one compiled function, so a call outside `jit` costs one dispatch. Its numbers
are static: as arguments, they would be transferred to the device in every call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jbn._dtypes import wide_dtype
from jbn._inputs import as_array, as_index, describe, is_array

Schedule = Callable[[Int[Array, ""]], ArrayLike]


def at_count(name: str, schedule: Schedule, count: Any) -> Any:
    """Call a schedule; if it cannot be called with one count, raise an error that says so.

    Errors raised inside the schedule are passed on as they are.
    """
    try:
        return schedule(count)
    except TypeError:
        takes = _other_arguments(schedule)
        if takes is None:
            raise
        raise TypeError(
            f"Expected `{name}` to be a schedule that is called as {name}(count) and returns a "
            f"number, got {describe(schedule)}{takes}. Write it as lambda count: ..., or pass a "
            "number."
        ) from None


def _other_arguments(schedule: Any) -> str | None:
    """Say what arguments a schedule takes if it cannot take one count; None if it may take one."""
    if isinstance(schedule, type):
        return ""
    try:
        signature = inspect.signature(schedule)
    except (TypeError, ValueError):  # Some C functions have none.
        return None
    try:
        signature.bind(0)
    except TypeError:
        return f" of {signature}"
    return None


def cumulative(count: Int[ArrayLike, ""]) -> Float[Array, ""]:
    """Schedule for `momentum` that weights all batches equally: count / (count + 1).

    The running statistics are then the averages over batches of Algorithm 2.

    Args:
      count: number of batches absorbed so far.

    Returns:
      Weight of the old value, float32.

    Example:
      >>> import jbn
      >>> [float(jbn.cumulative(count)) for count in (0, 1, 3)]
      [0.0, 0.5, 0.75]

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 10.
    """
    return _cumulative(_as_operand(count))


@dataclasses.dataclass(frozen=True, eq=False)
class _OfDecay:
    """A schedule with a decay in [0, 1): a float or a traced array.

    Equal decays make equal schedules; a traced one equals only itself, since its value is unknown.
    """

    decay: ArrayLike

    def __post_init__(self) -> None:
        decay: Any = self.decay
        if isinstance(decay, np.ndarray | jax.Array) and not isinstance(decay, jax.core.Tracer):
            decay = decay.item() if decay.ndim == 0 and is_array(decay) else decay
            object.__setattr__(self, "decay", decay)
        is_scalar = isinstance(decay, Real) or (isinstance(decay, jax.Array) and decay.ndim == 0)
        if isinstance(decay, bool) or not is_scalar:
            raise TypeError(
                f"Expected `decay` to be a number in [0, 1), got {describe(decay)}. Pass the "
                "weight of the old value in the long run, such as 0.99."
            )
        if isinstance(decay, Real) and not 0 <= float(decay) < 1:
            raise ValueError(
                f"Expected `decay` in [0, 1), got {decay}. For equal weights use jbn.cumulative."
            )

    def _key(self) -> Any:
        return self.decay if isinstance(self.decay, Real) else id(self.decay)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))


class Debiased(_OfDecay):
    """The schedule that `debiased` returns, with its decay: Haiku's moving average.

    Example:
      >>> import jbn
      >>> jbn.debiased(0.5)
      Debiased(decay=0.5)
    """

    def __call__(self, count: Int[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the weight of the old value after `count` batches, float32."""
        weight = _debiased if isinstance(self.decay, Real) else _debiased_traced
        return weight(_as_operand(count), self.decay)


class FirstBatch(_OfDecay):
    """Schedule with weight 0 for the first batch and `decay` after it: Equinox' `mode="ema"`.

    Example:
      >>> import jbn
      >>> [float(jbn.convert.FirstBatch(0.5)(count)) for count in (0, 1, 2)]
      [0.0, 0.5, 0.5]
    """

    def __call__(self, count: Int[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the weight of the old value after `count` batches, float32."""
        return Switched(1, 0.0, self.decay)(count)


@dataclasses.dataclass(frozen=True)
class Switched:
    """Schedule that is `before` for `steps` counts, then `after`, a number or another schedule."""

    steps: int
    before: float
    after: ArrayLike | Schedule

    def __call__(self, count: Int[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the value after `count` batches, float32."""
        operand = _as_operand(count)
        after = self.after
        if callable(after):
            after = at_count("schedule", after, operand)
        switched = _switched if isinstance(after, Real) else _switched_traced
        return switched(operand, self.steps, self.before, after)


def debiased(decay: ArrayLike) -> Debiased:
    """Make the schedule of a bias-corrected exponential average, without the initial value.

    After t batches, mean = sum_i decay^(t-i) batch_i (1 - decay) / (1 - decay^t). The weight of the
    old value is decay (1 - decay^t) / (1 - decay^(t+1)): 0 at count 0, approaching `decay`.

    Args:
      decay: weight of the old value in the long run, in [0, 1). May be traced.

    Returns:
      Schedule for `momentum`, count -> weight of the old value. It can be pickled, and compares
      equal to another schedule of the same decay, unless the decay is traced.

    Raises:
      TypeError: a decay that is not a number.
      ValueError: a decay known at trace time outside [0, 1).

    Example:
      >>> import jbn
      >>> schedule = jbn.debiased(0.5)
      >>> [round(float(schedule(count)), 4) for count in (0, 1, 100)]
      [0.0, 0.3333, 0.5]
      >>> schedule == jbn.debiased(0.5)
      True

    References:
      Kingma, Ba, "Adam", 2015, section 3.
    """
    return Debiased(decay)


def _as_operand(count: Int[ArrayLike, ""]) -> Any:
    """Convert a count that is a Python number to float, since int32 ends at 2^31."""
    if isinstance(count, Real):
        return float(count)
    return as_array("count", count, "Pass state.count.")


def _as_float(count: ArrayLike) -> Array:
    """Convert the count to float before 1 is added to it, which could overflow int32."""
    return jnp.asarray(count, jnp.result_type(float))


@jax.jit
def _cumulative(count: ArrayLike) -> Array:
    count = _as_float(count)
    return count / (count + 1)


def _debiased_weight(count: ArrayLike, decay: ArrayLike) -> Array:
    t = _as_float(count)
    if isinstance(decay, Real):  # In double precision: log(float32(.9999)) is 3e-4 off.
        rate = jnp.asarray(math.log(decay) if decay else -jnp.inf, t.dtype)
    else:
        rate = jnp.log(jnp.asarray(decay, t.dtype))
    # 1 - decay^t without cancellation; 0 at t = 0 even for decay 0, where t * rate would be NaN.
    missing = jnp.where(t > 0, -jnp.expm1(jnp.where(t > 0, t, 1) * rate), 0)
    return jnp.asarray(decay, t.dtype) * missing / -jnp.expm1((t + 1) * rate)


_debiased = jax.jit(_debiased_weight, static_argnums=1)
_debiased_traced = jax.jit(_debiased_weight)


def _switch(count: Array, steps: int, before: float, after: ArrayLike) -> Array:
    dtype = jnp.result_type(float)
    return jnp.where(count >= steps, jnp.asarray(after, dtype), jnp.asarray(before, dtype))


_switched = jax.jit(_switch, static_argnums=(1, 2, 3))
_switched_traced = jax.jit(_switch, static_argnums=(1, 2))


def moving_average(values: Shaped[ArrayLike, "K ..."], *, window: int) -> Float[Array, "K ..."]:
    """Compute the simple moving average: the mean of the last `window` values, fewer at the start.

    Textbooks use it to explain running statistics.

    Args:
      values: one per step along the first axis, `(K, ...)`.
      window: number of values to average, at least 1.

    Returns:
      `(K, ...)`, at least float32.

    Raises:
      TypeError: window not an int.
      ValueError: window not positive; no values.

    Example:
      >>> import jbn
      >>> jbn.moving_average([100, 110, 130, 120, 140], window=2).tolist()
      [100.0, 105.0, 120.0, 125.0, 130.0]
    """
    size = as_index(window)
    if size is None or size < 1:
        raise (TypeError if size is None else ValueError)(
            f"Expected `window` to be a positive int, got {describe(window)}. "
            "Pass the number of values to average."
        )
    values = as_array("values", values, "Pass a sequence of numbers, one per step.")
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(
            f"Expected one or more values along a first axis, got shape {values.shape}. "
            "Pass a sequence with one value per step."
        )
    return _moving_average(values, window=min(size, values.shape[0]))


@functools.partial(jax.jit, static_argnames="window")
def _moving_average(values: Array, *, window: int) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # Widening is intended, even under "strict".
        values = values.astype(wide_dtype(values.dtype))
    # Each window is summed separately: differences of one running sum would lose precision.
    padded = jnp.concatenate([jnp.zeros((window - 1, *values.shape[1:]), values.dtype), values])
    total = sum(padded[i : i + values.shape[0]] for i in range(window))
    have = jnp.minimum(jnp.arange(1, values.shape[0] + 1), window)
    return total / have.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
