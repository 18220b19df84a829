"""Compare every way to spread a batch over devices, steps or micro-batches with one device.

The table has a row for each way, and a column for each mask, with and without groups of devices.
Each cell is the largest difference from a plain call of `jbn.batch_norm` on one device with the
whole batch, or with one group's part of it. It covers all results: the output, the gradients by x,
scale, bias, running mean and variance and float weights, and the new running statistics. The loss
multiplies the output and the new statistics by random numbers, so that no gradient is zero or
constant. Devices that share statistics must have bit for bit equal copies of the new ones.

The batch has a different mean, and with a mask a different count, on every device, so an average
that ignores the counts shows up. `tests/benchmarks/test_modes.py` asserts the same table.
"""

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
from jaxtyping import Array, ArrayLike

from benchmarks import common
from benchmarks.modes_spreads import DEVICES, IN_JIT, MESHES, NOT_IN_JAX, SPREADS, TWO_AXES, Spread
from benchmarks.modes_steps import (
    PARTS,
    SHAPE,
    Groups,
    Step,
    accumulated,
    looped,
    models,
    models_in_turn,
    norm,
    pooled_slices,
    scanned,
)
from jbn import BatchNormParams, BatchNormState

# Float32 rounds by 6e-8, and the order of summation differs: y is off by 1e-6, the gradient by
# scale, a sum over the batch, by 4e-6. A wrong weight or gradient is off by at least 5e-3.
TOLERANCE = 2e-5
Arguments = dict[str, Any]  # Arguments of a training step by name; all are differentiated.
Errors = dict[str, float]
# Unequal, unordered groups of the indices of an axis, by the length of the axis.
PARTITIONS: dict[int, Groups] = {8: [[6, 0, 3], [1, 2, 4, 7, 5]], 4: [[3, 0, 1], [2]]}
EMPTY = 4  # The device whose shard is masked; over axis "a" of a 4x2 mesh, it is its own group.
GROUPS = ("no groups", "groups")
MASKS = ("no mask", "unequal counts", "one shard masked", "all masked", "float weights")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: one of the ways, seconds, to see that all works"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- The table -----------------------------------------------------------------------------------


PLAIN = norm()


class Way(NamedTuple):
    """A row of the table: how the batch is spread, the step, and the plain step it must equal.

    `step` makes the step from axis name and groups; `lead` has the leading axes of parameters and
    state.
    """

    spread: Spread
    step: Callable[[Any, Groups | None], Step] = norm
    plain: Step = PLAIN
    lead: tuple[int, ...] = ()
    missing: str | None = None
    """The reason why the whole row is missing."""


def ways() -> dict[str, Way]:
    """Make the rows by name; in `a of b`, a is outside.

    Checkpoints and accumulation are not repeated for pmap and unchecked shard_map. These two are
    the same to JAX and have the rows in which they may differ from checked shard_map.
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
      the largest error of each result, relative to max(1, |one device's value|), or the reason why
      there is no such cell.
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
    """Return why a row has no cells, with or without groups; None if it has them."""
    return row.missing or (row.spread.missing if groups == "groups" else None)


def sharing(pooled: int, partition: bool) -> tuple[tuple[int, ...], ...]:
    """List the devices that share statistics, set by set."""
    groups = PARTITIONS[pooled] if partition else [range(pooled)]
    others = DEVICES // pooled
    return tuple(tuple(i * others + j for i in group) for j in range(others) for group in groups)


def inputs(mask: str, sets: int, lead: tuple[int, ...]) -> tuple[Any, ...]:
    """Make the arguments by name, a boolean mask or None, the states' counts and the cotangents."""
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
    # The set that owns each entry of the states' leading axis, and the first entry of each set.
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
    """Run on one device, once per set of devices; return y, the new states, the gradient."""
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
    """Multiply the output and each set's new statistics by random numbers, and sum."""
    mask = arguments.get("mask", mask)
    params = BatchNormParams(arguments["scale"], arguments["bias"])
    state = BatchNormState(arguments["mean"], arguments["var"], count)
    y, new, copies = forward(arguments["x"], mask, params, state)
    pairs = zip((y, new.mean, new.var), cotangents, strict=True)
    return sum(jnp.sum(value * cotangent) for value, cotangent in pairs), (y, copies)


def every_copy(leaf: Array) -> np.ndarray:
    """Fetch every device's copy, stacked; a shorter leading axis means that it is replicated."""
    if leaf.shape[0] == DEVICES:
        return np.asarray(leaf)
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.device.id)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def error(got: ArrayLike, want: ArrayLike) -> float:
    """Return the largest error relative to max(1, |want|); infinity if any is NaN."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    worst = np.max(np.abs(got - want) / np.maximum(1, np.abs(want)))
    return float(worst) if np.isfinite(worst) else math.inf


# ---- Report --------------------------------------------------------------------------------------


def worst(errors: Errors | str) -> float | None:
    """Return the largest error of a cell, None if there is no such cell."""
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
    """Compare, print, write; return the result. Exit with an error if a cell exceeds TOLERANCE."""
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
        raise SystemExit(
            f"Expected errors of at most {TOLERANCE:.0e}, got larger ones: {'; '.join(over)}"
        )
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    main(tyro.cli(Options, description=__doc__))
