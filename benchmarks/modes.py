"""Every way to spread a batch over devices, steps or micro-batches, against one device.

A table: ways x masks x with and without groups of devices. Each cell is the largest difference from
`jbn.batch_norm` called plainly on one device with the whole batch, or with one group's part of it,
over everything that there is: the output, the gradient of x, scale, bias, running mean and variance
and float weights, and the new running statistics. The loss takes the output and the new statistics
times random numbers, so that no gradient is zero or a constant. Every device's copy of the new
statistics must be bit for bit that of the devices it shares them with.

The batch has another mean, and with a mask another count, on every device: an average that forgets
the counts shows. `tests/benchmarks/test_modes.py` asserts this same table.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, PyTree

import jbn
from benchmarks import common
from jbn import BatchNormParams, BatchNormState

DEVICES = 8
# Examples, sharded; steps, micro-batches, models or slices of a device; space; features.
SHAPE = (16, 2, 3, 6)
PARTS = SHAPE[1]
MOMENTUM, EPSILON = 0.75, 1e-2

# Float32 rounds by 6e-8, and the order of summation differs: y is off by 1e-6, the gradient of
# scale, a sum over the batch, by 4e-6. A wrong weight or gradient is off by 5e-3 and more.
TOLERANCE = 2e-5

Groups = Sequence[Sequence[int]]
# One call in training: (x, mask, params, state) -> (y, new state).
Step = Callable[
    [Array, Array | None, BatchNormParams, BatchNormState], tuple[Array, BatchNormState]
]
Arguments = dict[str, Any]  # Of a training step, by name: what is differentiated.
Errors = dict[str, float]

# Unequal groups, out of order, of the indices of an axis by its length.
PARTITIONS: dict[int, Groups] = {8: [[6, 0, 3], [1, 2, 4, 7, 5]], 4: [[3, 0, 1], [2]]}
EMPTY = 4  # The device whose shard is masked. Over axis "a" of a 4x2 mesh it is a group of its own.
GROUPS = ("no groups", "groups")
MASKS = ("no mask", "unequal counts", "one shard masked", "all masked", "float weights")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and where to leave the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: one of the ways, seconds, to see that all works"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- What a device does --------------------------------------------------------------------------


def norm(names: Any = None, groups: Groups | None = None) -> Step:
    """Make the step of one device: `jbn.batch_norm`, pooled over `names`."""

    def step(x, mask, params, state):
        return jbn.batch_norm(
            x,
            params,
            state,
            training=True,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            mask=mask,
            axis_name=names,
            axis_index_groups=groups,
        )

    return step


def accumulated(names: Any = None, groups: Groups | None = None) -> Step:
    """Make `norm` of micro-batches: merge their moments, then normalize each and move once."""

    def step(x, mask, params, state):
        def one(part):
            values, mask = part
            return jbn.moments(values, mask=mask, axis_name=names, axis_index_groups=groups)

        micro_batches = parts(x), parts(mask)
        each = jax.lax.map(one, micro_batches)
        merged = jbn.merge_moments(*unstack(each, PARTS))
        has = merged.count > 0  # Without any weight, the running statistics stand in.
        mean = jnp.where(has, merged.mean, state.mean)
        var = jnp.where(has, merged.var, state.var)
        y = jax.lax.map(
            lambda part: jbn.normalize(part, mean, var, params, epsilon=EPSILON), micro_batches[0]
        )
        return jnp.moveaxis(y, 0, 1), jbn.update(state, merged, momentum=MOMENTUM)

    return step


def scanned(step: Step) -> Step:
    """Make a step of several: one for each part of the batch, the state carried by `lax.scan`."""

    def run(x, mask, params, state):
        def one(state, part):
            x, mask = part
            y, state = step(x, mask, params, state)
            return state, y

        state, y = jax.lax.scan(one, state, (parts(x), parts(mask)))
        return jnp.moveaxis(y, 0, 1), state

    return run


def looped(step: Step) -> Step:
    """Make what `scanned` must equal: the same steps in Python."""

    def run(x, mask, params, state):
        y = []
        for k in range(PARTS):
            out, state = step(x[:, k], None if mask is None else mask[:, k], params, state)
            y.append(out)
        return jnp.stack(y, 1), state

    return run


def models(step: Step) -> Step:
    """Make the step of several models, each with its own batch, parameters and state, by vmap."""
    return jax.vmap(step, in_axes=(1, 1, 0, 0), out_axes=(1, 0))


def models_in_turn(step: Step) -> Step:
    """Make what `models` must equal: one model after the other."""

    def run(x, mask, params, state):
        found = [
            step(x[:, k], None if mask is None else mask[:, k], *own)
            for k, own in enumerate(unstack((params, state), PARTS))
        ]
        y, new = zip(*found, strict=True)
        return jnp.stack(y, 1), stack(new)

    return run


def pooled_slices(name: Any, groups: Groups | None) -> Step:
    """Make `norm` over `name` and over a vmapped axis "v" of slices of each device's batch."""
    if groups:  # Indices over both names are row-major: all slices of a device go with it.
        groups = [[i * PARTS + v for i in group for v in range(PARTS)] for group in groups]
    each = jax.vmap(
        norm((name, "v"), groups), axis_name="v", in_axes=(1, 1, None, None), out_axes=(1, 0)
    )

    def run(x, mask, params, state):
        y, new = each(x, mask, params, state)
        return y, jax.tree.map(lambda a: a[0], new)

    return run


def parts(x: Array | None) -> Array | None:
    """Bring the second axis to the front."""
    return None if x is None else jnp.moveaxis(x, 1, 0)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stack every array of trees that are alike."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """Undo `stack`."""
    return [jax.tree.map(lambda a, k=k: a[k], tree) for k in range(count)]


# ---- How it is spread over devices ---------------------------------------------------------------


class Spread(NamedTuple):
    """A way to run one device's step on all of them.

    `over` makes a step of all devices from one that pools over `name`. In it the state has a
    leading axis: of devices if `own` or with groups, else one copy for all devices that agree.
    Statistics are pooled over `pooled` devices: i * 8 / pooled + j over all i, for each j.
    `jit` says that it may be compiled whole, `context` in which. `missing` is the reason why there
    are no groups.
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
    """Make two of every array's leading axis: (devices, rest)."""
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

    `apart` are the axes along which devices have states of their own. With groups it is all of
    them; along the others, check_vma has JAX prove that the new state is the same.
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
    """Spread by placing the arrays on the devices: in jit the batch is one, global array."""

    def run(x, mask, params, state):
        placed = NamedSharding(mesh(("d", DEVICES)), P("d"))
        x, mask = jax.lax.with_sharding_constraint((x, mask), placed)
        y, new = step(x, mask, params, jax.tree.map(lambda a: a[0], state))
        return y, jax.tree.map(lambda a: a[None], new)

    return run


def two_dimensional(kind: AxisType) -> Mesh:
    """Make a mesh of 4x2 with Explicit axes, as `jax.make_mesh` does by default, or Auto ones."""
    return jax.make_mesh((4, 2), ("batch", "model"), axis_types=(kind, kind))


def on_mesh(kind: AxisType) -> Any:
    """Make such a mesh that of the context."""
    return jax.sharding.set_mesh(two_dimensional(kind))


def by_mesh(kind: AxisType, features: bool) -> Callable[[Step, Groups | None], Step]:
    """Spread by a mesh of 4x2: the batch over its first axis, and, if asked for, C over the second.

    Parameters and statistics are sharded like the features; the new state must be as the old one.
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


# ---- The table -----------------------------------------------------------------------------------


PLAIN = norm()


class Way(NamedTuple):
    """A row of the table: a step by name and groups, how it is spread, what it must equal.

    `lead` are the leading axes of parameters and state.
    """

    spread: Spread
    step: Callable[[Any, Groups | None], Step] = norm
    plain: Step = PLAIN
    lead: tuple[int, ...] = ()
    missing: str | None = None
    """Why the whole row is."""


def ways() -> dict[str, Way]:
    """Make the rows, by name: `a of b` has a outside.

    Checkpoints and accumulation are not repeated for pmap and shard_map unchecked: to JAX these two
    are one, and have the rows in which they may differ from shard_map.
    """
    in_turn = looped(PLAIN)
    found = {name: Way(spread) for name, spread in SPREADS.items()}
    for name, spread in SPREADS.items():
        found[f"{name} of scan"] = Way(spread, lambda n, g: scanned(norm(n, g)), in_turn)
    checked = SPREADS["shard_map"]
    outside = checked._replace(over=lambda step, g: scanned(checked.over(step, g)))
    found["scan of shard_map"] = Way(outside, norm, in_turn)
    for name in ("shard_map", "vmap", IN_JIT):
        spread = SPREADS[name]
        found[f"{name} of checkpoint"] = Way(spread, lambda n, g: jax.checkpoint(norm(n, g)))
        found[f"{name} of accumulation"] = Way(spread, accumulated)
    found |= {name: Way(spread) for name, spread in (TWO_AXES | MESHES).items()}
    found["shard_map of vmap of models"] = Way(
        checked, lambda n, g: models(norm(n, g)), models_in_turn(PLAIN), (PARTS,)
    )
    for name, missing in (("shard_map", NOT_IN_JAX), ("shard_map unchecked", None)):
        found[f"{name} of vmap, over both"] = Way(SPREADS[name], pooled_slices, missing=missing)
    return found


WAYS = ways()
SMOKE_WAYS = (IN_JIT,)


def measure(way: str, mask: str, groups: str) -> Errors | str:
    """Compare one cell of the table with one device.

    Returns:
      the largest error of each thing compared, relative to max(1, |what one device has|),
      or the reason why the cell has no meaning.
    """
    row, partition = WAYS[way], groups == "groups"
    if reason := missing(row, groups):
        return reason
    sets = sharing(row.spread.pooled, partition)
    given = inputs(mask, len(sets), row.lead)
    y, copies, gradient = on_devices(row, partition, *given)
    want_y, want_states, want_gradient = on_one(row.plain, sets, *given)
    errors = {"y": error(y, want_y)}
    errors |= {f"d {name}": error(gradient[name], want) for name, want in want_gradient.items()}
    for name, copy, want in zip(BatchNormState._fields, copies, want_states, strict=True):
        first = copy[[devices[0] for devices in sets]]
        errors[f"new {name}"] = error(first, want)
        errors[f"copies of new {name} that differ"] = sum(
            copy[i].tobytes() != of_set.tobytes()
            for devices, of_set in zip(sets, first, strict=True)
            for i in devices
        )
    return errors


def missing(row: Way, groups: str) -> str | None:
    """Say why a row has no cells with or without groups; None where it has them."""
    return row.missing or (row.spread.missing if groups == "groups" else None)


def sharing(pooled: int, partition: bool) -> tuple[tuple[int, ...], ...]:
    """List the devices that share statistics, set by set."""
    groups = PARTITIONS[pooled] if partition else [range(pooled)]
    others = DEVICES // pooled
    return tuple(tuple(i * others + j for i in group) for j in range(others) for group in groups)


def inputs(mask: str, sets: int, lead: tuple[int, ...]) -> tuple[Any, ...]:
    """Make the arguments by name, a boolean mask or None, the states' counts, the cotangents."""
    rng = np.random.default_rng(0)
    device = np.arange(SHAPE[0])[:, None, None, None] * DEVICES // SHAPE[0]
    share = (1 + device) / DEVICES
    features, states = (*lead, SHAPE[-1]), (sets, *lead, SHAPE[-1])
    arguments = {
        "x": rng.normal(device / 4, 1, SHAPE),
        "scale": rng.normal(1, 0.3, features),
        "bias": rng.normal(0, 1, features),
        "mean": rng.normal(0, 1, states),
        "var": rng.uniform(0.5, 2, states),
    }
    cotangents = rng.normal(0, 1, SHAPE), rng.normal(0, 1, states), rng.normal(0, 1, states)
    kept = rng.random(SHAPE) < share
    if mask == "float weights":
        arguments["mask"] = rng.uniform(0.2, 2, SHAPE) * share * kept
    as_float32 = functools.partial(jax.tree.map, np.float32)
    if mask == "one shard masked":
        kept &= device != EMPTY
    boolean = None if mask in ("no mask", "float weights") else kept & (mask != "all masked")
    count = np.arange(sets).reshape(sets, *[1] * len(lead)) + np.zeros((sets, *lead)) + 3
    return as_float32(arguments), boolean, count.astype(np.int32), as_float32(cotangents)


def on_devices(
    row: Way,
    partition: bool,
    arguments: Arguments,
    mask: Array | None,
    count: Array,
    cotangents: tuple[Array, ...],
) -> tuple[Array, list[np.ndarray], Arguments]:
    """Run a row; return y, every device's copy of the new state's arrays, and the gradient."""
    program = spread_program(row, partition)
    with row.spread.context():
        (_, (y, new)), gradient = program(arguments, mask, count, cotangents)
    return y, [every_copy(leaf) for leaf in new], gradient


@functools.cache
def spread_program(row: Way, partition: bool) -> Callable[..., Any]:
    """Make the row's loss and gradient on eight devices."""
    groups = PARTITIONS[row.spread.pooled] if partition else None
    sets = sharing(row.spread.pooled, partition)
    step = row.spread.over(row.step(row.spread.name, groups), groups)
    # Which set's state each place along the states' leading axis has; and a place for each set.
    owner = first = np.arange(len(sets))
    if row.spread.own or partition:
        owner = np.array([[i in devices for devices in sets].index(True) for i in range(DEVICES)])
        first = np.array([devices[0] for devices in sets])

    def forward(x, mask, params, state):
        y, new = step(x, mask, params, jax.tree.map(lambda a: a[owner], state))
        return y, jax.tree.map(lambda a: a[first], new), new

    program = jax.value_and_grad(functools.partial(loss, forward), has_aux=True)
    return jax.jit(program) if row.spread.jit else program


def on_one(
    plain: Step,
    sets: Sequence[Sequence[int]],
    arguments: Arguments,
    mask: Array | None,
    count: Array,
    cotangents: tuple[Array, ...],
) -> tuple[np.ndarray, BatchNormState, Arguments]:
    """Run one device, one call for each set of devices; return y, the new states, the gradient."""
    program = plain_program(plain)
    sharded, shared, own = {"x", "mask"}, {"scale", "bias"}, {"mean", "var"}
    y = np.full(SHAPE, np.nan)
    gradient = {name: np.zeros(argument.shape) for name, argument in arguments.items()}
    states = []
    for i, devices in enumerate(sets):
        rows = np.arange(SHAPE[0]).reshape(DEVICES, -1)[list(devices)].reshape(-1)
        index = dict.fromkeys(sharded, rows) | dict.fromkeys(shared, ...) | dict.fromkeys(own, i)
        (_, (y[rows], new)), found = program(
            {name: argument[index[name]] for name, argument in arguments.items()},
            None if mask is None else mask[rows],
            count[i],
            (cotangents[0][rows], cotangents[1][i], cotangents[2][i]),
        )
        states.append(jax.device_get(new))
        for name in found:
            gradient[name][index[name]] += found[name]
    return y, jax.tree.map(lambda *leaves: np.stack(leaves), *states), gradient


@functools.cache
def plain_program(plain: Step) -> Callable[..., Any]:
    """Make the loss and gradient of one device."""

    def forward(x, mask, params, state):
        y, new = plain(x, mask, params, state)
        return y, new, new

    return jax.jit(jax.value_and_grad(functools.partial(loss, forward), has_aux=True))


def loss(
    forward: Callable[..., tuple[Array, BatchNormState, BatchNormState]],
    arguments: Arguments,
    mask: Array | None,
    count: Array,
    cotangents: tuple[Array, ...],
) -> tuple[ArrayLike, tuple[Array, BatchNormState]]:
    """Take the output and each set's new statistics times random numbers."""
    mask = arguments.get("mask", mask)
    params = BatchNormParams(arguments["scale"], arguments["bias"])
    state = BatchNormState(arguments["mean"], arguments["var"], count)
    y, new, copies = forward(arguments["x"], mask, params, state)
    pairs = zip((y, new.mean, new.var), cotangents, strict=True)
    return sum(jnp.sum(value * cotangent) for value, cotangent in pairs), (y, copies)


def every_copy(leaf: Array) -> np.ndarray:
    """Fetch every device's copy, stacked; a leading axis shorter than that is replicated."""
    if leaf.shape[0] == DEVICES:
        return np.asarray(leaf)
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.device.id)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def error(got: ArrayLike, want: ArrayLike) -> float:
    """Take the largest error relative to max(1, |want|); infinite where it is not a number."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    worst = np.max(np.abs(got - want) / np.maximum(1, np.abs(want)))
    return float(worst) if np.isfinite(worst) else math.inf


# ---- Report --------------------------------------------------------------------------------------


def worst(errors: Errors | str) -> float | None:
    """Take the largest error of a cell; None where it has no meaning."""
    return None if isinstance(errors, str) else max(errors.values())


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    reasons: list[str] = []
    lines = []
    for way, cells in result["cells"].items():
        line = [way]
        for found in cells.values():
            if isinstance(found, str) and found not in reasons:
                reasons.append(found)
            line.append(
                f"- ({reasons.index(found) + 1})"
                if isinstance(found, str)
                else f"{max(found.values()):.0e}"
            )
        lines.append(line)
    parts = [
        "# Every way to spread a batch, against one device",
        f"`python -m benchmarks.modes` on {common.describe(result['env'])}.",
        "Largest error, relative to max(1, |what one device has|), over the output, the gradient "
        "of every argument and the new state: eight virtual CPU devices against one. A copy of the "
        "new state that differs in any bit from another device's, where they share statistics, "
        f"counts 1. Tolerance: {TOLERANCE:.0e}.",
        "`a of b` has a outside; unchecked is check_vma=False; two axes are a mesh of 4x2. More is "
        "in the docstring of `benchmarks/modes.py`.",
        common.table(["", *result["columns"]], lines),
        *(f"({i}) {reason}." for i, reason in enumerate(reasons, 1)),
    ]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> dict[str, Any]:
    """Compare, print, write; return the result. Exit with an error if a cell is too far off."""
    columns = {
        mask if groups == "no groups" else f"{mask}; groups": (mask, groups)
        for groups in GROUPS
        for mask in MASKS
    }
    cells: dict[str, dict[str, Errors | str]] = {}
    for way in SMOKE_WAYS if options.preset == "smoke" else WAYS:
        cells[way] = {column: measure(way, *cell) for column, cell in columns.items()}
        found = [error for error in map(worst, cells[way].values()) if error is not None]
        print(f"{way}: {max(found):.0e}" if found else f"{way}: -", flush=True)
    result = {
        "env": common.environment(),
        "tolerance": TOLERANCE,
        "columns": list(columns),
        "cells": cells,
    }
    markdown = report(result)
    print(f"\n{markdown}")
    if output := options.output or (common.RESULTS if options.preset == "full" else None):
        common.write(output, "modes", result, markdown)
    over = [
        f"{way}, {column}"
        for way, row in cells.items()
        for column, errors in row.items()
        if (worst(errors) or 0) > TOLERANCE
    ]
    if over:
        raise SystemExit(f"Expected errors of at most {TOLERANCE:.0e}, got more: {'; '.join(over)}")
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    main(tyro.cli(Options, description=__doc__))
