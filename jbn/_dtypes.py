"""Dtypes of arithmetic and statistics."""

from typing import Any

import jax
import jax.numpy as jnp


def promote_types(a: Any, b: Any) -> Any:
    """Promote dtypes, where `jax_numpy_dtype_promotion` is strict, too: widening is wanted."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def wide_dtype(dtype: Any) -> Any:
    """Dtype of arithmetic and statistics for x of a dtype: float32 at least."""
    return promote_types(dtype, jnp.float32)
