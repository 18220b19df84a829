"""What array types say about devices, on meshes with explicit axes and inside `shard_map`.

On explicit axes, which `jax.make_mesh` makes by default, an array's sharding is part of its type,
and all operands of `select` must have the same one. Inside `shard_map`, unless check_vma=False, the
type includes the axes along which devices may hold different values. Elsewhere these functions
change nothing.
"""

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def like(value: Array, reference: Array) -> Array:
    """Broadcast and reshard a value to the shape and sharding of another."""
    value = jnp.broadcast_to(value, reference.shape)
    sharding = jax.typeof(reference).sharding
    return jax.sharding.reshard(value, sharding) if _is_explicit(sharding) else value


def like_reduced(value: Array, x: Array, axes: Sequence[int]) -> Array:
    """Give a vector the shape and sharding of x reduced over some axes, which keep length 1."""
    shape = [1 if a in axes else size for a, size in enumerate(x.shape)]
    value = jnp.broadcast_to(value, shape)
    sharding = jax.typeof(x).sharding
    return (
        jax.sharding.reshard(value, _without(sharding, axes)) if _is_explicit(sharding) else value
    )


def gathered(x: Array, axes: Sequence[int]) -> Array:
    """Gather x along some axes, so that every device has all of it there."""
    sharding = jax.typeof(x).sharding
    if not _is_explicit(sharding):
        return x
    return jax.sharding.reshard(x, _without(sharding, axes))


def on_all(x: Array) -> NamedSharding | None:
    """Return the `out_sharding` of a product that sums over sharded axes: fully replicated."""
    sharding = jax.typeof(x).sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if _is_explicit(sharding) else None


def is_explicitly_sharded(x: Array, axes: Sequence[int]) -> bool:
    """Tell whether x's type shards any of these axes."""
    sharding = jax.typeof(x).sharding
    return _is_explicit(sharding) and any(sharding.spec[a] is not None for a in axes)


def varying_axes(value: Array) -> frozenset[Hashable]:
    """List the axes along which devices may hold different values, according to the type.

    The type does not guarantee equality along other axes: copies of a replicated array may differ.
    """
    return frozenset(jax.typeof(value).manual_axis_type.varying)


def varying_like(value: Array, x: Array) -> Array:
    """Type a value as varying between devices wherever x does."""
    names = varying_axes(x) - varying_axes(value)
    return jax.lax.pcast(value, tuple(names), to="varying") if names else value


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types


def _without(sharding: NamedSharding, axes: Sequence[int]) -> NamedSharding:
    spec = (None if a in axes else name for a, name in enumerate(sharding.spec))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
