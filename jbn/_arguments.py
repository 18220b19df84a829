"""Numbers, flags, parameters and states as users pass them: what is checked, how it travels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jbn._schedules import Schedule
from jbn.types import BatchNormParams, BatchNormState

# ---- Numbers and flags ---------------------------------------------------------------------------


def as_scalar(value: ArrayLike, x: Any) -> ArrayLike:
    """Put a Python or NumPy number beside x, on its way into a cached jit.

    Explicitly: as an argument it would be an implicit transfer, which a transfer guard forbids.
    While x is traced it stays a number, which the compiler then knows.
    """
    if isinstance(value, jax.Array) or isinstance(x, jax.core.Tracer):
        return value
    return jax.device_put(value)


def check_number(name: str, value: Any, expected: str) -> float | None:
    """Check that value is one real number; return it if that needs no waiting for a device."""
    dtype = None
    if isinstance(value, (int, float, jax.Array, np.ndarray, np.generic)):
        dtype = jnp.result_type(value)
    if (
        dtype is None
        or isinstance(value, bool)
        or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
    ):
        raise TypeError(
            f"Expected `{name}` to be {expected}, got {_described(value)}. Pass a number."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"Expected `{name}` to be {expected}, got shape {jnp.shape(value)}. Pass one number "
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
    if known is not None and not known > 0:
        raise ValueError(f"Expected a positive `epsilon`, got {epsilon}. The usual one is 1e-5.")


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
    elif count is None:  # Nothing moves.
        value = 1.0
    else:
        value = momentum(count)
    check_momentum(value)
    return as_scalar(value, x)


def check_flag(name: str, value: Any) -> bool:
    """Check that a static flag is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"Expected `{name}` to be True or False, got {_described(value)}. It decides what is "
            "compiled: pass it to jax.jit as a static argument."
        )
    return bool(value)


# ---- Parameters and states -----------------------------------------------------------------------


def check_params(params: Any) -> BatchNormParams:
    """Reject what is not BatchNormParams, with the line that makes them of it."""
    if not isinstance(params, BatchNormParams):
        raise TypeError(_remedy("params", BatchNormParams, params))
    return params


def check_state(state: Any) -> BatchNormState:
    """Reject what is not a BatchNormState, with the line that makes one of it."""
    if not isinstance(state, BatchNormState):
        raise TypeError(_remedy("state", BatchNormState, state))
    if not hasattr(state.count, "dtype"):
        raise TypeError(
            f"Expected `state.count` to be an int32 array, got {_described(state.count)}. Write "
            "state._replace(count=jnp.int32(n))."
        )
    return state


def _remedy(name: str, kind: type, value: Any) -> str:
    other = BatchNormState if kind is BatchNormParams else BatchNormParams
    fields = kind._fields
    if isinstance(value, Mapping) and set(value) <= set(fields) and value:
        remedy = f"Write jbn.{kind.__name__}(**{name})"
        missing = [field for field in fields if field not in value]
        remedy += f", with {' and '.join(missing)} added." if missing else "."
    elif isinstance(value, other):
        remedy = "params and state are swapped: the order is (x, params, state)."
    elif isinstance(value, tuple) and any(isinstance(v, kind) for v in value):
        remedy = "jbn.init returns both: params, state = jbn.init(num_features)."
    elif type(value) in (list, tuple) and len(value) == len(fields):
        remedy = f"Write jbn.{kind.__name__}(*{name})."
    elif value is None and kind is BatchNormParams:
        remedy = "For no scale and bias pass jbn.BatchNormParams(None, None)."
    else:
        remedy = "Make them with params, state = jbn.init(num_features)."
    return f"Expected `{name}` to be jbn.{kind.__name__}, got {_described(value)}. {remedy}"


def _described(value: Any) -> str:
    """Describe a value for a message, in a few words."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return repr(value)
    if isinstance(value, jax.core.Tracer):
        return f"a traced {value.dtype} of shape {value.shape}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {value.dtype} and shape {value.shape}"
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(repr, list(value)[:4]))}"
    return f"a {type(value).__name__}"
