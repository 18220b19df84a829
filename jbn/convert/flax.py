"""Flax: `BatchNorm` of linen and nnx, and jbn's own layers, which keep the same variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from jbn._inputs import describe
from jbn._types import BatchNormParams, BatchNormState
from jbn.convert.common import (
    ConversionError,
    Converted,
    Options,
    Reader,
    check_layer,
    check_name,
    layers_there,
    paths_of_statistics,
)

DEFAULT = Options(momentum=0.99, epsilon=1e-5, unbiased=False)
_KEYS = {field: field for field in ("scale", "bias", "mean", "var", "count")}


def from_linen(
    variables: Mapping[str, Any],
    path: str = "",
    *,
    num_features: int | None = None,
    options: Options | None = None,
    count: int | None = None,
) -> Converted:
    """Convert the variables of a linen batch norm.

    Variables hold neither momentum nor epsilon, so these come from `options` or are Flax's
    defaults. Flax's running variance is biased. The count is read if there is one, as in jbn's
    layer with a schedule.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of a layer or of a model.
      path: path from the model to the layer, such as "block_0/norm".
      num_features: C, checked if given.
      options: options of the layer; see above.
      count: number of batches absorbed, if the variables have none. None means 0, and is an error
        if a schedule would use it.

    Returns:
      `(params, state, options)`. Arrays are copies.

    Raises:
      ConversionError: lists every missing variable and wrong shape, and says what was found if it
        is not a batch norm.

    Example:
      >>> import numpy as np, jbn
      >>> variables = {"params": {"norm": {"scale": np.ones(3)}},
      ...     "batch_stats": {"norm": {"mean": np.zeros(3), "var": np.ones(3)}}}
      >>> params, state, options = jbn.convert.from_linen(variables, "norm")
      >>> params.scale.shape, params.bias
      ((3,), None)
    """
    path = check_name("linen layer", "path", path)
    where = f"linen layer {path!r}" if path else "linen layer"
    if not isinstance(variables, Mapping):
        raise ConversionError(
            [
                f"{where}: the variables are {describe(variables)}, expected a dict with the keys "
                "'params' and 'batch_stats', as model.init returns it."
            ]
        )
    learned, stats = (_at(variables, f"{top}/{path}") for top in ("params", "batch_stats"))
    reader = Reader(where, _KEYS, _found(variables, path, learned))
    reader.read(learned, "scale", "bias", required=False)
    reader.read(stats, "mean", "var")
    reader.read(stats, "count", required=False)
    return reader.finish(None, DEFAULT, options, num_features, count)


def _found(variables: Mapping[str, Any], path: str, learned: Mapping[str, Any]) -> str:
    """Say what the variables hold instead of the layer, and what to pass."""
    if "batch_stats" not in variables:
        return (
            f"The variables are {describe(variables)}, without 'batch_stats': pass "
            "{'params': ..., 'batch_stats': ...}."
        )
    there = layers_there(
        paths_of_statistics(variables["batch_stats"]),
        "Pass one of them as `path`.",
        "Pass the variables of a model with batch norms, as its init returned them.",
        path,
    )
    other = " Layer and group norm have none;" if {"scale", "bias"} & learned.keys() else ""
    return f"{other} {there}".strip()


def _at(tree: Any, path: str) -> Mapping[str, Any]:
    """Return the mapping at a path, or an empty one, whose keys are then reported missing."""
    for name in filter(None, path.split("/")):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def to_linen(
    params: BatchNormParams, state: BatchNormState, path: str = "", *, with_count: bool = False
) -> dict[str, Any]:
    """Make the variables of a linen batch norm; without `with_count` the count is lost.

    Args:
      params, state: params and state of a layer, with any number of feature axes.
      path: path from the model to the layer, such as "block_0/norm".
      with_count: keep the count, as jbn's layer does if its momentum is a schedule.

    Returns:
      `{"params": ..., "batch_stats": ...}`, nested by the path, without "params" if scale and bias
      are None.

    Raises:
      ConversionError: different shapes; a count to be kept that is not a whole number.
      TypeError: params or state of another type.

    Example:
      >>> import jbn
      >>> jbn.convert.to_linen(*jbn.init(1), "norm")["batch_stats"]
      {'norm': {'mean': Array([0.], dtype=float32), 'var': Array([1.], dtype=float32)}}
    """
    path = check_name("to_linen", "path", path)
    params, state = check_layer("to_linen", params, state, with_count=with_count, one_axis=False)
    stats = {"mean": state.mean, "var": state.var}
    if with_count:
        stats["count"] = state.count
    learned = {name: p for name, p in params._asdict().items() if p is not None}
    variables: dict[str, Any] = {"params": learned, "batch_stats": stats}
    if not learned:
        del variables["params"]
    for name in reversed([name for name in path.split("/") if name]):
        variables = {top: {name: below} for top, below in variables.items()}
    return variables


def from_nnx(
    source: Any,
    *,
    num_features: int | None = None,
    options: Options | None = None,
    count: int | None = None,
) -> Converted:
    """Convert a batch norm of nnx.

    A state holds neither momentum nor epsilon, so these come from `options` or are Flax's defaults.
    A layer holds them; then `options` are those you expect, and a difference is an error. The
    running variance is biased, unless the layer has `unbiased=True` (jbn's). The count is read if
    there is one.

    Args:
      source: the layer, its `nnx.state`, or a mapping with arrays scale, bias, mean and var.
      num_features: C, checked if given.
      options: options of the layer; see above.
      count: number of batches absorbed, if the source has none. None means 0, and is an error if a
        schedule would use it.

    Returns:
      `(params, state, options)`. Arrays are copies.

    Raises:
      ConversionError: lists every missing variable, wrong shape and unexpected option, and says
        what was found if it is not a batch norm.

    Example:
      >>> import numpy as np, jbn
      >>> params, state, options = jbn.convert.from_nnx({"mean": np.zeros(3), "var": np.ones(3)})
      >>> params
      BatchNormParams(scale=None, bias=None)
    """
    own, hint = None, ""
    if all(hasattr(source, name) for name in ("epsilon", "momentum", "mean", "var")):
        own = Options(source.momentum, source.epsilon, getattr(source, "unbiased", False))
        source = {name: getattr(source, name, None) for name in _KEYS}
    elif isinstance(source, Mapping):
        hint = layers_there(
            paths_of_statistics(source),
            "Pass the part below its name.",
            f"It is {describe(source)}: pass a batch norm, or the part of a state that is its own.",
        )
    else:
        raise ConversionError(
            [
                f"nnx layer: the source is {describe(source)}, expected a BatchNorm or its state. "
                "Pass the layer, such as model.norm."
            ]
        )
    reader = Reader("nnx layer", _KEYS, hint)
    reader.read(source, "mean", "var")
    reader.read(source, "scale", "bias", "count", required=False)
    return reader.finish(own, DEFAULT, options, num_features, count)


def to_nnx(
    params: BatchNormParams, state: BatchNormState, *, with_count: bool = False
) -> dict[str, Array]:
    """Make the argument of `nnx.update(layer, ...)`; without `with_count` the count is lost.

    Args:
      params, state: params and state of a layer with one feature axis.
      with_count: keep the count, as jbn's layer does if its momentum is a schedule.

    Returns:
      Dict of scale and bias (unless None), mean and var.

    Raises:
      ConversionError: more than one feature axis; different shapes; a count to be kept that is not
        a whole number.
      TypeError: params or state of another type.

    Example:
      >>> import jbn
      >>> sorted(jbn.convert.to_nnx(*jbn.init(3)))
      ['bias', 'mean', 'scale', 'var']
    """
    params, state = check_layer("to_nnx", params, state, with_count=with_count)
    stats = {**params._asdict(), "mean": state.mean, "var": state.var}
    if with_count:
        stats["count"] = state.count
    return {name: array for name, array in stats.items() if array is not None}
