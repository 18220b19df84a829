"""What the types of arrays tell of devices: on meshes with explicit axes, and inside `shard_map`.

On explicit axes, which `jax.make_mesh` makes by default, an array's sharding is part of its type,
and `select` asks that all have the same one. Inside `shard_map`, unless check_vma=False, the axes
along which devices may hold different values are. Elsewhere these functions change nothing.
"""

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def like(value: Array, reference: Array) -> Array:
    """Give a value, broadcast if need be, the shape and the sharding of another."""
    value = jnp.broadcast_to(value, reference.shape)
    sharding = jax.typeof(reference).sharding
    return jax.sharding.reshard(value, sharding) if _is_explicit(sharding) else value


def like_reduced(value: Array, x: Array, axes: Sequence[int]) -> Array:
    """Give a vector the shape and the sharding of x reduced over some axes, which are kept as 1."""
    shape = [1 if a in axes else size for a, size in enumerate(x.shape)]
    value = jnp.broadcast_to(value, shape)
    sharding = jax.typeof(x).sharding
    return (
        jax.sharding.reshard(value, _without(sharding, axes)) if _is_explicit(sharding) else value
    )


def gathered(x: Array, axes: Sequence[int]) -> Array:
    """Give every device all of x along some axes."""
    sharding = jax.typeof(x).sharding
    if not _is_explicit(sharding):
        return x
    return jax.sharding.reshard(x, _without(sharding, axes))


def on_all(x: Array) -> NamedSharding | None:
    """Return the `out_sharding` of a product that sums over sharded axes: all of it everywhere."""
    sharding = jax.typeof(x).sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if _is_explicit(sharding) else None


def is_explicitly_sharded(x: Array, axes: Sequence[int]) -> bool:
    """Tell whether some of these axes are split by x's type."""
    sharding = jax.typeof(x).sharding
    return _is_explicit(sharding) and any(sharding.spec[a] is not None for a in axes)


def varying_axes(value: Array) -> frozenset[Hashable]:
    """List the axes along which devices may hold different values, by its type.

    That they do not along others is what the type says: copies of a replicated array may differ.
    """
    return frozenset(jax.typeof(value).manual_axis_type.varying)


def varying_like(value: Array, x: Array) -> Array:
    """Let a value count as one that may differ between devices, as x does."""
    names = varying_axes(x) - varying_axes(value)
    return jax.lax.pcast(value, tuple(names), to="varying") if names else value


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types


def _without(sharding: NamedSharding, axes: Sequence[int]) -> NamedSharding:
    spec = (None if a in axes else name for a, name in enumerate(sharding.spec))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
