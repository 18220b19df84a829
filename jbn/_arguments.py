"""Checks of the numbers, flags, parameters and states that users pass."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jbn._inputs import as_array, as_index, check_fields, describe, is_array
from jbn._layer_trees import remedy
from jbn._schedules import Schedule, at_count
from jbn._types import BatchNormParams, BatchNormState

# ---- Numbers and flags ---------------------------------------------------------------------------


def as_scalar(value: ArrayLike, x: Any) -> ArrayLike:
    """Transfer a Python or NumPy number to the device before it is passed to a cached jit.

    Passed as it is, it would be transferred implicitly, which a transfer guard forbids. If x is
    traced, it stays a number, which the compiler then treats as a constant.
    """
    if isinstance(value, jax.Array) or isinstance(x, jax.core.Tracer):
        return value
    return jax.device_put(float(value) if isinstance(value, int) else value)


def check_number(name: str, value: Any, expected: str) -> float | None:
    """Check that value is one real number; return it unless that means waiting for a device."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_array(value):
        is_number = any(jnp.issubdtype(value.dtype, kind) for kind in (np.floating, np.integer))
    if not is_number:
        raise TypeError(
            f"Expected `{name}` to be {expected}, got {describe(value)}. Pass a number."
        )
    if np.shape(value) != ():
        raise ValueError(
            f"Expected `{name}` to be {expected}, got shape {np.shape(value)}. Pass one number "
            "for all features."
        )
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array):
        ready = value.is_fully_addressable and value.is_ready()  # pyrefly: ignore[missing-attribute]
        if not ready:
            return None
        value = jax.device_get(value)
    return float(value)


def check_epsilon(epsilon: Any) -> None:
    """Reject an epsilon that is not positive, where its value is known."""
    known = check_number("epsilon", epsilon, "a positive number")
    if known is None:
        return
    if not 0 < known < math.inf:
        raise ValueError(
            f"Expected a positive and finite `epsilon`, got {epsilon}. The usual one is 1e-5."
        )
    least = jnp.finfo(jnp.result_type(float))
    if known < least.tiny:
        raise ValueError(
            f"Expected `epsilon` of at least {least.tiny:.2g}, the smallest normal {least.dtype}, "
            f"got {epsilon}, which counts as 0. The usual one is 1e-5."
        )


def check_momentum(momentum: Any) -> None:
    """Reject a momentum outside [0, 1], where its value is known; a schedule passes."""
    if callable(momentum):
        return
    expected = "a number in [0, 1] or a schedule such as jbn.cumulative"
    known = check_number("momentum", momentum, expected)
    if known is not None and not 0 <= known <= 1:
        raise ValueError(
            f"Expected `momentum`, the weight of the old value, in [0, 1], got {momentum}. "
            "PyTorch's momentum is 1 minus this one."
        )


def weight_of_old(momentum: ArrayLike | Schedule, count: Any, x: Any) -> ArrayLike:
    """Evaluate momentum if it is a schedule of the count, and check the value where it is known."""
    if not callable(momentum):
        value = momentum
    elif count is None:  # There is no state to update.
        value = 1.0
    else:
        value = at_count("momentum", momentum, count)
        check_number("momentum(count)", value, "a number in [0, 1]")
    check_momentum(value)
    return as_scalar(value, x)


def check_flag(name: str, value: Any) -> bool:
    """Check that a static flag is True or False."""
    if not isinstance(value, bool | np.bool_):
        how = "Pass one of the two, and an array as bool(...)."
        if isinstance(value, jax.core.Tracer):
            how = "It decides what is compiled: pass it to jax.jit as a static argument."
        raise TypeError(f"Expected `{name}` to be True or False, got {describe(value)}. {how}")
    return bool(value)


def check_size(name: str, value: Any, remedy: str) -> int:
    """Check that a static size is a positive int."""
    size = as_index(value)
    if size is None:
        raise TypeError(f"Expected `{name}` to be a positive int, got {describe(value)}. {remedy}")
    if size < 1:
        raise ValueError(f"Expected `{name}` to be a positive int, got {size}. {remedy}")
    return size


# ---- Parameters and states -----------------------------------------------------------------------


def check_params(params: Any) -> BatchNormParams:
    """Check that params are BatchNormParams of arrays; the error says how to make them."""
    if not isinstance(params, BatchNormParams):
        raise TypeError(_not(BatchNormParams, "params", params))
    check_fields("params", params, optional=True)
    return params


def check_state(state: Any) -> BatchNormState:
    """Check that state is a BatchNormState of arrays; the error says how to make one."""
    if not isinstance(state, BatchNormState):
        raise TypeError(_not(BatchNormState, "state", state))
    if not is_array(state.count):
        raise TypeError(
            f"Expected `state.count` to be an int32 array, got {describe(state.count)}. Write "
            "state._replace(count=jnp.int32(n))."
        )
    check_fields("state", state)
    if np.shape(state.count) != ():
        raise ValueError(
            f"Expected `state.count` to be one number, got shape {np.shape(state.count)}. States "
            "that are stacked go through jax.vmap, each by itself."
        )
    return state


def check_statistics(mean: ArrayLike, var: ArrayLike) -> tuple[Array, Array]:
    """Check that mean and var are floating arrays, and that var is real."""
    how = "Pass state.mean and state.var, or moments of data."
    mean, var = as_array("mean", mean, how), as_array("var", var, how)
    for name, value in (("mean", mean), ("var", var)):
        if not jnp.issubdtype(value.dtype, jnp.inexact if name == "mean" else jnp.floating):
            raise TypeError(f"Expected a floating `{name}`, got {value.dtype}. {how}")
    return mean, var


def _not(kind: type, name: str, value: Any) -> str:
    return (
        f"Expected `{name}` to be jbn.{kind.__name__}, got {describe(value)}. "
        f"{remedy(name, kind, value)}"
    )
