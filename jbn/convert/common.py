"""Shared by all converters: the result, the error that lists every problem, reading arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._dtypes import wide_dtype
from jbn._inputs import describe
from jbn._layer_trees import as_arrays, as_params, as_state
from jbn._schedules import Schedule
from jbn._types import BatchNormParams, BatchNormState
from jbn.convert._arrays import CountError, as_array, as_count, how_to_read


class Options(NamedTuple):
    """Hyperparameters in jbn's convention: `batch_norm(..., **options._asdict())`.

    `momentum` is the weight of the *old* value, or a schedule of it; `unbiased` says whether
    Bessel's correction is applied to the running variance.
    """

    momentum: ArrayLike | Schedule
    epsilon: float
    unbiased: bool


class Converted(NamedTuple):
    """Result of a converter: params, state and options of `batch_norm`."""

    params: BatchNormParams
    state: BatchNormState
    options: Options


class ConversionError(ValueError):
    """Raised with all reasons why `what` cannot be converted, listed in `problems`."""

    def __init__(
        self, problems: Sequence[str], what: str = "batch norm", *, shown: Sequence[str] = ()
    ):
        """Build the message from `problems`, or from the lines `shown` if those are too many."""
        self.problems: tuple[str, ...] = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in shown or self.problems)
        super().__init__(f"Cannot convert {what}; problems ({len(self.problems)}):{lines}")


def convert_layers(
    convert: Callable[..., Converted], *source: Any, names: Iterable[str], **keywords: Any
) -> dict[str, Converted]:
    """Convert the named layers of a network, with one error that lists the problems of all.

    Args:
      convert: `from_torch`, `from_linen` or `from_haiku`.
      source: its arguments before the name: a state_dict; variables; or params and state.
      names: names of the layers: torch's prefixes, linen's paths or Haiku's module names.
      keywords: further arguments of `convert`, the same for all layers.

    Returns:
      Dict from name to `Converted`.

    Raises:
      ConversionError: lists the problems of all layers.
      TypeError: names given as one string, or a `convert` that is not a function.

    Example:
      >>> import numpy as np, jbn
      >>> layer = {"mean": np.zeros(3), "var": np.ones(3)}
      >>> variables = {"params": {}, "batch_stats": {"norm_0": layer, "norm_1": layer}}
      >>> layers = jbn.convert.convert_layers(
      ...     jbn.convert.from_linen, variables, names=["norm_0", "norm_1"])
      >>> layers["norm_1"].state.mean.shape
      (3,)
    """
    if not callable(convert):
        raise TypeError(
            f"Expected a converter such as jbn.convert.from_torch first, got {describe(convert)}. "
            "Pass the source second: convert_layers(jbn.convert.from_torch, model, names=[...])."
        )
    if isinstance(names, str) or not isinstance(names, Iterable):
        name = names if isinstance(names, str) else "bn1"
        raise TypeError(
            f"Expected `names` as a list of names, got {describe(names)}. Pass names=[{name!r}]."
        )
    converted, problems = {}, []
    for name in names:
        try:
            converted[name] = convert(*source, name, **keywords)
        except ConversionError as error:
            problems.extend(error.problems)
    if problems:
        raise ConversionError(problems)
    return converted


class Reader:
    """Reads the arrays of one layer and collects what is wrong with them.

    `where` names the layer in messages; `keys` maps jbn's fields (scale, bias, mean, var, count) to
    the framework's keys; `hint` says what was found instead if there is no mean.
    """

    def __init__(self, where: str, keys: Mapping[str, str], hint: str = ""):
        self.where = where
        self.keys: dict[str, str] = dict(keys)
        self.hint = hint
        self.problems: list[str] = []
        self.arrays: dict[str, Array] = {}

    def read(self, source: Mapping[str, Any], *fields: str, required: bool = True) -> None:
        """Read the fields' arrays from a mapping; a missing one is a problem if required."""
        for field in fields:
            key = self.keys[field]
            value = source.get(key)
            if value is not None:
                self._take(field, value)
            elif required:
                hint = f" {self.hint[:1].upper()}{self.hint[1:]}" if field == "mean" else ""
                hint = hint.rstrip()
                self.problems.append(f"{self.where}: no {key!r}, expected {_MEANING[field]}.{hint}")

    def _take(self, field: str, value: Any) -> None:
        key = self.keys[field]
        try:
            if field == "count":
                self.arrays[field] = as_count(value)
                return
            array = as_array(value)
        except CountError as error:
            self.problems.append(
                f"{self.where}: {key!r} is {error} Set it to the number of batches absorbed."
            )
        # NumPy, JAX and torch raise these for objects, parameters without values and meta tensors.
        except (TypeError, ValueError, RuntimeError):
            self.problems.append(
                f"{self.where}: {key!r} is of type {type(value).__name__}, without values that can "
                f"be read, expected an array. {how_to_read(value)}"
            )
        else:
            if jnp.issubdtype(array.dtype, jnp.inexact):
                self.arrays[field] = array
            else:
                self.problems.append(
                    f"{self.where}: {key!r} has dtype {array.dtype}, expected floating. Dequantize "
                    "it, or convert it with astype(np.float32)."
                )

    def finish(
        self,
        own: Options | None,
        default: Options,
        expected: Options | None,
        num_features: int | None,
        count: int | None = None,
    ) -> Converted:
        """Check shapes and options; raise if there are problems, otherwise return the result.

        `own` are the layer's options, or None if the format stores none; `expected` are the
        caller's. `count` is also the caller's, for a source without one.
        """
        options = own or default
        if expected is not None and self.check_options(own, expected):
            options = own or expected
        if num_features is not None and not isinstance(num_features, Integral):
            self.problems.append(
                f"{self.where}: `num_features` is {describe(num_features)}, expected an int."
            )
        else:
            self._check_shapes(num_features)
        self._fill_count(count, options)
        if self.problems:
            raise ConversionError(self.problems)
        mean, var = (_widened(self.arrays[field]) for field in ("mean", "var"))
        params = BatchNormParams(self.arrays.get("scale"), self.arrays.get("bias"))
        return Converted(params, BatchNormState(mean, var, self.arrays["count"]), options)

    def _fill_count(self, count: int | None, options: Options) -> None:
        """Use the caller's count if the source has none; with a schedule, 0 is no valid default."""
        if "count" in self.arrays:
            return
        if count is None and callable(options.momentum):
            schedule = getattr(options.momentum, "__name__", repr(options.momentum))
            self.problems.append(
                f"{self.where}: no count of batches, expected one for momentum={schedule}: at 0 "
                "its first step would discard these statistics. Pass count=."
            )
        try:
            self.arrays["count"] = as_count(0 if count is None else count)
        except CountError as error:
            self.problems.append(
                f"{self.where}: `count` is {error} Pass the number of batches absorbed, at least "
                "0, or leave it out."
            )

    def _check_shapes(self, num_features: int | None) -> None:
        shape = (num_features,)
        whose = "the `num_features` given"
        if num_features is None and "mean" in self.arrays:
            shape, whose = self.arrays["mean"].shape, f"that of {self.keys['mean']!r}"
            if len(shape) != 1:
                self.problems.append(
                    f"{self.where}: {self.keys['mean']!r} has shape {shape}, expected one value "
                    "per feature, (C,). Is this a batch norm?"
                )
                return
        for field, array in self.arrays.items():
            if field != "count" and shape != (None,) and array.shape != shape:
                self.problems.append(
                    f"{self.where}: {self.keys[field]!r} has shape {array.shape}, expected "
                    f"{shape}, {whose}."
                )

    def check_options(self, own: Options | None, expected: Options) -> bool:
        """Add a problem for each option that is not as expected; return whether all are."""
        if not isinstance(expected, Options):
            self.problems.append(
                f"{self.where}: `options` is {describe(expected)}, expected jbn.convert.Options("
                "momentum, epsilon, unbiased)."
            )
            return False
        before = len(self.problems)
        self.problems += option_problems(self.where, expected)
        if len(self.problems) > before:
            return False
        for name, ours, theirs in zip(Options._fields, own or expected, expected, strict=True):
            if not _same(ours, theirs):
                self.problems.append(
                    f"{self.where}: {name} is {ours!r}, expected {theirs!r} by `options`. Leave "
                    "`options` out to get the layer's own."
                )
        return len(self.problems) == before


_MEANING = {
    "scale": "gamma, one value per feature",
    "bias": "beta, one value per feature",
    "mean": "the running mean, one value per feature",
    "var": "the running variance, one value per feature",
    "count": "the number of batches absorbed, 0 if unknown",
}


def option_problems(where: str, options: Options) -> list[str]:
    """List which of momentum and epsilon are not numbers; momentum may also be a schedule."""
    problems = []
    for name in ("momentum", "epsilon"):
        value = getattr(options, name)
        if isinstance(value, jax.core.Tracer) or (name == "momentum" and callable(value)):
            continue
        try:
            if isinstance(value, str):
                raise TypeError
            float(value)
        except (TypeError, ValueError):
            hint = " torch's None is jbn.cumulative." if name == "momentum" else ""
            problems.append(
                f"{where}: `options.{name}` is {describe(value)}, expected a number.{hint}"
            )
    return problems


def _same(a: Any, b: Any) -> bool:
    if a is b or callable(a) or callable(b) or isinstance(a, bool):
        return a is b or a == b
    # 1 - .1 and .9 may differ in the last bit.
    return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-12)


def check_name(where: str, argument: str, name: Any) -> str:
    """Return a layer's name; raise an error if it is not a string."""
    if not isinstance(name, str):
        raise ConversionError(
            [f"{where}: `{argument}` is {describe(name)}, expected the layer's name, a string."]
        )
    return name


def layers_there(names: Iterable[str], remedy: str, otherwise: str, wanted: str = "") -> str:
    """List the layers that could have been meant, the likeliest first, and say what to pass.

    `remedy` says what to do with them, `otherwise` what to do if there are none.
    """
    names = sorted(names, key=lambda name: not (wanted and name.endswith(wanted)))
    if not names:
        return f"no layer of the source has statistics. {otherwise}"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    listed = ", ".join(map(repr, names[:10]))
    return f"the source's layers with statistics are {listed}{more}. {remedy}"


def paths_of_statistics(tree: Any) -> list[str]:
    """Find the paths at which nested mappings hold a mean and a var."""
    paths = []
    if isinstance(tree, Mapping):
        if {"mean", "var"} <= tree.keys():
            paths.append("")
        for name, below in tree.items():
            paths += [f"{name}/{path}".rstrip("/") for path in paths_of_statistics(below)]
    return paths


def check_layer(
    where: str,
    params: BatchNormParams,
    state: BatchNormState,
    *,
    with_count: bool,
    one_axis: bool = True,
) -> tuple[BatchNormParams, BatchNormState]:
    """Return a layer's params and state as JAX arrays; reject shapes that do not match.

    Without `with_count`, the count may be anything: averages of states have fractional ones.
    """
    params, state = as_arrays(as_params(params), as_state(state))
    shape = state.mean.shape
    problems = []
    if one_axis and len(shape) != 1:
        problems.append(f"{where}: mean has shape {shape}, expected one feature axis, (C,).")
    arrays = {"scale": params.scale, "bias": params.bias, "var": state.var}
    for name, array in arrays.items():
        if array is not None and array.shape != shape:
            problems.append(
                f"{where}: {name} has shape {array.shape}, expected {shape}, that of mean."
            )
    if with_count:
        try:
            state = state._replace(count=as_count(state.count))
        except CountError as error:
            problems.append(
                f"{where}: count is {error} An average of states leaves other counts: take the "
                "state's own count back with state._replace(count=...)."
            )
    if problems:
        raise ConversionError(problems)
    return params, state


def _widened(array: Array) -> Array:
    """Return statistics in at least float32, as in `BatchNormState`."""
    return array.astype(wide_dtype(array.dtype))
