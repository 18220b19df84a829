"""How `benchmarks/modes.py` spreads a batch over devices: maps, shard_map, shardings, meshes."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from benchmarks.modes_steps import Groups, Step
from jbn import BatchNormState

DEVICES = 8


# ---- Ways to spread over devices -----------------------------------------------------------------


class Spread(NamedTuple):
    """A way to run one device's step on all devices.

    `over` turns a step that pools over `name` into a step of all devices. In the latter the state
    has a leading axis: the devices if `own` or with groups, else one copy for all devices that
    share it. Statistics are pooled over `pooled` devices: for each j, over i * 8 / pooled + j for
    all i. `jit` tells whether to jit the whole, `context` makes the context to run it in. `missing`
    is the reason if there are no groups.
    """

    over: Callable[[Step, Groups | None], Step]
    name: Any = "d"
    own: bool = False
    pooled: int = DEVICES
    jit: bool = True
    context: Callable[[], Any] = contextlib.nullcontext
    missing: str | None = None


def mesh(*names_and_sizes: tuple[str, int]) -> Mesh:
    """Make a mesh of all devices: mesh(("d", 8)) or mesh(("a", 4), ("b", 2))."""
    names, sizes = zip(*names_and_sizes, strict=True)
    return Mesh(np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes), names)


def split(tree: PyTree, devices: int = DEVICES) -> PyTree:
    """Split every array's leading axis in two: (devices, rest)."""
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), tree)


def join(tree: PyTree) -> PyTree:
    """Undo `split`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def by_map(transform: Callable[..., Any]) -> Callable[[Step, Groups | None], Step]:
    """Spread by pmap or vmap."""

    def over(step: Step, groups: Groups | None) -> Step:
        each = transform(step, axis_name="d", in_axes=(0, 0, None, 0))

        def run(x, mask, params, state):
            y, new = each(*split((x, mask)), params, state)
            return join(y), new

        return run

    return over


def by_shard_map(
    check: bool, axes: Sequence[tuple[str, int]] = (("d", DEVICES),), apart: Sequence[str] = ()
) -> Callable[[Step, Groups | None], Step]:
    """Spread by shard_map, with or without check_vma.

    `apart` names the axes along which devices have their own states; with groups, all axes are.
    Along the others, check_vma makes JAX prove that the new state is the same.
    """
    names = tuple(name for name, _ in axes)

    def over(step: Step, groups: Groups | None) -> Step:
        def body(x, mask, params, state):
            y, new = step(x, mask, params, jax.tree.map(lambda a: a[0], state))
            return y, jax.tree.map(lambda a: a[None], new)

        batch, own = P(names), P(names if groups else tuple(apart))
        return jax.shard_map(
            body,
            mesh=mesh(*axes),
            in_specs=(batch, batch, P(), own),
            out_specs=(batch, own),
            check_vma=check,
        )

    return over


def by_sharding(step: Step, groups: Groups | None) -> Step:
    """Spread by placing the arrays on the devices; in jit the batch is one global array."""

    def run(x, mask, params, state):
        placed = NamedSharding(mesh(("d", DEVICES)), P("d"))
        x, mask = jax.lax.with_sharding_constraint((x, mask), placed)
        y, new = step(x, mask, params, jax.tree.map(lambda a: a[0], state))
        return y, jax.tree.map(lambda a: a[None], new)

    return run


def two_dimensional(kind: AxisType) -> Mesh:
    """Make a 4x2 mesh with Explicit axes, the default of `jax.make_mesh`, or Auto ones."""
    return jax.make_mesh((4, 2), ("batch", "model"), axis_types=(kind, kind))


def on_mesh(kind: AxisType) -> Any:
    """Return a context that sets the 4x2 mesh."""
    return jax.sharding.set_mesh(two_dimensional(kind))


def by_mesh(kind: AxisType, features: bool) -> Callable[[Step, Groups | None], Step]:
    """Spread over a 4x2 mesh: the batch over its first axis and, if `features`, C over the second.

    Parameters and statistics are sharded like the features, and the new state like the old one.
    """

    def over(step: Step, groups: Groups | None) -> Step:
        own_step = jax.jit(step)

        def run(x, mask, params, state):
            model = "model" if features else None
            batch, vector = P("batch", None, None, model), P(model)

            def place(tree: Any, spec: Any) -> Any:
                on = NamedSharding(two_dimensional(kind), spec)
                return jax.tree.map(lambda a: jax.device_put(a, on), tree)

            mean, var, count = (a[0] for a in state)
            mean, var = place((mean, var), vector)
            state = BatchNormState(mean, var, place(count, P()))
            y, new = own_step(*place((x, mask), batch), place(params, vector), state)
            if any(jax.typeof(a) != jax.typeof(b) for a, b in zip(state, new, strict=True)):
                raise TypeError(f"Expected a new state like {state}, got {new}.")
            y, new = place((y, new), P())
            return y, jax.tree.map(lambda a: jnp.broadcast_to(a, (DEVICES, *a.shape)), new)

        return run

    return over


NO_AXIS = (
    "In jit over sharded arrays there is no axis to have groups of: reshape the batch "
    "to (groups, N / groups, ...) and vmap over the groups, or use a 2-D mesh"
)
NOT_IN_JAX = (
    "JAX has no psum over the name of a vmap inside shard_map with check_vma=True "
    "(tests/benchmarks/test_modes.py watches for one): give the axis to the mesh, or use "
    "check_vma=False"
)
IN_JIT = "jit over sharded arrays"
TWO = (("a", 4), ("b", 2))
SPREADS = {
    "pmap": Spread(by_map(jax.pmap), own=True, jit=False),
    "shard_map": Spread(by_shard_map(check=True)),
    "shard_map unchecked": Spread(by_shard_map(check=False)),
    "vmap": Spread(by_map(jax.vmap), own=True),
    IN_JIT: Spread(by_sharding, name=None, missing=NO_AXIS),
}
MESHES = {
    f"{IN_JIT}, {kind.name} mesh{', features too' * features}": Spread(
        by_mesh(kind, features),
        name=None,
        own=True,
        jit=False,
        missing=NO_AXIS,
        context=functools.partial(on_mesh, kind),
    )
    for kind in (AxisType.Explicit, AxisType.Auto)
    for features in (False, True)
}
TWO_AXES = {
    "both of two axes, shard_map": Spread(by_shard_map(True, TWO), ("a", "b")),
    "both of two axes, shard_map unchecked": Spread(by_shard_map(False, TWO), ("a", "b")),
    "one of two axes, shard_map": Spread(by_shard_map(True, TWO, ["b"]), "a", pooled=4),
    "one of two axes, shard_map unchecked": Spread(by_shard_map(False, TWO, ["b"]), "a", pooled=4),
}
