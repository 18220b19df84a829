"""The ways to spread a batch over eight devices, as one function each."""

import contextlib

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.modes_spreads import DEVICES, join, mesh, split
from jbn._center import _merge

# Of JAX's caches it is a part of the key: what was traced by another limit is not found.
limited = jax.make_user_context(_merge.GATHER_LIMIT)

MAPPED = ("pmap", "shard_map", "shard_map_unchecked", "vmap")
MODES = (*MAPPED, "jit")


def spread(function, mode, *, replicated):
    """Return `(sharded, whole) -> (sharded, whole)` of `function(sharded, whole)` on one shard.

    `function` names the axis "d". The leading axis of every array of the first argument and of
    the first result is sharded. The second result is the same on every device if `replicated`,
    which `shard_map` then proves; otherwise it comes back with a leading axis of devices, as it
    does from pmap and vmap in any case.
    """
    if mode != "vmap":
        need_devices()
    if mode in ("pmap", "vmap"):
        transform = {"pmap": jax.pmap, "vmap": jax.vmap}[mode]
        mapped = transform(function, axis_name="d", in_axes=(0, None))

        def run(sharded, whole):
            out, state = mapped(split(sharded), whole)
            return join(out), state

        return run

    if replicated:
        body, spec = function, P()
    else:
        spec = P("d")

        def body(sharded, whole):
            out, state = function(sharded, whole)
            return out, jax.tree.map(lambda a: a[None], state)

    return jax.shard_map(
        body,
        mesh=mesh(("d", DEVICES)),
        in_specs=(P("d"), P()),
        out_specs=(P("d"), spec),
        check_vma=mode == "shard_map",
    )


def one_of(state, mode, *, replicated):
    """Return one device's copy, having checked that all devices hold bit-identical ones."""
    if mode in ("pmap", "vmap") and replicated:
        state = jax.device_get(state)
        for leaf in jax.tree.leaves(state):
            np.testing.assert_array_equal(leaf, leaf[:1].repeat(DEVICES, 0))
        return jax.tree.map(lambda a: a[0], state)
    return state


def need_devices():
    """Skip the test where there are fewer: on a GPU there are those that it has."""
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices, there are {jax.device_count()}")


def shard(tree, *, replicate=False):
    """Return the arrays on eight devices, for jit."""
    need_devices()
    spec = P() if replicate else P("d")
    return jax.device_put(tree, NamedSharding(mesh(("d", DEVICES)), spec))


def compiled(function, mode):
    """Return the jitted function; pmap compiles by itself and warns inside jit."""
    return function if mode == "pmap" else jax.jit(function)


@contextlib.contextmanager
def gather_limit(devices):
    """Let more devices than these be too many to gather."""
    with pytest.MonkeyPatch.context() as patch, limited(devices):
        patch.setattr(_merge, "GATHER_LIMIT", devices)
        yield
