"""What converters of whole networks share: a model's variables, their places in the source."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbn._inputs import describe
from jbn.convert.common import ConversionError, CountError, Reader, as_count

Path = tuple[str, ...]


class Format(NamedTuple):
    """How the keys of a source end, by our names of the arrays.

    `affine` is of convolutions and dense layers, `norm` of batch norms; `outputs_first` says that
    kernels are laid out as in torch.
    """

    where: str
    affine: Mapping[str, str]
    norm: Mapping[str, str]
    outputs_first: bool = False


class Place(NamedTuple):
    """A variable of the model: its path, shape and dtype, layer, name there, key in the source."""

    path: Path
    like: Any
    module: str
    leaf: str
    key: str


def model_kind(where: str, model: Any, *wanted: str) -> str:
    """Return the class of the model, which is one of those wanted.

    Raises:
      TypeError: another model, or a function that makes one.
    """
    # Here, since models are built upon what this package converts for.
    from jbn import models

    for name in wanted:
        if isinstance(model, getattr(models, name)):
            return name
    raise TypeError(
        f"{where}: expected `model` as a {' or '.join(wanted)} of jbn.models, got "
        f"{describe(model)}. Make one, such as jbn.models.resnet50(norm='batch')."
    )


class Network:
    """A model beside a source: where its variables are there, and what does not fit.

    `names` maps our layers to the source's; `attributes` are those with which the model computes
    what the source's network does; without `head`, the last dense layer is left out.

    Raises:
      ConversionError: a model without batch norm.
    """

    def __init__(
        self,
        model: Any,
        names: Mapping[str, str],
        form: Format,
        attributes: Mapping[str, Any],
        *,
        channels: int,
        head: bool,
    ):
        from flax.traverse_util import flatten_dict

        self.names, self.form, self.head = names, form, head
        # Small, yet every stage has a pixel; the variables do not depend on it.
        images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
        init = functools.partial(model.init, training=False)
        self.target = flatten_dict(jax.eval_shape(init, jax.random.key(0), images))
        self.problems: list[str] = []
        if not any(path[-1] == "mean" for path in self.target):
            self.problem(f"the model has norm={model.norm!r}, expected 'batch'. Make it so.")
            self.finish()
        for name, want in attributes.items():
            if name == "stride_in_1x1" and not model.bottleneck:
                continue
            got = getattr(model, name)
            if got != want:
                self.problem(
                    f"the model has {name}={got!r}, expected {want!r}, as the source's network "
                    f"computes. Make it with {name}={want!r}."
                )

    def problem(self, text: str) -> None:
        """Keep what does not fit."""
        self.problems.append(f"{self.form.where}: {text}")

    def finish(self) -> None:
        """Raise if anything did not fit."""
        if self.problems:
            raise ConversionError(self.problems, "network")

    def places(self) -> Iterator[Place]:
        """Find the source's key for every variable; one that has none there is a problem."""
        for path, like in self.target.items():
            module, leaf = path[1], path[-1]
            ends = self.form.norm if module.endswith("_norm") else self.form.affine
            if module == "output" and not self.head:
                continue
            if module not in self.names or len(path) != 3 or leaf not in (*ends, "count"):
                self.problem(f"the model has {'/'.join(path)!r}, the source's network has not.")
            else:
                # A format that has no count has no key for it.
                yield Place(path, like, module, leaf, self.names[module] + ends.get(leaf, ""))

    def biases(self) -> Iterator[tuple[str, Path]]:
        """Find the source's keys of biases that our convolutions lack, and the means after them."""
        for module, theirs in self.names.items():
            mean = ("batch_stats", f"{module}_norm", "mean")
            if mean in self.target and ("params", module, "bias") not in self.target:
                yield theirs + self.form.affine["bias"], mean


def read_network(
    model: Any,
    arrays: Mapping[str, Any],
    names: Mapping[str, str],
    form: Format,
    attributes: Mapping[str, Any],
    *,
    head: bool,
    count: int | None = None,
    ignored: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Make the model's variables of the source's arrays.

    The bias of a convolution that has none in the model, and whose batch norm follows, goes into
    the running mean.

    Args:
      model: a `ResNet` or `InceptionNet`.
      arrays: of the source, by its keys.
      names, form, attributes: of the source, see `Network`.
      head: read the last dense layer; if False, the variables lack it.
      count: batches absorbed, where the source does not say.
      ignored: keys that mean nothing here.

    Returns:
      `{"params": ..., "batch_stats": ...}`, arrays of the model's dtypes.

    Raises:
      ConversionError: with everything that does not fit.
    """
    from flax.traverse_util import unflatten_dict

    stem = np.shape(arrays.get(names["stem"] + form.affine["kernel"], ()))
    channels = stem[1 if form.outputs_first else 2] if len(stem) == 4 else 3
    network = Network(model, names, form, attributes, channels=channels, head=head)
    used, variables = set(ignored), {}
    for place in network.places():
        used.add(place.key)
        value = arrays.get(place.key)
        if place.leaf == "count":
            variables[place.path] = _count(network, place.key, value, count)
        elif value is None:
            shape = _their_shape(place.like.shape, form)
            network.problem(f"no {place.key!r}, expected {shape} for the model's {place.module!r}.")
        else:
            variables[place.path] = _read(network, place.key, value, place.like, place.module)
    for key, mean in network.biases():
        if arrays.get(key) is not None:
            used.add(key)
            bias = _read(network, key, arrays[key], network.target[mean], mean[1])
            if bias is not None and variables.get(mean) is not None:
                exact = variables[mean].astype(np.float64) - bias.astype(np.float64)
                variables[mean] = exact.astype(bias.dtype)
    if "count" in form.norm:
        used |= {theirs + form.norm["count"] for theirs in names.values()}
    if not head:
        used |= {names["output"] + end for end in form.affine.values()}
    for key in arrays:
        if key not in used:
            network.problem(f"{key!r} has no place in the model.")
    network.finish()
    return unflatten_dict({path: jnp.asarray(value) for path, value in variables.items()})


def _read(network: Network, key: str, value: Any, like: Any, module: str) -> np.ndarray | None:
    """Lay an array out as the model has it, in its dtype; None, and a problem, if it cannot be.

    Caffe's and Haiku's vectors have axes of length 1 before, or around, the features.
    """
    reader = Reader(network.form.where, {key: key})
    reader.read({key: value}, key)
    network.problems += reader.problems
    if key not in reader.arrays:
        return None
    array = np.asarray(reader.arrays[key])
    if len(like.shape) == 1 and array.size == max(array.shape, default=0):
        array = array.reshape(-1)
    theirs = array.shape
    if network.form.outputs_first and array.ndim > 1:
        array = array.transpose(*range(2, array.ndim), 1, 0)
    if array.shape == like.shape:
        return array.astype(like.dtype)
    hint = " Pass head=False to leave it out." if module == "output" else ""
    network.problem(
        f"{key!r} has shape {theirs}, expected {_their_shape(like.shape, network.form)}, that of "
        f"the model's {module!r}.{hint}"
    )
    return None


def _their_shape(shape: tuple[int, ...], form: Format) -> tuple[int, ...]:
    return (*shape[:-3:-1], *shape[:-2]) if form.outputs_first and len(shape) > 1 else shape


def _count(network: Network, key: str, value: Any, count: int | None) -> Any:
    """Take the source's count, or else the caller's: a schedule would read a 0 as such."""
    if value is None and count is None:
        network.problem(
            f"no count of batches for {key!r}, expected one: the model's momentum is a schedule. "
            "Pass count=."
        )
        return None
    try:
        return as_count(count if value is None else value)
    except CountError as error:
        what = "`count`" if value is None else repr(key)
        network.problem(f"{what} is {error} Pass the number of batches absorbed.")
        return None
