"""Convert what users pass to an int or an array, and describe anything else in errors."""

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def as_index(value: Any) -> int | None:
    """Return a Python, NumPy or JAX integer as an int; None for anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:  # Also raised by traced integers.
        return None


def is_array(value: Any) -> bool:
    """Tell whether value is an array of numbers or bools, traced or not; lists are not."""
    if not (isinstance(value, jax.Array | np.ndarray | np.generic) or _converts(value)):
        return False
    return jnp.issubdtype(value.dtype, np.number) or jnp.issubdtype(value.dtype, np.bool_)


def as_array(
    name: str, value: Any, remedy: str = "Pass an array, or nested lists of numbers."
) -> Array:
    """Return value as an array, or raise a TypeError that ends with `remedy`."""
    if isinstance(value, jax.Array) and is_array(value):  # Converting it would cost an operation.
        return value
    try:
        # NumPy reads some strings as dtype names, and stacks the fields of named tuples.
        if isinstance(value, str | bytes) or hasattr(value, "_fields"):
            raise TypeError
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or not is_array(array):
        raise TypeError(f"Expected `{name}` to be an array, got {describe(value)}. {remedy}")
    return array


def is_inexact(dtype: Any) -> bool:
    """Tell a floating or complex dtype from everything else."""
    try:
        return dtype is not None and not is_array(dtype) and jnp.issubdtype(dtype, jnp.inexact)
    except (TypeError, ValueError, SyntaxError):  # NumPy evaluates some strings.
        return False


def check_fields(name: str, value: Any, *, optional: bool = False) -> None:
    """Check that a named tuple holds arrays, floating or complex ones except for a count."""
    for field, array in value._asdict().items():
        if array is None and optional:
            continue
        if not is_array(array):
            raise TypeError(
                f"Expected `{name}.{field}` to be an array, got {describe(array)}. "
                f"Write {name}._replace({field}=jnp.asarray(...))."
            )
        if field != "count" and not jnp.issubdtype(array.dtype, np.inexact):
            raise TypeError(
                f"Expected `{name}.{field}` to be floating or complex, got {array.dtype}. "
                f"Write {name}._replace({field}={name}.{field}.astype(jnp.float32))."
            )
        if field == "var" and not jnp.issubdtype(array.dtype, np.floating):
            raise TypeError(
                f"Expected a real `{name}.var`, got {array.dtype}: of complex x, too, it is the "
                f"mean of |x - mean|^2. Write {name}._replace(var={name}.var.real)."
            )


def describe(value: Any) -> str:
    """Describe a value in a few words, for an error message."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {_listed(map(str, value), 'the keys', 'no keys')}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        kinds = dict.fromkeys(
            "Array" if isinstance(part, jax.Array) else type(part).__name__ for part in value
        )
        of = f" of {len(value)} ({', '.join(kinds)})" if value else ""
        return f"{'a' if value else 'an empty'} {type(value).__name__}{of}"
    if isinstance(value, str | bool | int | float | complex) or value is None:
        return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"a jax.ShapeDtypeStruct, which describes {describe_result(value)} and has no values"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "a traced array" if isinstance(value, jax.core.Tracer) else "an array"
        return f"{kind} of shape {tuple(value.shape)} and {value.dtype}"
    if type(value).__module__ == "builtins":
        return f"a {type(value).__name__}"
    return f"{type(value).__module__}.{type(value).__name__}"


def describe_result(value: Any) -> str:
    """Describe what a function returned under `jax.eval_shape`, for an error message."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"an array of shape {value.shape} and {value.dtype}"
    return describe(value)


def _converts(value: Any) -> bool:
    """Tell whether JAX accepts the value as an array, as it does a Flax variable."""
    return hasattr(value, "__jax_array__") and hasattr(value, "dtype")


def _listed(names: Any, label: str, none: str) -> str:
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{label} {', '.join(map(repr, names[:10]))}{more}" if names else none
