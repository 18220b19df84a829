"""Read the arrays of a whole network into the variables of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jbn._inputs import describe
from jbn.convert._arrays import CountError, as_count
from jbn.convert._likely_cause import likely_cause
from jbn.convert._network import Format, Network, Options, Place, Source
from jbn.convert.common import Reader


def read_network(
    model: Any,
    arrays: Mapping[str, Any],
    source: Source,
    options: Options,
    *,
    ignored: frozenset[str] = frozenset(),
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the model's variables from the source's arrays.

    If a convolution has a bias in the source but not in the model, the bias is subtracted from the
    running mean of the batch norm that follows.

    Args:
      model: a `ResNet` or `InceptionNet`.
      arrays: the source's arrays by key.
      source: what else is known about it.
      options: the caller's options.
      ignored: keys to ignore.
      problems: those already found while collecting the arrays.

    Returns:
      `{"params": ..., "batch_stats": ...}`, arrays of the model's dtypes.

    Raises:
      ConversionError: lists everything that does not fit.
    """
    from flax.traverse_util import unflatten_dict

    form, names = source.form, source.names
    first = names["stem"] + form.affine["kernel"]
    stem = np.shape(arrays.get(first, ()))
    channels = stem[1 if form.outputs_first else 2] if len(stem) == 4 else 3
    network = Network(model, source, options, channels=channels)
    for text in problems:
        network.problem(text)
    places = list(network.places())
    # Collected before reading, so that `_missing` can suggest an array that nothing uses.
    used = {*ignored, *(place.key for place in places)}
    if "count" in form.norm:
        used |= {theirs + form.norm["count"] for theirs in names.values()}
    if not network.head:
        used |= {names["output"] + end for end in form.affine.values()}
    used |= {key for key, _ in network.biases() if arrays.get(key) is not None}
    unused = {key: value for key, value in arrays.items() if key not in used}
    variables = {}
    for place in places:
        value = arrays.get(place.key)
        if place.leaf == "count":
            variables[place.path] = _count(network, place.key, value, options.count)
        elif value is None:
            network.problem(_missing(network, place, unused), "missing")
        else:
            variables[place.path] = read_array(
                network, place.key, value, place.like, place.module, place.leaf
            )
    for key, mean in network.biases():
        if arrays.get(key) is not None:
            bias = read_array(network, key, arrays[key], network.target[mean], mean[1])
            if bias is not None and variables.get(mean) is not None:
                exact = variables[mean].astype(np.float64) - bias.astype(np.float64)
                variables[mean] = exact.astype(bias.dtype)
    for key, value in unused.items():
        network.problem(_unexpected(network, key, value), "unexpected")
    if network.problems:
        keys = [place.key for place in places]
        network.finish(
            likely_cause(
                model, arrays, keys, first, form.affine["kernel"], source.table, source.root
            )
        )
    return unflatten_dict({path: jnp.asarray(value) for path, value in variables.items()})


def _missing(network: Network, place: Place, unused: Mapping[str, Any]) -> str:
    shape = _their_shape(place.like.shape, network.form)
    text = f"no {place.key!r}, expected {shape} for the model's {place.module!r}."
    if place.module != "output":
        return text
    heads = [key for key in unused if is_dense(network, key, unused[key])]
    if place.leaf == "kernel" and heads:
        return (
            f"{text} Is it {heads[0]!r}, of shape {np.shape(unused[heads[0]])}? Rename that "
            f"{place.key!r}, or drop it and pass head=False."
        )
    return f"{text} Pass head=False to leave it out, and add your own."


def _unexpected(network: Network, key: str, value: Any) -> str:
    if not hasattr(value, "shape"):
        return (
            f"{key!r} is {describe(value)}, not an array. Drop it: {{key: value for key, value in "
            "source.items() if hasattr(value, 'shape')}."
        )
    hint = ""
    if not network.head and is_dense(network, key, value):
        hint = " Is it of the last dense layer? Drop it, for head=False."
    return f"{key!r} has no place in the model.{hint}"


def is_dense(network: Network, key: str, value: Any) -> bool:
    """Tell whether an array may be the kernel of a dense layer."""
    return key.endswith(network.form.affine["kernel"]) and len(np.shape(value)) == 2


def read_array(
    network: Network, key: str, value: Any, like: Any, module: str, leaf: str = ""
) -> np.ndarray | None:
    """Return an array in the model's layout and dtype; None, with a problem, if it does not fit.

    Vectors of Caffe and Haiku have axes of length 1 before or around the features.
    """
    array = as_floating(network, key, value, like, module)
    if array is None:
        return None
    if len(like.shape) == 1 and array.size == max(array.shape, default=0):
        array = array.reshape(-1)
    theirs = array.shape
    if network.form.outputs_first and array.ndim > 1:
        array = array.transpose(*range(2, array.ndim), 1, 0)
    if array.shape != like.shape:
        hint = " Pass head=False to leave it out." if module == "output" else ""
        network.problem(
            f"{key!r} has shape {theirs}, expected {_their_shape(like.shape, network.form)}, that "
            f"of the model's {module!r}.{hint}",
            "misshapen",
        )
        return None
    if leaf == "var" and (array < 0).any():
        network.problem(
            f"{key!r} has negative values, expected variances. Pass those that the network learned."
        )
        return None
    with np.errstate(over="ignore"):
        cast = array.astype(like.dtype)
    if array.dtype != like.dtype and (np.isfinite(array) & ~np.isfinite(cast)).any():
        network.problem(
            f"{key!r} has values that {like.dtype} cannot hold. Make the model with "
            "param_dtype=jnp.float32."
        )
        return None
    return cast


def as_floating(
    network: Network, key: str, value: Any, like: Any, module: str
) -> np.ndarray | None:
    """Read an array; None, with a problem, if it is not one or complex where the model is real."""
    reader = Reader(network.form.where, {key: key})
    reader.read({key: value}, key)
    for problem in reader.problems:
        network.problem(problem.removeprefix(f"{network.form.where}: "))
    if key not in reader.arrays:
        return None
    array = np.asarray(reader.arrays[key])
    if np.iscomplexobj(array) and not jnp.issubdtype(like.dtype, jnp.complexfloating):
        network.problem(
            f"{key!r} has dtype {array.dtype}, expected real numbers, as the model's {module!r} "
            "has. Pass its real part, if the imaginary one is 0."
        )
        return None
    return array


def _their_shape(shape: tuple[int, ...], form: Format) -> tuple[int, ...]:
    return (*shape[:-3:-1], *shape[:-2]) if form.outputs_first and len(shape) > 1 else shape


def _count(network: Network, key: str, value: Any, count: int | None) -> Any:
    """Return the source's count, or else the caller's; for a schedule, 0 is no valid default."""
    if value is None and count is None:
        network.problem(
            f"no count of batches for {key!r}, expected one: the model's momentum is a schedule. "
            "Pass count=."
        )
        return None
    try:
        return as_count(count if value is None else value)
    except CountError as error:
        network.problem(f"{key!r} is {error} Pass the number of batches absorbed.")
        return None
