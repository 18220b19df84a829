"""What all converters share: the result, the errors that list everything, reading arrays."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jbn._schedules import Schedule
from jbn.types import BatchNormParams, BatchNormState


class Options(NamedTuple):
    """Hyper-parameters in jbn's convention: `batch_norm(..., **options._asdict())`.

    `momentum` is the weight of the *old* value, or a schedule of it; `unbiased` says whether the
    running variance takes Bessel's factor.
    """

    momentum: ArrayLike | Schedule
    epsilon: float
    unbiased: bool


class Converted(NamedTuple):
    """What a converter returns: the two trees of `batch_norm`, and its options."""

    params: BatchNormParams
    state: BatchNormState
    options: Options


class ConversionError(ValueError):
    """Everything that keeps a layer from being converted, in `problems` and in the message."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"Cannot convert batch norm; {len(self.problems)} to mend:{lines}")


def many(
    convert: Callable[..., Converted], *source: Any, names: Sequence[str], **keywords: Any
) -> dict[str, Converted]:
    """Convert the named layers of a network, with one error for all that is wrong with any.

    Args:
      convert: `from_torch`, `from_linen` or `from_haiku`.
      source: what it takes before the name: a state_dict; variables; params and state.
      names: of the layers: torch's prefixes, linen's paths, Haiku's module names.
      keywords: what else it takes, the same for all.

    Returns: dict, name -> `Converted`.
    Raises: ConversionError: with the problems of all layers.

    Example:
      >>> import numpy as np, jbn
      >>> layer = {"mean": np.zeros(3), "var": np.ones(3)}
      >>> variables = {"params": {}, "batch_stats": {"norm_0": layer, "norm_1": layer}}
      >>> layers = jbn.convert.many(
      ...     jbn.convert.from_linen, variables, names=["norm_0", "norm_1"])
      >>> layers["norm_1"].state.mean.shape
      (3,)
    """
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
    the framework's keys.
    """

    def __init__(self, where: str, keys: Mapping[str, str]):
        self.where = where
        self.keys = dict(keys)
        self.problems: list[str] = []
        self.arrays: dict[str, Array] = {}

    def read(self, source: Mapping[str, Any], *fields: str, required: bool = True) -> None:
        """Take the fields' arrays from a mapping; a missing one is a problem if required."""
        for field in fields:
            key = self.keys[field]
            value = source.get(key) if hasattr(source, "get") else source[key]
            if value is not None:
                self.arrays[field] = as_array(value)
            elif required:
                self.problems.append(f"{self.where}: no {key!r}, expected {_MEANING[field]}.")

    def finish(
        self,
        own: Options | None,
        default: Options,
        expected: Options | None,
        num_features: int | None,
    ) -> Converted:
        """Check shapes and options; raise if anything was wrong, else make the trees.

        `own` are the layer's options, None where the format has none; `expected` the caller's.
        """
        self._check_shapes(num_features)
        if own is not None and expected is not None:
            self._check_options(own, expected)
        if self.problems:
            raise ConversionError(self.problems)
        mean, var = (_widened(self.arrays[field]) for field in ("mean", "var"))
        count = self.arrays.get("count")
        count = jnp.zeros((), jnp.int32) if count is None else count.astype(jnp.int32)
        params = BatchNormParams(self.arrays.get("scale"), self.arrays.get("bias"))
        return Converted(params, BatchNormState(mean, var, count), own or expected or default)

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
            if field == "count" and array.shape != ():
                self.problems.append(
                    f"{self.where}: {self.keys[field]!r} has shape {array.shape}, expected ()."
                )
            elif field != "count" and shape != (None,) and array.shape != shape:
                self.problems.append(
                    f"{self.where}: {self.keys[field]!r} has shape {array.shape}, expected "
                    f"{shape}, {whose}."
                )

    def _check_options(self, own: Options, expected: Options) -> None:
        for name, ours, theirs in zip(Options._fields, own, expected, strict=True):
            if not _same(ours, theirs):
                self.problems.append(
                    f"{self.where}: {name} is {ours!r}, expected {theirs!r} by `options`. Leave "
                    "`options` out to get the layer's own."
                )


_MEANING = {
    "scale": "gamma, one value per feature",
    "bias": "beta, one value per feature",
    "mean": "the running mean, one value per feature",
    "var": "the running variance, one value per feature",
    "count": "the number of batches absorbed, 0 if unknown",
}


def _same(a: Any, b: Any) -> bool:
    if callable(a) or callable(b) or isinstance(a, bool):
        return a == b
    # 1 - .1 and .9 may differ in the last bit.
    return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-12)


def as_array(value: Any) -> Array:
    """Copy an array of any framework into JAX, bit by bit; its framework is not imported."""
    if hasattr(value, "detach"):  # torch.Tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has none; float32 holds all its values.
            return jnp.array(value.float().numpy(), jnp.bfloat16)
        value = value.numpy()
    elif hasattr(value, "get_value"):  # nnx.Variable
        value = value.get_value()
    elif type(value).__module__.startswith("keras."):
        # The tensor of its backend; Variable.numpy() warns with NumPy 2.
        return as_array(value.value)
    # A copy: the source may be trained further, in place.
    return jnp.array(value if hasattr(value, "dtype") else np.asarray(value), copy=True)


def check_layer(where: str, params: BatchNormParams, state: BatchNormState) -> None:
    """Reject trees that are not a layer with one feature axis: no format here holds others."""
    shape = jnp.shape(state.mean)
    problems = []
    if len(shape) != 1:
        problems.append(f"{where}: mean has shape {shape}, expected one feature axis, (C,).")
    arrays = {"scale": params.scale, "bias": params.bias, "var": state.var}
    for name, array in arrays.items():
        if array is not None and jnp.shape(array) != shape:
            problems.append(
                f"{where}: {name} has shape {jnp.shape(array)}, expected {shape}, that of mean."
            )
    if problems:
        raise ConversionError(problems)


def _widened(array: Array) -> Array:
    """Return statistics in float32 at least, as `BatchNormState` has them."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
