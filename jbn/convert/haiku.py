"""Haiku: `hk.BatchNorm`, whose moving averages are debiased from zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbn._inputs import describe
from jbn._types import BatchNormParams, BatchNormState
from jbn.convert._arrays import CountError, as_count
from jbn.convert.common import (
    ConversionError,
    Converted,
    Options,
    Reader,
    check_layer,
    check_name,
    layers_there,
)
from jbn.convert.options import Debiased

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

    Haiku's running statistics are the `average` of two `ExponentialMovingAverage`: `hidden` divided
    by 1 - decay_rate^counter. This is `jbn.debiased` with the same decay, without Bessel's
    correction. Haiku's trees hold neither decay_rate nor eps; a decay_rate that does not match
    `hidden` is an error.

    Args:
      params, state: params and state of the transformed function: module name -> arrays.
      name: name of the layer's module, such as "net/~/batch_norm".
      decay_rate, epsilon: as passed to `hk.BatchNorm`.
      num_features: C, checked if given.

    Returns:
      `(params, state, options)`, with momentum `Debiased(decay_rate)`. Arrays are copies.

    Raises:
      ConversionError: lists every missing array, wrong shape and wrong decay_rate, and says what
        was found if it is not a batch norm.

    Example:
      >>> import numpy as np, jbn
      >>> def average(value):
      ...     return {"hidden": value * 0.5, "average": value, "counter": np.array(1)}
      >>> params, state, options = jbn.convert.from_haiku(
      ...     {"norm": {"scale": np.ones((1, 3))}}, {"norm/~/mean_ema": average(np.ones((1, 3))),
      ...     "norm/~/var_ema": average(np.ones((1, 3)))}, "norm", decay_rate=0.5)
      >>> state.mean.shape, int(state.count), options.momentum
      ((3,), 1, Debiased(decay=0.5))

    References:
      Kingma, Ba, "Adam", 2015, section 3 (the correction).
    """
    where = f"Haiku layer {name!r}"
    name = check_name(where, "name", name)
    _check_decay_rate(where, decay_rate)
    for what, tree in (("params", params), ("state", state)):
        if not isinstance(tree, Mapping):
            problem = f"`{what}` is {describe(tree)}, expected a dict of modules, as init returns."
            raise ConversionError([f"{where}: {problem}"])
        for key, arrays in tree.items():
            if not (isinstance(key, str) and isinstance(arrays, Mapping)):
                problem = (
                    f"`{what}` holds {describe(arrays)} at {key!r}, expected a dict of arrays."
                )
                raise ConversionError([f"{where}: {problem}"])
    reader = Reader(where, _KEYS, _found(params, state, name))
    arrays = {key: _flat(value) for key, value in params.get(name, {}).items()}
    averages = {ema: state.get(f"{name}/~/{ema}", {}) for ema in ("mean_ema", "var_ema")}
    counts = {}
    for ema, values in averages.items():
        arrays |= {f"{ema}/{key}": _flat(value) for key, value in values.items()}
    reader.read(arrays, "scale", "bias", required=False)
    reader.read(arrays, "mean", "var", "count")
    for ema in averages:
        keys = [f"{ema}/{part}" for part in ("hidden", "average", "counter")]
        missing = [key for key in keys if key not in arrays and key not in _KEYS.values()]
        reader.problems.extend(f"{reader.where}: no {key!r}." for key in missing)
        hidden, value, counter = (arrays.get(key) for key in keys)
        if counter is not None:
            try:
                counts[ema] = int(as_count(counter))
            except CountError as error:
                if ema == "var_ema":  # The reader reports mean_ema's.
                    reader.problems.append(
                        f"{reader.where}: {keys[2]!r} is {error} Set it to the number of batches "
                        "absorbed."
                    )
        if hidden is None or value is None or ema not in counts:
            continue
        hidden, value = np.asarray(hidden), np.asarray(value)
        if hidden.shape != value.shape:
            continue
        want = value * (1 - decay_rate ** counts[ema])
        if not np.allclose(hidden, want, rtol=1e-2, atol=1e-6 * float(np.abs(value).max())):
            reader.problems.append(
                f"{reader.where}: {keys[0]!r} does not belong to {keys[1]!r} with decay_rate="
                f"{decay_rate} after {counts[ema]} batches. Pass the decay_rate of hk.BatchNorm."
            )
    if len(set(counts.values())) > 1:
        reader.problems.append(
            f"{reader.where}: mean_ema has seen {counts['mean_ema']} batches, var_ema "
            f"{counts['var_ema']}, expected the same number. Take both from one checkpoint."
        )
    options = Options(Debiased(decay_rate), epsilon, unbiased=False)
    return reader.finish(None, options, options, num_features)


def _found(params: Mapping[str, Any], state: Mapping[str, Any], name: str) -> str:
    """Say what the trees hold instead of the layer, and what to pass."""
    end = "/~/mean_ema"
    if any(key.endswith(end) for key in params):
        return "`params` holds averages: are params and state swapped?"
    norms = [key.removesuffix(end) for key in state if key.endswith(end)]
    other = "Layer and group norm have none; " if name in params else ""
    otherwise = "Pass what hk.transform_with_state(...).init returned for a net with hk.BatchNorm."
    return other + layers_there(norms, "Pass one of them as `name`.", otherwise, name)


def _check_decay_rate(where: str, decay_rate: float) -> None:
    if not isinstance(decay_rate, Real) or not 0 <= decay_rate < 1:
        raise ConversionError(
            [
                f"{where}: `decay_rate` is {describe(decay_rate)}, expected a number in [0, 1), "
                "the weight of the old value, as given to hk.BatchNorm."
            ]
        )


def _flat(array: Any) -> Any:
    """Drop the axes of length 1 that Haiku keeps; leave arrays with more than one longer axis."""
    shape = getattr(array, "shape", ())
    return array.reshape(-1) if shape and math.prod(shape) == max(shape) else array


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

    `average` and `counter` are exact; `hidden`, average * (1 - decay_rate^counter), is rounded, so
    after Haiku -> jbn -> Haiku it may differ in the last bit.

    Args:
      params, state: params and state of a layer with one feature axis.
      name: name of the layer's module.
      decay_rate: as passed to `hk.BatchNorm`.
      ndim, axis: rank of the layer's input, and its feature axis.

    Returns:
      `(params, state)` of this layer only, to be merged into those of the network.

    Raises:
      ConversionError: more than one feature axis; different shapes; a decay_rate outside [0, 1); a
        count that is not a whole number, as after averaging states.
      ValueError: an axis that an input of rank `ndim` does not have.
      TypeError: params or state of another type.

    Example:
      >>> import jbn
      >>> params, state = jbn.convert.to_haiku(*jbn.init(3), "norm", decay_rate=0.9, ndim=4)
      >>> params["norm"]["scale"].shape, sorted(state)
      ((1, 1, 1, 3), ['norm/~/mean_ema', 'norm/~/var_ema'])
    """
    params, state = check_layer("to_haiku", params, state, with_count=True)
    name = check_name("to_haiku", "name", name)
    _check_decay_rate("to_haiku", decay_rate)
    are_ints = isinstance(ndim, int) and isinstance(axis, int)
    if not are_ints or not -ndim <= axis < ndim:
        raise ValueError(
            f"Expected `axis` in an input of rank ndim={describe(ndim)}, got {describe(axis)}. "
            "Pass the rank of the layer's input as `ndim`."
        )
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
