"""What is accepted as the params and state of a layer: one rule for all conversions.

A checkpoint restored without a target returns mappings in place of NamedTuples, and Flax uses
mappings anyway. A mapping is accepted if its keys identify it; anything else is an error that says
how to make the tuple.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jbn._inputs import as_array, describe
from jbn._types import BatchNormParams, BatchNormState, Moments, WeightedMoments


def as_params(params: Any) -> BatchNormParams:
    """Return params, or a mapping with the keys scale, bias or both, as `BatchNormParams`.

    Raises:
      TypeError: anything else.
    """
    if isinstance(params, BatchNormParams):
        return params
    if isinstance(params, Mapping) and params and params.keys() <= {"scale", "bias"}:
        return BatchNormParams(params.get("scale"), params.get("bias"))
    raise TypeError(
        f"Expected `params` as BatchNormParams or as a mapping with the keys scale and bias, got "
        f"{describe(params)}. {remedy('params', BatchNormParams, params)}"
    )


def as_state(state: Any) -> BatchNormState:
    """Return a state, or a mapping with the keys mean and var, as `BatchNormState`.

    A mapping may also have a count; without one, the count is 0.

    Raises:
      TypeError: anything else; a mean or var of None.
    """
    if isinstance(state, Mapping) and {"mean", "var"} <= state.keys() <= {"mean", "var", "count"}:
        count = state.get("count")
        count = jnp.zeros((), jnp.int32) if count is None else count
        state = BatchNormState(state["mean"], state["var"], count)
    if not isinstance(state, BatchNormState):
        raise TypeError(
            f"Expected `state` as BatchNormState or as a mapping with the keys mean, var and "
            f"count, got {describe(state)}. {remedy('state', BatchNormState, state)}"
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
    """Convert all fields to JAX arrays, except the count, which is left as it is."""

    def array(name: str, value: Any) -> Any:
        return value if value is None else as_array(name, value, "Pass one value per feature.")

    params = BatchNormParams(array("params.scale", params.scale), array("params.bias", params.bias))
    mean, var = array("state.mean", state.mean), array("state.var", state.var)
    return params, BatchNormState(mean, var, state.count)


def remedy(name: str, kind: type, value: Any) -> str:
    """Say how to make params or a state from what was passed instead."""
    fields, line = kind._fields, f"jbn.{kind.__name__}"
    if isinstance(value, BatchNormParams | BatchNormState):
        return "Are params and state swapped? Params come first."
    if isinstance(value, tuple) and any(isinstance(part, kind) for part in value):
        return "Unpack what jbn.init or a converter returned: params, state = ..."
    if isinstance(value, Moments | WeightedMoments):
        return "These are moments of one batch: jbn.update(state, moments) takes them second."
    if type(value) in (tuple, list):
        return f"Pass {line}(*{name}), if it has {', '.join(fields)}."
    if isinstance(value, Mapping) and {"params", "batch_stats"} & value.keys():
        return "Take one layer out of the variables: jbn.convert.from_linen(variables, path)."
    if isinstance(value, Mapping) and value and value.keys() <= set(fields):
        missing = [field for field in fields if field not in value]
        added = f", with {' and '.join(missing)} added" if missing else ""
        return f"Pass {line}(**{name}){added}."
    if isinstance(value, Mapping) and value:
        return f"Pass {line}(**{name}), once its keys are {', '.join(fields)}."
    if kind is BatchNormParams:
        return "Make them with jbn.init, or jbn.BatchNormParams(None, None) for no scale and bias."
    return "Make it with jbn.init."
