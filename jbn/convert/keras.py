"""Keras 3: `keras.layers.BatchNormalization`, as a layer or its list of weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbn.convert.common import ConversionError, Converted, Options, Reader, check_layer
from jbn.types import BatchNormParams, BatchNormState

# Not 1e-5: Keras' own.
DEFAULT = Options(momentum=0.99, epsilon=1e-3, unbiased=False)
_KEYS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def from_keras(
    source: Any,
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    num_features: int | None = None,
    options: Options | None = None,
) -> Converted:
    """Convert a batch norm of Keras.

    Weights hold neither momentum nor epsilon: from them, they are `options`, or Keras' defaults,
    whose epsilon is 1e-3. A layer has them: there `options` is what you expect, and anything else
    an error. Keras' running variance is biased, and it has no count: that is 0.

    Args:
      source: a built layer; its `get_weights()`, in Keras' order gamma, beta, moving_mean,
        moving_variance; or a mapping of these names.
      use_scale, use_bias: whether a list, which has no names, begins with gamma, beta.
      num_features: C, if it should be checked.
      options: see above.

    Returns: `(params, state, options)`. Arrays are copies.
    Raises: ConversionError: lists every missing weight, wrong shape and unexpected option.

    Example:
      >>> import numpy as np, jbn
      >>> weights = [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)]
      >>> params, state, options = jbn.convert.from_keras(weights)
      >>> options
      Options(momentum=0.99, epsilon=0.001, unbiased=False)

    References: https://keras.io/api/layers/normalization_layers/batch_normalization/
    """
    own = None
    name = getattr(source, "name", "")
    reader = Reader(f"Keras layer {name!r}" if name else "Keras layer", _KEYS)
    if hasattr(source, "moving_mean"):
        own = Options(float(source.momentum), float(source.epsilon), unbiased=False)
        use_scale, use_bias = source.scale, source.center
        # By name: with renorm, get_weights() holds more.
        source = {key: getattr(source, key, None) for key in _KEYS.values()}
    elif not isinstance(source, Mapping):
        used = {"scale": use_scale, "bias": use_bias, "mean": True, "var": True}
        keys = [_KEYS[field] for field, is_used in used.items() if is_used]
        if len(source) != len(keys):
            raise ConversionError(
                [
                    f"{reader.where}: {len(source)} weights, expected {len(keys)}: "
                    f"{', '.join(keys)}. Say use_scale=False or use_bias=False for a layer "
                    "without gamma (scale) or beta (center)."
                ]
            )
        source = dict(zip(keys, source, strict=True))
    else:
        use_scale, use_bias = (_KEYS[field] in source for field in ("scale", "bias"))
    reader.read(source, "scale", required=use_scale)
    reader.read(source, "bias", required=use_bias)
    reader.read(source, "mean", "var")
    return reader.finish(own, DEFAULT, options, num_features)


def to_keras(params: BatchNormParams, state: BatchNormState) -> list[np.ndarray]:
    """Make the list for `set_weights` of a Keras batch norm; only the count is lost.

    Args: params, state: of a layer with one feature axis; scale or bias None means a Keras layer
      made with `scale=False`, `center=False`.
    Returns: list of gamma, beta (where they are), moving_mean, moving_variance.
      `layer_arguments(options, "keras")` has the momentum and epsilon for the layer.
    Raises: ConversionError: more than one feature axis, or shapes that differ.

    Example:
      >>> import jbn
      >>> [weight.tolist() for weight in jbn.convert.to_keras(*jbn.init(2))]
      [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    check_layer("to_keras", params, state)
    arrays = (params.scale, params.bias, state.mean, state.var)
    return [np.array(array) for array in arrays if array is not None]
