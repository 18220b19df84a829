"""Sums and gathers over named axes, or groups along them, under every transform that binds names.

They use only `psum` and `axis_index`: the `axis_index_groups` of JAX's own collectives is not
implemented under `vmap`, nor in `shard_map` with check_vma
(https://github.com/jax-ml/jax/issues/19709), and `shard_map` types the result of a `psum` as
replicated. To gather, each device writes to its own slot in zeros, and a sum combines the slots.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from numbers import Number
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbn._inputs import as_index, describe

AxisName = Hashable | Sequence[Hashable]


class Pool(NamedTuple):
    """The devices that share statistics: named axes, their joint size, and groups of indices.

    `group_of[i]` is the group of the device with (row-major) index i; None if all are one group.
    """

    names: tuple[Hashable, ...]
    sizes: tuple[int, ...]
    group_of: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """The number of devices, D."""
        return math.prod(self.sizes)

    @property
    def smallest_group(self) -> int:
        """The number of devices in the smallest group."""
        if self.group_of is None:
            return self.size
        return min(self.group_of.count(group) for group in self.group_of)

    def gather(self, x: Array) -> Array:
        """Stack the x of all devices, `(D, *x.shape)`; the result is the same on each."""
        slots = jnp.zeros((self.size, *x.shape), x.dtype)
        return self._psum(slots.at[self._index()].set(x))

    def sum(self, x: Array) -> Array:
        """Sum x over this device's group."""
        if self.group_of is None:
            return self._psum(x)
        slots = jnp.zeros((max(self.group_of) + 1, *x.shape), x.dtype)
        group = self._group()
        return self._psum(slots.at[group].set(x))[group]

    def from_first_member(self, x: Array) -> Array:
        """Return the x of the first device in this device's group."""
        groups = [0] * self.size if self.group_of is None else list(self.group_of)
        firsts = [groups.index(group) == i for i, group in enumerate(groups)]
        return self.sum(jnp.where(jnp.asarray(firsts)[self._index()], x, 0))

    def members(self) -> Array | None:
        """Return which devices are in this device's group, `(D,)` bool; None if all are."""
        return None if self.group_of is None else jnp.asarray(self.group_of) == self._group()

    def _psum(self, x: Array) -> Array:
        try:
            return jax.lax.psum(x, self.names)
        except (AssertionError, ValueError):  # JAX's messages hide the cause.
            raise ValueError(
                f"Expected axes of the mesh in `axis_name` inside shard_map, got {self.names}: JAX "
                "has no psum over the name of a vmap there. Give that axis to the mesh, as in the "
                "2-D mesh jax.make_mesh((D, V), ('d', 'v')), or use shard_map(check_vma=False)."
            ) from None

    def _index(self) -> Array | int:
        # One name at a time: axis_index of a tuple fails where a derivative is taken after the axis
        # is gone, as in jax.grad(jax.jit(jax.vmap(f, axis_name=...))).
        index = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            index = index * size + jax.lax.axis_index(name)
        return index

    def _group(self) -> Array:
        return jnp.asarray(self.group_of)[self._index()]


def jit_over_devices(
    function: Callable[..., Any], static_argnames: Sequence[str]
) -> Callable[..., Any]:
    """Compile and cache a function of arrays and the keyword `pool`.

    The function is inlined where a vmap with a named axis is itself being compiled: otherwise its
    derivative would be taken after that axis is gone, as in
    jax.grad(jax.jit(jax.vmap(f, axis_name=...))).
    """
    program = jax.jit(function, static_argnames=(*static_argnames, "pool"))

    @functools.wraps(function)
    def call(*arrays: Any, pool: Pool | None, **static: Any) -> Any:
        lasting = pool is None or _is_of_mesh(pool.names) or not _is_staged()
        return (program if lasting else function)(*arrays, pool=pool, **static)

    return call


def _is_of_mesh(names: tuple[Hashable, ...]) -> bool:
    return set(names) <= set(jax.sharding.get_abstract_mesh().manual_axes)


def _is_staged() -> bool:
    """Tell whether operations are recorded for compilation, in which even constants are traced."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def pool(
    axis_name: AxisName | None, axis_index_groups: Sequence[Sequence[int]] | None
) -> Pool | None:
    """Check names and groups against the bound axes; return their pool, or None without a name."""
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                f"Expected `axis_name` with axis_index_groups={axis_index_groups}, got None. "
                "Name the axis whose indices the groups are of. In jit over sharded arrays there "
                "is none: use shard_map over a 2-D mesh and name one of its axes, or vmap over a "
                "batch of shape (groups, N / groups, ...)."
            )
        return None
    names = tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)
    for name in names:
        if not _is_name(name):
            raise TypeError(
                f"Expected `axis_name` to be a name, or a tuple of names, got {describe(name)}. "
                "Pass the name that pmap, shard_map or vmap gives the axis, such as 'devices'."
            )
    if len(set(names)) != len(names) or not names:
        raise ValueError(
            f"Expected one or more different names, got axis_name={axis_name!r}. "
            "Name each axis once, or leave axis_name out."
        )
    sizes = tuple(_axis_size(name) for name in names)
    size = math.prod(sizes)
    if axis_index_groups is None:
        return Pool(names, sizes, None)
    groups = _as_groups(axis_index_groups)
    if sorted(i for group in groups for i in group) != list(range(size)):
        raise ValueError(
            f"Expected `axis_index_groups` to hold each index of axis {axis_name!r}, 0 to "
            f"{size - 1}, exactly once, got {axis_index_groups}. List every index in one group."
        )
    group_of = np.empty(size, int)
    for g, group in enumerate(groups):
        group_of[group] = g
    return Pool(names, sizes, tuple(group_of.tolist()))


def _is_name(name: Any) -> bool:
    """Tell what can name an axis: anything hashable but a number, which to JAX is a position."""
    try:
        hash(name)
    except TypeError:
        return False
    return name is not None and not isinstance(name, Number | tuple)


def _as_groups(groups: Any) -> list[list[int]]:
    """Check that groups are lists of ints."""
    try:
        indices = [[as_index(i) for i in group] for group in groups]
    except TypeError:  # Not iterable.
        indices = [[None]]
    found = [[i for i in group if i is not None] for group in indices]
    if found != indices or not all(found):
        shown = groups if isinstance(groups, list | tuple) else describe(groups)
        raise TypeError(
            f"Expected `axis_index_groups` to be lists of ints, got {shown}. "
            "List the indices of each group, as in [[0, 1], [2, 3]]."
        )
    return found


def _axis_size(name: Hashable) -> int:
    try:
        return jax.lax.axis_size(name)
    except (NameError, TypeError, ValueError):
        raise ValueError(
            f"Expected `axis_name` to be bound by pmap, shard_map or vmap, got {name!r}, which is "
            "not. Call from inside that transform, as in jax.vmap(f, axis_name=...); in jit over "
            "sharded arrays the batch is already global: leave axis_name out."
        ) from None
