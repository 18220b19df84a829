"""Keras 3: `keras.layers.BatchNormalization`, as a layer or its list of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbn._inputs import describe
from jbn._types import BatchNormParams, BatchNormState
from jbn.convert.common import (
    ConversionError,
    Converted,
    Options,
    Reader,
    check_layer,
    layers_there,
)

# Keras' default epsilon is not 1e-5.
DEFAULT = Options(momentum=0.99, epsilon=1e-3, unbiased=False)
_KEYS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def from_keras(
    source: Any,
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    num_features: int | None = None,
    options: Options | None = None,
    count: int | None = None,
) -> Converted:
    """Convert a batch norm of Keras.

    Weights hold neither momentum nor epsilon, so these come from `options` or are Keras' defaults,
    whose epsilon is 1e-3. A layer holds them; then `options` are those you expect, and a difference
    is an error. Keras' running variance is biased, and it keeps no count.

    Args:
      source: a built layer; its `get_weights()`, in Keras' order gamma, beta, moving_mean,
        moving_variance; or a mapping with these names.
      use_scale, use_bias: whether a list, which has no names, includes gamma and beta.
      num_features: C, checked if given.
      options: options of the layer; see above.
      count: number of batches absorbed. None means 0, and is an error if a schedule would use it.

    Returns:
      `(params, state, options)`. Arrays are copies.

    Raises:
      ConversionError: lists every missing weight, wrong shape and unexpected option, and says what
        was found if it is not a batch norm.

    Example:
      >>> import numpy as np, jbn
      >>> weights = [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)]
      >>> params, state, options = jbn.convert.from_keras(weights)
      >>> options
      Options(momentum=0.99, epsilon=0.001, unbiased=False)

    References:
      https://keras.io/api/layers/normalization_layers/batch_normalization/
    """
    own = None
    name = getattr(source, "name", "")
    where = f"Keras layer {name!r}" if name else "Keras layer"
    if hasattr(source, "moving_mean"):
        own = Options(float(source.momentum), float(source.epsilon), unbiased=False)
        use_scale, use_bias = source.scale, source.center
        # By name, since with renorm get_weights() holds more.
        source = {key: getattr(source, key, None) for key in _KEYS.values()}
    elif isinstance(source, Mapping):
        use_scale, use_bias = (_KEYS[field] in source for field in ("scale", "bias"))
    else:
        source = _named(where, source, use_scale, use_bias)
    reader = Reader(where, _KEYS, _hint(source, own))
    reader.read(source, "scale", required=use_scale)
    reader.read(source, "bias", required=use_bias)
    reader.read(source, "mean", "var")
    return reader.finish(own, DEFAULT, options, num_features, count)


def _hint(source: Mapping[str, Any], own: Options | None) -> str:
    if own is not None:
        return "Build the layer first: call it, or layer.build(shape)."
    return f"The source is {describe(source)}."


def _named(where: str, source: Any, use_scale: bool, use_bias: bool) -> dict[str, Any]:
    """Name the weights of a list, which are in Keras' order."""
    if hasattr(source, "layers"):
        norms = [layer.name for layer in source.layers if hasattr(layer, "moving_mean")]
        problem = f"is a {type(source).__name__}, expected one BatchNormalization; " + layers_there(
            norms,
            "Pass model.get_layer(name).",
            "Pass a layer, or model.get_layer(name) of a model inside that has one.",
        )
    elif not isinstance(source, list | tuple) and not np.ndim(source):
        problem = f"is {describe(source)}, expected a BatchNormalization or its get_weights()."
    else:
        used = {"scale": use_scale, "bias": use_bias, "mean": True, "var": True}
        keys = [_KEYS[field] for field, is_used in used.items() if is_used]
        if len(source) == len(keys):
            return dict(zip(keys, source, strict=True))
        problem = (
            f"{len(source)} weights, expected {len(keys)}: {', '.join(keys)}. Pass use_scale=False "
            "or use_bias=False for a layer without gamma (scale) or beta (center)."
        )
    raise ConversionError([f"{where}: {problem}"])


def to_keras(params: BatchNormParams, state: BatchNormState) -> list[np.ndarray]:
    """Make the list for `set_weights` of a Keras batch norm; only the count is lost.

    Args:
      params, state: params and state of a layer with one feature axis. If scale or bias is None,
        make the Keras layer with `scale=False` or `center=False`.

    Returns:
      List of gamma and beta (unless None), moving_mean and moving_variance.
      `framework_kwargs(options, "keras")` gives the momentum and epsilon for the layer.

    Raises:
      ConversionError: more than one feature axis, or different shapes.
      TypeError: params or state of another type.

    Example:
      >>> import jbn
      >>> [weight.tolist() for weight in jbn.convert.to_keras(*jbn.init(2))]
      [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    params, state = check_layer("to_keras", params, state, with_count=False)
    arrays = (params.scale, params.bias, state.mean, state.var)
    return [np.array(array) for array in arrays if array is not None]
