"""The ways to spread a batch over eight devices, behind one function."""

import contextlib

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.modes_spreads import DEVICES, join, mesh, split
from jbn._center import _merge

# This makes the limit part of the key of JAX's caches, so traces with another limit are not reused.
limited = jax.make_user_context(_merge.GATHER_LIMIT)

MAPPED = ("pmap", "shard_map", "shard_map_unchecked", "vmap")
MODES = (*MAPPED, "jit")


def spread(function, mode, *, replicated):
    """Return a map `(sharded, whole) -> (sharded, whole)` that runs `function` on each shard.

    `function` uses the axis name "d". The leading axis of every array in the first argument and
    the first result is sharded. If `replicated`, the second result is the same on every device,
    which `shard_map` then proves. Otherwise it is returned with a leading axis of devices, as
    pmap and vmap return it in any case.
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
    """Return one device's copy, after checking that all copies are bit-identical."""
    if mode in ("pmap", "vmap") and replicated:
        state = jax.device_get(state)
        for leaf in jax.tree.leaves(state):
            np.testing.assert_array_equal(leaf, leaf[:1].repeat(DEVICES, 0))
        return jax.tree.map(lambda a: a[0], state)
    return state


def need_devices():
    """Skip the test if there are fewer than eight devices; GPUs cannot be virtual as CPUs are."""
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices, there are {jax.device_count()}")


def shard(tree, *, replicate=False):
    """Return the arrays on eight devices, for jit."""
    need_devices()
    spec = P() if replicate else P("d")
    return jax.device_put(tree, NamedSharding(mesh(("d", DEVICES)), spec))


def compiled(function, mode):
    """Return the function jitted, except for pmap, which compiles it and warns inside jit."""
    return function if mode == "pmap" else jax.jit(function)


@contextlib.contextmanager
def gather_limit(devices):
    """Set the number of devices above which nothing is gathered."""
    with pytest.MonkeyPatch.context() as patch, limited(devices):
        patch.setattr(_merge, "GATHER_LIMIT", devices)
        yield
