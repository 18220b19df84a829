"""What counts as the params and the state of a layer: one rule for the functions that convert.

A NamedTuple comes back from a checkpoint that was restored without a target as a mapping, and Flax
keeps mappings anyway. Where the keys say what it is, such a mapping is taken; anything else is an
error that says how to make the tuple.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jbn.types import BatchNormParams, BatchNormState


def as_params(params: Any) -> BatchNormParams:
    """Return params as `BatchNormParams`: they are, or a mapping with the keys scale, bias or both.

    Raises: TypeError: anything else.
    """
    if isinstance(params, BatchNormParams):
        return params
    if isinstance(params, Mapping) and params and params.keys() <= {"scale", "bias"}:
        return BatchNormParams(params.get("scale"), params.get("bias"))
    raise TypeError(
        f"Expected `params` as BatchNormParams or as a mapping with the keys scale and bias, got "
        f"{describe(params)}. {_remedy(params, 'params', BatchNormParams)}"
    )


def as_state(state: Any) -> BatchNormState:
    """Return a state as `BatchNormState`: it is one, or a mapping with the keys mean and var.

    A mapping may have a count, which is 0 where it has none.

    Raises: TypeError: anything else; a mean or var of None.
    """
    if isinstance(state, Mapping) and {"mean", "var"} <= state.keys() <= {"mean", "var", "count"}:
        count = state.get("count")
        count = jnp.zeros((), jnp.int32) if count is None else count
        state = BatchNormState(state["mean"], state["var"], count)
    if not isinstance(state, BatchNormState):
        raise TypeError(
            f"Expected `state` as BatchNormState or as a mapping with the keys mean, var and "
            f"count, got {describe(state)}. {_remedy(state, 'state', BatchNormState)}"
        )
    for name in ("mean", "var"):
        if getattr(state, name) is None:
            raise TypeError(
                f"Expected a state with a mean and a var, got None for {name}. Make it with "
                "jbn.init, and pass it as `state`."
            )
    return state


def as_arrays(
    params: BatchNormParams, state: BatchNormState
) -> tuple[BatchNormParams, BatchNormState]:
    """Return trees of JAX's arrays; the count stays as it is."""

    def array(name: str, value: Any) -> Any:
        return value if value is None else as_array(name, value, "Pass one value per feature.")

    params = BatchNormParams(array("params.scale", params.scale), array("params.bias", params.bias))
    mean, var = array("state.mean", state.mean), array("state.var", state.var)
    return params, BatchNormState(mean, var, state.count)


def as_array(name: str, value: Any, remedy: str) -> Array:
    """Return the value as an array; `remedy` is what to do where it is none."""
    try:
        if isinstance(value, str | bytes):  # NumPy reads some as names of dtypes.
            raise TypeError
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"Expected `{name}` as an array, got {describe(value)}. {remedy}") from None


def _remedy(value: Any, name: str, kind: type) -> str:
    if isinstance(value, BatchNormParams | BatchNormState):
        return "Are params and state swapped?"
    if isinstance(value, tuple) and any(isinstance(part, BatchNormParams) for part in value):
        return "Unpack what jbn.init or a converter returned: params, state = ..."
    if isinstance(value, tuple | list):
        return f"Pass jbn.{kind.__name__}(*{name}), if it has {', '.join(kind._fields)}."
    if isinstance(value, Mapping) and {"params", "batch_stats"} & value.keys():
        return "Take one layer out of the variables: jbn.convert.from_linen(variables, path)."
    if isinstance(value, Mapping) and value:
        return f"Pass jbn.{kind.__name__}(**{name}), once its keys are {', '.join(kind._fields)}."
    if kind is BatchNormParams:
        return "Without scale and bias it is jbn.BatchNormParams(None, None)."
    return "Make it with jbn.init."


def describe(value: Any) -> str:
    """Say what came, in a few words of a message."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {_listed(map(str, value), 'the keys', 'no keys')}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        kinds = dict.fromkeys(type(part).__name__ for part in value)
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds)})"
    if isinstance(value, str | bool | int | float) or value is None:
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and {value.dtype}"
    return f"{type(value).__module__}.{type(value).__name__}"


def _listed(names: Any, label: str, none: str) -> str:
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{label} {', '.join(map(repr, names[:10]))}{more}" if names else none
