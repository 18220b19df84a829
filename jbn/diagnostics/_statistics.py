"""Statistics of layers, found anywhere in a pytree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jbn._inputs import as_array
from jbn._types import BatchNormState, is_statistics


class Statistics(NamedTuple):
    """Statistics of one layer; count is None if the layer keeps none."""

    mean: Array
    var: Array
    count: Array | None


def statistics(tree: Any) -> dict[str, Statistics]:
    """Find mean, var and count of every layer in a pytree, by the layer's name.

    Raises:
      ValueError: no statistics; an empty mean and var, or of different shapes.
      TypeError: a mean or var that is not an array.
    """
    found = {}
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_statistics)[0]:
        if is_statistics(node):
            fields = node._asdict() if isinstance(node, BatchNormState) else node
            found[_name(path)] = _one_layer(_name(path), fields)
    if not found:
        raise ValueError(
            "Expected BatchNormState or dicts with `mean` and `var`, found none. Pass the "
            "statistics, such as variables['batch_stats'], not the parameters."
        )
    return found


def _one_layer(name: str, fields: Mapping[str, Any]) -> Statistics:
    remedy = "Pass one layer's running statistics, a value per feature."
    mean, var = (
        as_array(f"{key} of layer {name!r}", fields[key], remedy) for key in ("mean", "var")
    )
    if mean.shape != var.shape or not mean.size:
        raise ValueError(
            f"Expected mean and var of one shape in layer {name!r}, got {mean.shape} and "
            f"{var.shape}. {remedy}"
        )
    count = fields.get("count")
    if count is not None and np.shape(count) != ():
        raise ValueError(
            f"Expected one count in layer {name!r}, got shape {np.shape(count)}. Take one "
            "device's copy of replicated statistics."
        )
    return Statistics(mean, var, count)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "layer"
