"""Pool running statistics that each device updated on its own, and check whether they differ.

Training may use local statistics: without `axis_name` there is no collective. Devices then hold
different states, and evaluating or saving one of them ignores the data of the others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool

from jbn._arguments import check_flag, check_statistics
from jbn._center import pooled, root
from jbn._collectives import AxisName, Pool, jit_over_devices, pool
from jbn._dtypes import wide_dtype
from jbn._inputs import as_array, describe
from jbn._types import BatchNormState, Moments, WeightedMoments, is_statistics

State = TypeVar("State")


def synchronize(
    state: State,
    counts: Moments | WeightedMoments | ArrayLike | None = None,
    *,
    axis_name: AxisName | None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> State:
    """Pool running statistics over devices: means, and variances within *and between* devices.

    mean = sum n_d mean_d / n, var = sum n_d (var_d + |mean_d - mean|^2) / n, with n = sum n_d.
    Averaging the variances alone would lose the spread between devices. Call this inside the
    mapped function, before evaluation and checkpoints; nothing else in training needs it.

    Args:
      state: BatchNormState, or any pytree of them. Dicts with `mean` and `var`, as in a Flax
        `batch_stats` collection, are also recognized.
      counts: n_d, the weight of this device's statistics: a number, an array `(C,)` with one per
        feature, or Moments, whose count is used. None uses the state's own `count`, the number of
        batches absorbed, or 1 for dicts without one. Negative counts are 0; NaN makes the result
        NaN. If all devices have weight 0, they are weighted equally.
      axis_name: name, or tuple of names, of mapped axes (pmap, vmap, shard_map).
      axis_index_groups: partition of the indices along `axis_name`; statistics are pooled within
        each group.

    Returns:
      A state of the same structure, equal on every device (of a group), which `shard_map` types as
      replicated if there are no groups. Its count is the largest over the devices.

    Raises:
      TypeError: no statistics in `state`; boolean counts.
      ValueError: no name, or an unbound one; groups that do not partition the axis; counts of
        another shape.

    Example:
      >>> import jax, jax.numpy as jnp, jbn
      >>> _, state = jbn.init(1)
      >>> def train(x):  # Local statistics, then one state for all.
      ...     local = jbn.update(state, jbn.moments(x), momentum=jbn.cumulative, unbiased=False)
      ...     return jbn.synchronize(local, axis_name="d")
      >>> step = jax.jit(jax.vmap(train, axis_name="d"))
      >>> state = step(jnp.array([[[0.0], [2.0]], [[4.0], [6.0]]]))
      >>> state.mean[:, 0].tolist(), state.var[:, 0].tolist()
      ([3.0, 3.0], [5.0, 5.0])

    References:
      Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """
    devices = pool(axis_name, axis_index_groups)
    if devices is None:
        raise ValueError(
            "Expected `axis_name`, got None. Call synchronize inside the mapped function, with the "
            "name of its axis; under jit over sharded arrays, statistics are already global."
        )
    found = 0

    def together(node: Any) -> Any:
        nonlocal found
        if not is_statistics(node):
            return node
        found += 1
        return _merge_layer(node, counts, devices)

    state = jax.tree.map(together, state, is_leaf=is_statistics)
    if not found:
        raise TypeError(
            f"Expected BatchNormState or dicts with mean and var in `state`, got "
            f"{describe(state)}. Pass the statistics, not the parameters."
        )
    return state


def is_synchronized(
    state: Any,
    *,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    stacked: bool = False,
) -> Bool[ArrayLike, ""]:
    """Check whether all devices hold the same state.

    Args:
      state: any pytree of arrays. NaN counts as equal to NaN.
      axis_name: inside a mapped function, its axis or axes. Outside of one, None: then the copies
        of each array on this host's devices are compared, since `shard_map` without check_vma can
        leave them different whatever its out_specs say.
      axis_index_groups: partition of the indices along `axis_name`; devices are compared within
        each group.
      stacked: outside a mapped function, whether the arrays have a leading device axis, as `pmap`
        and `vmap` return them.

    Returns:
      Inside a mapped function, a boolean array, the same on every device; outside, a bool.

    Raises:
      TypeError: no arrays in `state`.
      ValueError: an unbound name; groups that do not partition the axis; a traced state without
        `axis_name`; with `stacked`, an array without a leading axis.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, state = jbn.init(2)
      >>> jbn.is_synchronized(state), jbn.is_synchronized(state.mean - 1, stacked=True)
      (True, True)
      >>> jbn.is_synchronized(jnp.array([[1.0], [2.0]]), stacked=True)
      False
    """
    leaves = [
        as_array("state", leaf, "Pass a pytree of arrays.") for leaf in jax.tree.leaves(state)
    ]
    if not leaves:
        raise TypeError(
            f"Expected `state` with one or more arrays, got {describe(state)}. Pass the statistics."
        )
    stacked = check_flag("stacked", stacked)
    devices = pool(axis_name, axis_index_groups)
    if devices is None:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            raise ValueError(
                "Expected `axis_name` where `state` is traced, got None. Name the axis of the "
                "mapped function, or call is_synchronized outside of it."
            )
        if stacked and any(leaf.ndim == 0 for leaf in leaves):
            raise ValueError(
                "Expected arrays with a leading axis of devices with stacked=True, got one of "
                "shape (). Pass the state as pmap or vmap returned it, or leave stacked out."
            )
        return all(_same(copies) for leaf in leaves for copies in _copies(leaf, stacked))
    return _agree(leaves, pool=devices)


@functools.partial(jit_over_devices, static_argnames=())
def _agree(leaves: list[Array], *, pool: Pool) -> Array:
    """Tell whether all devices of each group have the same leaves."""
    differ = jnp.asarray(False)
    for leaf in leaves:
        first = pool.from_first_member(leaf)
        differ |= jnp.any((leaf != first) & ((leaf == leaf) | (first == first)))
    everyone = pool._replace(group_of=None)
    return everyone.sum(differ.astype(jnp.int32)) == 0


def _merge_layer(
    node: Any, counts: Moments | WeightedMoments | ArrayLike | None, devices: Pool
) -> Any:
    """Pool one layer's statistics."""
    fields = node._asdict() if isinstance(node, BatchNormState) else dict(node)
    mean, var = check_statistics(fields["mean"], fields["var"])
    if isinstance(counts, Moments | WeightedMoments):
        counts = counts.count
    weight = fields.get("count", 1) if counts is None else counts
    n = as_array("counts", weight, "Pass a number, one per feature, or Moments.")
    if n.dtype == jnp.bool_:
        raise TypeError(
            "Expected `counts` to be numbers of values, got bool. Pass how many values this "
            "device's statistics are based on, or counts.astype(jnp.int32)."
        )
    if n.shape not in ((), mean.shape):
        raise ValueError(
            f"Expected `counts` to be a number or of shape {mean.shape}, one per feature, got "
            f"{n.shape}. Pass how many examples this device's statistics are based on."
        )
    mean, var, count = _merged(mean, var, n, fields.get("count"), pool=devices)
    fields |= {"mean": mean, "var": var} | ({} if count is None else {"count": count})
    return BatchNormState(**fields) if isinstance(node, BatchNormState) else type(node)(fields)


@functools.partial(jit_over_devices, static_argnames=())
def _merged(
    mean: Array, var: Array, n: Array, count: Array | None, *, pool: Pool
) -> tuple[Array, Array, Array | None]:
    """Pool mean and var, which have weight n on this device, and take the largest count."""
    wide = wide_dtype(mean.dtype)
    n = jnp.broadcast_to(n, mean.shape).astype(jnp.finfo(wide).dtype)
    n = jnp.maximum(n, 0)
    n = jnp.where(pool.sum(n) == 0, 1, n)
    std = root(var.astype(n.dtype))
    whole = pooled(pool, mean.astype(wide), jnp.zeros(mean.shape, wide), std, n)
    if count is not None:
        counted, members = pool.gather(jnp.asarray(count)), pool.members()
        count = jnp.max(counted if members is None else jnp.where(members, counted, 0))
    return (whole.pivot + whole.remainder).astype(mean.dtype), whole.var.astype(var.dtype), count


def _copies(leaf: Array, stacked: bool) -> list[list[np.ndarray]]:
    """List what must be equal: the entries of the first axis, or the copies of each shard."""
    if stacked:
        return [list(np.asarray(leaf))]
    copies: dict[str, list[np.ndarray]] = {}
    for shard in leaf.addressable_shards:
        copies.setdefault(str(shard.index), []).append(np.asarray(shard.data))
    return list(copies.values())


def _same(copies: list[np.ndarray]) -> bool:
    return all(np.array_equal(copies[0], copy, equal_nan=True) for copy in copies[1:])
