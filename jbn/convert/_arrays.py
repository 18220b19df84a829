"""Read arrays of any framework into JAX, without importing the framework."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def as_array(value: Any) -> Array:
    """Copy an array of any framework into JAX, bit for bit; its framework is not imported."""
    # Copy, since further training may change the source in place.
    return jnp.array(_unwrapped(value), copy=True)


def _unwrapped(value: Any) -> Any:
    """Return the array in a framework's own container, in a form that NumPy or JAX can read."""
    if hasattr(value, "detach"):  # torch.Tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # Not in NumPy; float32 holds all its values.
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy()
    if hasattr(value, "get_value"):  # nnx.Variable
        return _unwrapped(value.get_value())
    if hasattr(value, "unbox"):  # linen's Partitioned
        return _unwrapped(value.unbox())
    if type(value).__module__.startswith("keras."):
        # The backend's tensor, since Variable.numpy() warns with NumPy 2.
        return _unwrapped(value.value)
    return value if hasattr(value, "dtype") else np.asarray(value)


def how_to_read(value: Any) -> str:
    """Say what to do with a value that `as_array` cannot read."""
    if getattr(value, "is_meta", False):
        return (
            "It is on torch's meta device, which holds shapes alone. Load the weights into the "
            "module first: load_state_dict(weights, assign=True)."
        )
    if isinstance(value, jax.ShapeDtypeStruct):
        return "It describes an array. Pass the array itself."
    if isinstance(value, jax.Array) and value.is_deleted():
        return "It was donated to a compiled function. Pass a copy made before."
    if type(value).__name__.startswith("Uninitialized"):
        return "Run one batch through a layer that makes its arrays only then."
    if hasattr(value, "detach"):
        if getattr(value, "is_quantized", False):
            return "It is quantized. Pass value.dequantize()."
        if getattr(value, "layout", None) is not None and "strided" not in str(value.layout):
            return "It is sparse. Pass value.to_dense()."
        return (
            f"NumPy has no {value.dtype}. Pass value.float(), times its scale where the file has "
            "one."
        )
    return "Pass an array of NumPy, JAX or torch."


class CountError(ValueError):
    """A value that is not a count of batches; the message continues a sentence after "is"."""


def as_count(value: Any) -> Array:
    """Read a count of batches as int32, clipped to int32's largest value.

    Raises:
      CountError: not a whole number, negative, or not one number.
    """
    most = np.iinfo(np.int32).max
    try:
        value = _unwrapped(value)
    except (TypeError, ValueError, RuntimeError):
        raise CountError(f"of type {type(value).__name__}, expected one number.") from None
    if isinstance(value, jax.core.Tracer):
        if value.shape or not jnp.issubdtype(value.dtype, jnp.integer):
            raise CountError(f"{value.dtype} of shape {value.shape}, expected one integer.")
        return jnp.minimum(value, most).astype(jnp.int32)
    # Use NumPy, since without x64 JAX would drop the bits above 32.
    array = np.asarray(value)
    if array.shape != ():
        raise CountError(f"of shape {array.shape}, expected () for one count.")
    number = array.item() if array.dtype.kind in "iuf" else math.nan
    if not (number >= 0 and math.isfinite(number) and number == int(number)):
        got = array if array.dtype.kind in "iufb" else repr(array.item())
        raise CountError(f"{got}, expected a whole number of batches, 0 or more.")
    return jnp.asarray(min(int(number), most), jnp.int32)
