"""Dtypes of arithmetic and statistics."""

from typing import Any

import jax
import jax.numpy as jnp


def promote_types(a: Any, b: Any) -> Any:
    """Promote dtypes, even if `jax_numpy_dtype_promotion` is "strict": widening is intended."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def wide_dtype(dtype: Any) -> Any:
    """Return the dtype of arithmetic and statistics for x of this dtype: at least float32."""
    return promote_types(dtype, jnp.float32)


def result_dtype(*arrays: Any, dtype: Any = None) -> Any:
    """Choose a layer's dtype by the rule of Flax's `canonicalize_dtype`, from dtypes alone.

    Flax first converts the arguments to arrays, which costs an operation for each when they are
    differentiated outside `jit`.
    """
    if dtype is None:
        with jax.numpy_dtype_promotion("standard"):  # Flax's rule, even under "strict".
            dtype = jnp.result_type(*(array for array in arrays if array is not None))
        return dtype if jnp.issubdtype(dtype, jnp.inexact) else wide_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"Expected a floating or complex `dtype`, got {dtype}. Leave it None for x's own."
        )
    return dtype
