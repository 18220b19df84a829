"""Haiku: `hk.BatchNorm`, whose moving averages are debiased from zero."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbn.convert.common import Converted, Options, Reader, as_array, check_layer
from jbn.convert.options import Debiased
from jbn.types import BatchNormParams, BatchNormState

_KEYS = {
    "scale": "scale",
    "bias": "offset",
    "mean": "mean_ema/average",
    "var": "var_ema/average",
    "count": "mean_ema/counter",
}


def from_haiku(
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    name: str = "batch_norm",
    *,
    decay_rate: float,
    epsilon: float = 1e-5,
    num_features: int | None = None,
) -> Converted:
    """Convert a batch norm of Haiku.

    Its running statistics are the `average` of two `ExponentialMovingAverage`, `hidden` divided by
    1 - decay_rate^counter: `jbn.debiased` by the same decay, without Bessel's factor. Haiku's
    trees hold neither decay_rate nor eps; a decay_rate that does not fit hidden is an error.

    Args:
      params, state: of the transformed function: module name -> arrays.
      name: of the layer's module, such as "net/~/batch_norm".
      decay_rate, epsilon: as given to `hk.BatchNorm`.
      num_features: C, if it should be checked.

    Returns: `(params, state, options)`, with momentum `Debiased(decay_rate)`. Arrays are copies.
    Raises: ConversionError: lists every missing array, wrong shape, and a wrong decay_rate.

    Example:
      >>> import numpy as np, jbn
      >>> def average(value):
      ...     return {"hidden": value * 0.5, "average": value, "counter": np.array(1)}
      >>> params, state, options = jbn.convert.from_haiku(
      ...     {"norm": {"scale": np.ones((1, 3))}}, {"norm/~/mean_ema": average(np.ones((1, 3))),
      ...     "norm/~/var_ema": average(np.ones((1, 3)))}, "norm", decay_rate=0.5)
      >>> state.mean.shape, int(state.count), options.momentum
      ((3,), 1, Debiased(decay=0.5))

    References: Kingma, Ba, "Adam", 2015, section 3 (the correction).
    """
    reader = Reader(f"Haiku layer {name!r}", _KEYS)
    arrays = {key: as_array(value) for key, value in params.get(name, {}).items()}
    averages = {ema: state.get(f"{name}/~/{ema}", {}) for ema in ("mean_ema", "var_ema")}
    for ema, values in averages.items():
        arrays |= {f"{ema}/{key}": as_array(value) for key, value in values.items()}
    # Haiku keeps the axes that it reduced, with length 1.
    arrays = {key: a if a.size == 1 and a.ndim == 0 else _flat(a) for key, a in arrays.items()}
    reader.read(arrays, "scale", "bias", required=False)
    reader.read(arrays, "mean", "var", "count")
    for ema in averages:
        keys = [f"{ema}/{part}" for part in ("hidden", "average", "counter")]
        missing = [key for key in keys if key not in arrays and key not in _KEYS.values()]
        reader.problems.extend(f"{reader.where}: no {key!r}." for key in missing)
        hidden, value, counter = (arrays.get(key) for key in keys)
        if hidden is None or value is None or counter is None or hidden.shape != value.shape:
            continue
        want = value * (1 - decay_rate ** int(counter))
        if not np.allclose(hidden, want, rtol=1e-2, atol=1e-6 * float(jnp.abs(value).max())):
            reader.problems.append(
                f"{reader.where}: {keys[0]!r} does not belong to {keys[1]!r} with decay_rate="
                f"{decay_rate} after {int(counter)} batches. Pass the decay_rate of hk.BatchNorm."
            )
    mean_count, var_count = (arrays.get(f"{ema}/counter") for ema in averages)
    if mean_count is not None and var_count is not None and int(mean_count) != int(var_count):
        reader.problems.append(
            f"{reader.where}: mean_ema has seen {int(mean_count)} batches, var_ema "
            f"{int(var_count)}, expected as many. Take both from one checkpoint."
        )
    options = Options(Debiased(decay_rate), epsilon, unbiased=False)
    return reader.finish(None, options, options, num_features)


def _flat(array: Array) -> Array:
    """Drop axes of length 1 that came from reduction; leave what is not one value per feature."""
    return array.reshape(-1) if array.size == max(array.shape) else array


def to_haiku(
    params: BatchNormParams,
    state: BatchNormState,
    name: str = "batch_norm",
    *,
    decay_rate: float,
    ndim: int = 2,
    axis: int = -1,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the params and state of a Haiku batch norm.

    `average` and `counter` are exact; `hidden`, average * (1 - decay_rate^counter), is rounded,
    so only Haiku -> jbn -> Haiku may differ in the last bit there.

    Args:
      params, state: of a layer with one feature axis.
      name: of the layer's module.
      decay_rate: as given to `hk.BatchNorm`.
      ndim, axis: rank of its input, and the feature axis there.

    Returns: `(params, state)` with these modules alone, to be merged into those of the network.
    Raises: ConversionError: more than one feature axis, or shapes that differ.

    Example:
      >>> import jbn
      >>> params, state = jbn.convert.to_haiku(*jbn.init(3), "norm", decay_rate=0.9, ndim=4)
      >>> params["norm"]["scale"].shape, sorted(state)
      ((1, 1, 1, 3), ['norm/~/mean_ema', 'norm/~/var_ema'])
    """
    check_layer("to_haiku", params, state)
    shape = [1] * ndim
    shape[axis] = jnp.size(state.mean)
    learned = {"scale": params.scale, "offset": params.bias}
    learned = {key: jnp.reshape(p, shape) for key, p in learned.items() if p is not None}
    missing = -np.expm1(int(state.count) * np.log(decay_rate)) if decay_rate else 1.0

    def average(value: Array) -> dict[str, Array]:
        value = jnp.reshape(value, shape)
        return {"average": value, "counter": state.count, "hidden": value * missing}

    averages = {"mean_ema": average(state.mean), "var_ema": average(state.var)}
    return (
        {name: learned} if learned else {},
        {f"{name}/~/{ema}": arrays for ema, arrays in averages.items()},
    )
