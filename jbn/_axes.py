"""Checks of x, its axes and its mask, and reshapes between x and its feature axes."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._inputs import as_array, as_index, describe


def as_inexact(x: ArrayLike, name: str = "x") -> Array:
    """Check that x is floating or complex."""
    array = as_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"Expected floating or complex `{name}`, got {array.dtype}. "
            f"Convert it: jnp.asarray({name}, jnp.float32)."
        )
    return array


def feature_axes(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Turn `axis` into non-negative axes in ascending order, the order of the statistics' shape."""
    several = isinstance(axis, Sequence) and not isinstance(axis, str | bytes)
    indices = [as_index(a) for a in (axis if several else (axis,))]
    given = tuple(a for a in indices if a is not None)
    if len(given) != len(indices):
        raise TypeError(
            f"Expected `axis` to be an int or a tuple of ints, got {describe(axis)}. "
            "Name the feature axis, which is -1 for channels last and 1 for channels first."
        )
    if ndim == 0:
        raise ValueError("Expected x with a feature axis, got a scalar. Reshape it: x[None].")
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(
            f"Expected `axis` within -{ndim} to {ndim - 1} for x of {ndim} axes, got {axis}. "
            "Name the feature axis, which is -1 for channels last and 1 for channels first."
        )
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) != len(axes) or not axes:
        raise ValueError(
            f"Expected one or more different axes, got {axis} for x of {ndim} axes. "
            "Name each feature axis once."
        )
    return axes


def reduction_axes(x: Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """List the axes that are not feature axes."""
    return tuple(a for a in range(x.ndim) if a not in features)


def to_features(vectors: Any, features: tuple[int, ...]) -> Any:
    """Drop the reduced axes, which have length 1, from a pytree of vectors."""
    return jax.tree.map(lambda v: v.reshape([v.shape[a] for a in features]), vectors)


def along_features(vector: Array, x: Array, features: tuple[int, ...]) -> Array:
    """Reshape a vector over the feature axes to x's rank."""
    return vector.reshape([x.shape[a] if a in features else 1 for a in range(x.ndim)])


def check_batch(x: Array) -> None:
    """Reject an empty batch."""
    if x.size == 0:
        raise ValueError(
            f"Expected at least one value per feature, got an empty batch of shape {x.shape}. "
            "Skip the step, or pad the batch and mask the padding."
        )


def check_mask(mask: ArrayLike | None, x: Array, features: tuple[int, ...]) -> Array | None:
    """Check that the mask is boolean or float, has x's rank and broadcasts to x."""
    if mask is None:
        return None
    mask = as_array("mask", mask, "Pass an array of bool, or None.")
    if not (mask.dtype == jnp.bool_ or jnp.issubdtype(mask.dtype, jnp.floating)):
        raise TypeError(
            f"Expected a boolean `mask` or float weights, got {mask.dtype}. Write mask != 0."
        )
    if mask.ndim != x.ndim or any(
        m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    ):
        raise ValueError(
            f"Expected `mask` of x's {x.ndim} axes, each of x's length or 1, for x.shape="
            f"{x.shape}, got {mask.shape}. {_mask_remedy(mask.shape, x.shape, features)}"
        )
    return mask


def _mask_remedy(mask: tuple[int, ...], x: tuple[int, ...], features: tuple[int, ...]) -> str:
    """Say how to index a mask of lower rank to fit x, along feature axes only if it must."""
    candidates = sorted(
        itertools.combinations(range(len(x)), len(mask)),
        key=lambda axes: (len(set(axes) & set(features)), axes),
    )
    for axes in candidates if len(mask) < len(x) else ():
        if all(m in (1, x[a]) for m, a in zip(mask, axes, strict=True)):
            leading = axes == tuple(range(len(mask)))
            index = ["..."] if leading else []
            index += (
                ["None"] * (len(x) - len(mask))
                if leading
                else [":" if a in axes else "None" for a in range(len(x))]
            )
            return f"Write mask[{', '.join(index)}]."
    per_example = ", ".join(["N"] + ["1"] * (len(x) - 1))
    return f"A mask of examples has shape ({per_example})."
