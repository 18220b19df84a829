"""Flax: `BatchNorm` of linen and nnx, and jbn's own layers, which keep the same variables."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from jbn.convert.common import Converted, Options, Reader, check_layer
from jbn.types import BatchNormParams, BatchNormState

DEFAULT = Options(momentum=0.99, epsilon=1e-5, unbiased=False)
_KEYS = {field: field for field in ("scale", "bias", "mean", "var", "count")}


def from_linen(
    variables: Mapping[str, Any],
    path: str = "",
    *,
    num_features: int | None = None,
    options: Options | None = None,
) -> Converted:
    """Convert the variables of a linen batch norm.

    They hold neither momentum nor epsilon: those are `options`, or Flax's defaults; Flax's
    running variance is biased. A count is there if jbn's layer has a schedule, else it is 0.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of a layer or of a model.
      path: names from the model to the layer, such as "block_0/norm".
      num_features: C, if it should be checked.
      options: see above.

    Returns: `(params, state, options)`. Arrays are copies.
    Raises: ConversionError: lists every missing variable and wrong shape.

    Example:
      >>> import numpy as np, jbn
      >>> variables = {"params": {"norm": {"scale": np.ones(3)}},
      ...     "batch_stats": {"norm": {"mean": np.zeros(3), "var": np.ones(3)}}}
      >>> params, state, options = jbn.convert.from_linen(variables, "norm")
      >>> params.scale.shape, params.bias
      ((3,), None)
    """
    reader = Reader(f"linen layer {path!r}" if path else "linen layer", _KEYS)
    learned, stats = (_at(variables, f"{top}/{path}") for top in ("params", "batch_stats"))
    reader.read(learned, "scale", "bias", required=False)
    reader.read(stats, "mean", "var")
    reader.read(stats, "count", required=False)
    return reader.finish(None, DEFAULT, options, num_features)


def _at(tree: Any, path: str) -> Mapping[str, Any]:
    """Return the mapping at a path; an empty one if there is none, whose keys are then missing."""
    for name in filter(None, path.split("/")):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def to_linen(
    params: BatchNormParams, state: BatchNormState, path: str = "", *, with_count: bool = False
) -> dict[str, Any]:
    """Make the variables of a linen batch norm; without `with_count` the count is lost.

    Args:
      params, state: of a layer, any number of feature axes.
      path: names from the model to the layer, such as "block_0/norm".
      with_count: keep the count, as jbn's layer does where its momentum is a schedule.

    Returns: `{"params": ..., "batch_stats": ...}`, nested as the path says; no "params" where scale
      and bias are None.

    Example:
      >>> import jbn
      >>> jbn.convert.to_linen(*jbn.init(1), "norm")["batch_stats"]
      {'norm': {'mean': Array([0.], dtype=float32), 'var': Array([1.], dtype=float32)}}
    """
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
    source: Any, *, num_features: int | None = None, options: Options | None = None
) -> Converted:
    """Convert a batch norm of nnx.

    A state holds neither momentum nor epsilon: from one, they are `options`, or Flax's defaults. A
    layer has them: there `options` is what you expect, and anything else an error. The running
    variance is biased, unless the layer says so (jbn's); a count is there if the layer has one.

    Args:
      source: the layer, its `nnx.state`, or a mapping of arrays scale, bias, mean, var.
      num_features: C, if it should be checked.
      options: see above.

    Returns: `(params, state, options)`. Arrays are copies.
    Raises: ConversionError: lists every missing variable, wrong shape and unexpected option.

    Example:
      >>> import numpy as np, jbn
      >>> params, state, options = jbn.convert.from_nnx({"mean": np.zeros(3), "var": np.ones(3)})
      >>> params
      BatchNormParams(scale=None, bias=None)
    """
    own = None
    reader = Reader("nnx layer", _KEYS)
    if hasattr(source, "epsilon"):
        own = Options(source.momentum, source.epsilon, getattr(source, "unbiased", False))
        source = {name: getattr(source, name, None) for name in _KEYS}
    reader.read(source, "mean", "var")
    reader.read(source, "scale", "bias", "count", required=False)
    return reader.finish(own, DEFAULT, options, num_features)


def to_nnx(
    params: BatchNormParams, state: BatchNormState, *, with_count: bool = False
) -> dict[str, Array]:
    """Make what `nnx.update(layer, ...)` takes; without `with_count` the count is lost.

    Args:
      params, state: of a layer with one feature axis.
      with_count: keep the count, as jbn's layer does where its momentum is a schedule.

    Returns: dict of scale, bias (where they are), mean, var.
    Raises: ConversionError: more than one feature axis, or shapes that differ.

    Example:
      >>> import jbn
      >>> sorted(jbn.convert.to_nnx(*jbn.init(3)))
      ['bias', 'mean', 'scale', 'var']
    """
    check_layer("to_nnx", params, state)
    stats = {**params._asdict(), "mean": state.mean, "var": state.var}
    if with_count:
        stats["count"] = state.count
    return {name: array for name, array in stats.items() if array is not None}
