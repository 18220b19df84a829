"""Equinox: `eqx.nn.BatchNorm` and its `State`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jbn._inputs import describe
from jbn._types import BatchNormParams, BatchNormState
from jbn.convert._arrays import as_array
from jbn.convert.common import (
    ConversionError,
    Converted,
    Options,
    Reader,
    check_layer,
)
from jbn.convert.options import Debiased, FirstBatch

_KEYS = {field: field for field in ("mean", "var", "count")} | {"scale": "weight", "bias": "bias"}


def from_equinox(
    layer: Any,
    state: Any,
    *,
    num_features: int | None = None,
    options: Options | None = None,
) -> Converted:
    """Convert a batch norm of Equinox and its part of the state.

    `mode="batch"` stores sums that are divided by 1 - momentum^count when read, so the momentum is
    `Debiased`. From count 1 on, jbn continues in exactly the same way. Equinox' sum of variances
    starts at 1 instead of 0, which jbn does not reproduce: a layer converted before its first step
    has the correct variance after it. `mode="ema"` starts from the first batch, so the momentum is
    `FirstBatch`; the state tells only whether there has been a batch, so count is 0 or 1. In
    training that mode normalizes by the running statistics, which `batch_norm` never does: only
    evaluation and the updates of the statistics agree.

    Args:
      layer: `eqx.nn.BatchNorm`.
      state: `eqx.nn.State` of the layer, or of the model that contains it.
      num_features: C, checked if given.
      options: the options you expect; an error is raised if the layer's differ.

    Returns:
      `(params, state, options)`. Arrays are copies. The running variance is biased.

    Raises:
      ConversionError: lists every missing part, wrong shape and unexpected option, and says what
        was found if it is not a batch norm.

    Example:
      >>> import types, numpy as np, jbn
      >>> layer = types.SimpleNamespace(weight=None, bias=None, mode="ema", momentum=0.9, eps=1e-5,
      ...     ema_first_time_index="first", ema_state_index="statistics")  # eqx.nn.BatchNorm(...)
      >>> state = {"first": np.array(False), "statistics": (np.zeros(3), np.ones(3))}
      >>> params, state, options = jbn.convert.from_equinox(layer, state)
      >>> int(state.count), options.momentum
      (1, FirstBatch(decay=0.9))

    References:
      https://docs.kidger.site/equinox/api/nn/normalization/
    """
    reader = Reader("Equinox layer", _KEYS)
    _check_kinds(reader.where, layer, state)
    arrays: dict[str, Any] = {"weight": layer.weight, "bias": layer.bias}
    momentum = float(layer.momentum)
    if layer.mode == "ema":
        mean, var = _kept(reader.where, state, layer.ema_state_index)
        count = jnp.where(as_array(state.get(layer.ema_first_time_index)), 0, 1)
        schedule = FirstBatch(momentum)
    else:
        mean, var = (
            as_array(value) for value in _kept(reader.where, state, layer.batch_state_index)
        )
        count = as_array(state.get(layer.batch_counter))
        missing = _missing(momentum, count, mean.dtype)
        mean, var = mean / missing, var / missing
        schedule = Debiased(momentum)
    reader.read(arrays | {"mean": mean, "var": var, "count": count}, *_KEYS, required=False)
    own = Options(schedule, float(layer.eps), unbiased=False)
    return reader.finish(own, own, options, num_features)


def _check_kinds(where: str, layer: Any, state: Any) -> None:
    problems = []
    if not (hasattr(layer, "mode") and hasattr(layer, "momentum") and hasattr(layer, "eps")):
        problems.append(
            f"{where}: `layer` is {describe(layer)}, expected eqx.nn.BatchNorm. Pass the layer, "
            "such as model.norm, with the model's whole state."
        )
    if not hasattr(state, "get"):
        problems.append(
            f"{where}: the state is {describe(state)}, expected the eqx.nn.State that "
            "eqx.nn.make_with_state returns with the model."
        )
    if problems:
        raise ConversionError(problems)


def _kept(where: str, state: Any, index: Any) -> tuple[Any, Any]:
    pair = state.get(index)
    if pair is None:
        problem = "the state has none of this layer, expected that of its model."
        raise ConversionError([f"{where}: {problem}"])
    return pair


def _missing(momentum: float, count: Array, dtype: Any) -> Array:
    """Return what Equinox divides by, in its own precision, so that evaluation is the same."""
    scale = jnp.where(count == 0, 1, 1 - momentum**count)
    return scale.astype(dtype)


def to_equinox(
    params: BatchNormParams,
    state: BatchNormState,
    layer: Any,
    eqx_state: Any,
    *,
    options: Options | None = None,
) -> tuple[Any, Any]:
    """Write a layer into a batch norm of Equinox and its state.

    `mode="ema"` keeps the statistics bit for bit, but of the count only whether it is 0.
    `mode="batch"` keeps the count, and the statistics times 1 - momentum^count, which rounds in
    both directions.

    Args:
      params, state: params and state of a layer with one feature axis.
      layer: `eqx.nn.BatchNorm` to fill.
      eqx_state: `eqx.nn.State` of the layer, or of the model that contains it. It stays valid.
      options: options to check against those of `layer`.

    Returns:
      A new `(layer, eqx_state)`.

    Raises:
      ConversionError: lists shapes and options that do not match the layer; a count that is not a
        whole number, as after averaging states; a layer or state of another kind.
      TypeError: params or state of another type.

    Example: `layer, state = to_equinox(*jbn.init(3), *eqx.nn.make_with_state(eqx.nn.BatchNorm)(
      3, axis_name="batch", mode="batch"))`.
    """
    import equinox as eqx

    params, state = check_layer("to_equinox", params, state, with_count=True)
    reader = Reader("Equinox layer", _KEYS)
    own = from_equinox(layer, eqx_state, options=None).options
    new = {"weight": params.scale, "bias": params.bias}
    for name, array in new.items():
        old = getattr(layer, name)
        if (old is None) != (array is None):
            reader.problems.append(
                f"{reader.where}: {name} is {'there' if array is None else 'None'}, expected "
                f"{'None' if array is None else 'one'} as in params. Make the layer with "
                f"channelwise_affine={array is not None}."
            )
    if layer.input_size != jnp.size(state.mean):
        reader.problems.append(
            f"{reader.where}: input_size is {layer.input_size}, expected {jnp.size(state.mean)}."
        )
    if options is not None:
        reader.check_options(own, options)
    if reader.problems:
        raise ConversionError(reader.problems)

    # `set` invalidates the state it is called on; with a copy, the caller's stays valid.
    eqx_state = jax.tree.unflatten(*reversed(jax.tree.flatten(eqx_state)))
    if layer.mode == "ema":
        old = eqx_state.get(layer.ema_state_index)
        values = (state.mean, state.var)
        eqx_state = eqx_state.set(layer.ema_first_time_index, state.count == 0)
        index = layer.ema_state_index
    else:
        old = eqx_state.get(layer.batch_state_index)
        missing = _missing(float(layer.momentum), state.count, old[0].dtype)
        values = (state.mean * missing, state.var * missing)
        # Equinox' counter starts as a Python int, weakly typed, and `set` requires the same type.
        weak = eqx_state.get(layer.batch_counter).weak_type
        count = jnp.asarray(int(state.count)) if weak else state.count
        eqx_state = eqx_state.set(layer.batch_counter, count)
        index = layer.batch_state_index
    values = tuple(v.astype(o.dtype) for v, o in zip(values, old, strict=True))
    eqx_state = eqx_state.set(index, values)
    if params.scale is not None:
        layer = eqx.tree_at(
            lambda tree: (tree.weight, tree.bias), layer, (params.scale, params.bias)
        )
    return layer, eqx_state
