"""Count the collectives of a training step in jbn and Flax, and their bytes, from compiled HLO.

The network is L blocks of dense layer, batch normalization over all devices and tanh, trained for
one step of SGD. In pmap and shard_map the layers are given the axis name; in sharded jit the batch
is global. Each step is compiled for virtual CPU devices but not run. Operations are counted after
XLA has combined those it can.

The payload is the number of bytes that a device puts into all collectives of a step, that is, the
size of their results. A ring moves up to twice as many over each link. Compiling the step without
its gradient gives the share of the forward statistics, the sizes of gradient and loss are known,
and what remains belongs to the backward statistics.

`payload` states the design as a formula. XLA's CPU client supports at most 2,048 devices. Beyond
that, shard_map is lowered for an abstract mesh and counted before XLA optimizes it; for the other
modes there is only the formula.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import common
from benchmarks.collectives_steps import MAPPED, MODES, Make, lower, with_flax, with_jbn
from jbn._center import _merge

LARGEST = 1024  # The largest number of devices to compile for.
DEVICES = (8, 64, LARGEST, 4096)
SMOKE_DEVICES = (8, 4096)
GROUP = 8  # Devices in an index group.
GROUPED = f"jbn, groups of {GROUP}"
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
         "collective-permute", "collective-broadcast")  # fmt: skip
OPERATION = re.compile(rf"^\s*(?:ROOT )?\S+ = (.*?) ({'|'.join(KINDS)})(?:-done)?\(", re.MULTILINE)
CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|(?:true|false)_computation)=([%\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to count, and where to leave the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: one small layer, to see that all works"""
    layers: int | None = None
    """L; None takes 3 (smoke: 1)"""
    features: int | None = None
    """C; None takes 64 (smoke: 4)"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- Collectives in compiled programs ------------------------------------------------------------


class Collective(NamedTuple):
    """One collective of a compiled program: its kind, the type of its result, and its size."""

    kind: str
    result: str
    bytes: int


def parse(hlo: str) -> list[Collective]:
    """Find the collectives of a program, counting a function once for each call.

    An asynchronous pair counts once, at its end. All branches count, and a loop's body once.
    """
    computations, entry, name = {"": []}, "", ""
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split()[0].removeprefix("%")
            entry = name if line.startswith("ENTRY ") else entry
        computations.setdefault(name, []).append(line)

    def of(name: str) -> list[Collective]:
        found = []
        for line in computations.get(name, ()):
            found += map(_collective, OPERATION.findall(line))
            for called in CALLED.findall(line):
                for inner in ",".join(called).split(","):
                    found += of(inner.strip().removeprefix("%")) if inner else []
        return found

    return of(entry)


def _collective(operation: tuple[str, str]) -> Collective:
    result, kind = operation
    arrays = ARRAY.findall(result)
    shown = ", ".join(f"{name}{bits}[{shape}]" for name, bits, shape in arrays)
    return Collective(kind, shown, sum(size(*array) for array in arrays))


def size(name: str, bits: str, shape: str) -> int:
    """Return the bytes of an array; names such as f32, c64, bf16 state the bits, pred is a byte."""
    itemsize = max(1, int(bits or 8) // 8)
    return itemsize * math.prod(int(length) for length in shape.split(",") if length)


# ---- The design, as a formula --------------------------------------------------------------------


class Payload(NamedTuple):
    """Bytes that a device puts into the collectives of one layer's statistics in one step."""

    forward: int
    backward: int


def payload(
    features: int, devices: int, *, dtype: Any = "float32", masked: bool = False, groups: int = 1
) -> Payload:
    """Compute what jbn sends in pmap and shard_map.

    Up to GATHER_LIMIT devices, each gathers (pivot, remainder, var) from all others, and the count
    if it may differ. Beyond that there are two sums: first (mean, size, 1), and the count if it may
    differ, to agree on a pivot and a unit; then the first and second moments about that pivot. The
    backward pass always has two sums; differentiating weights adds two more, not counted here. A
    sum over index groups has a slot for each group.
    """
    value = features * jnp.promote_types(dtype, jnp.float32).itemsize
    gathered = devices <= _merge.GATHER_LIMIT
    forward = (
        devices * (4 if masked else 3) if gathered else groups * (4 if masked else 3) + groups * 2
    )
    return Payload(forward * value, groups * 2 * value)


# ---- Measurement ---------------------------------------------------------------------------------


class Counted(NamedTuple):
    """The collectives of one step, and their bytes by purpose."""

    collectives: list[Collective]
    forward: int
    backward: int
    gradient: int


def count(mode: str, make: Make, *, devices: int, layers: int, features: int) -> Counted:
    """Count the collectives of a step, compiled, or only lowered if there are too few devices.

    XLA combines arrays into one operation, so only compiling the step without its gradient shows
    which bytes belong to the forward pass.
    """
    texts = []
    for backward in (True, False):
        lowered = lower(
            mode, make, devices=devices, layers=layers, features=features, backward=backward
        )
        compiled = devices <= jax.device_count()
        texts.append(lowered.compile().as_text() if compiled else lowered.as_text(dialect="hlo"))
    whole, only_forward = map(parse, texts)
    value = jnp.dtype("float32").itemsize
    params = sum(leaf.size for leaf in jax.tree.leaves(make(features, None).params))
    gradient = value * (layers * (features**2 + params) + 1)  # Plus 1 for the loss.
    forward = sum(found.bytes for found in only_forward) - value
    backward_bytes = sum(found.bytes for found in whole) - forward - gradient
    return Counted(whole, forward, backward_bytes, gradient)


def make_ways(devices: int) -> dict[str, Make]:
    """Return the ways to compare, by name."""
    groups = np.arange(devices).reshape(-1, GROUP).tolist()
    return {
        "jbn": with_jbn,
        "jbn, masked": functools.partial(with_jbn, masked=True),
        GROUPED: functools.partial(with_jbn, groups=groups),
        "Flax": with_flax,
    }


def formula(way: str, features: int, devices: int) -> Payload | None:
    """Compute the payload of a way in pmap and shard_map; None for Flax."""
    groups = devices // GROUP if way == GROUPED else 1
    masked = way == "jbn, masked"
    is_ours = way.startswith("jbn")
    return payload(features, devices, masked=masked, groups=groups) if is_ours else None


def measure(sizes: Sequence[int], layers: int, features: int) -> list[dict[str, Any]]:
    """Count every way in every mode at every number of devices, next to the formula.

    Bytes are per step, split into forward statistics, backward statistics, and gradient with loss.
    """
    rows = []
    for devices in sizes:
        for way, make in make_ways(devices).items():
            for mode in MAPPED if way == GROUPED else MODES:
                row: dict[str, Any] = {"devices": devices, "way": way, "mode": mode}
                computed = formula(way, features, devices) if mode in MAPPED else None
                if computed is not None:
                    row["formula"] = [layers * part for part in computed]
                if devices <= jax.device_count():
                    row["from"] = "compiled"
                elif mode.startswith("shard_map"):
                    row["from"] = "lowered"
                else:
                    rows.append({**row, "from": "formula" if computed else "unknown"})
                    continue
                found = count(mode, make, devices=devices, layers=layers, features=features)
                operations = [f"{kind} {result}" for kind, result, _ in found.collectives]
                rows.append({**row, **found._asdict(), "collectives": operations})
        print(f"{devices:,} devices: done", flush=True)
    return rows


# ---- Report --------------------------------------------------------------------------------------


def at_most(way: str, mode: str, devices: int, layers: int) -> str:
    """Return how many collectives the design allows, including those in branches."""
    if not way.startswith("jbn"):
        return ""
    in_branches = 3 if mode == "jit" else 0
    each = 3 if mode != "jit" and devices > _merge.GATHER_LIMIT else 2
    return str((each + in_branches) * layers + 1)


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    rows, layers, features = result["rows"], result["layers"], result["features"]
    both = [row for row in rows if "formula" in row and "forward" in row]
    equal = [row for row in both if row["formula"] == [row["forward"], row["backward"]]]
    few = [row for row in rows if row["devices"] == DEVICES[0]]
    many = [row for row in rows if row["devices"] == LARGEST and row["from"] == "compiled"]
    parts = [
        "# Collectives of a training step",
        f"`python -m benchmarks.collectives` on {common.describe(result['env'])}.",
        f"L = {layers} layers of C = {features} features, float32, normalized over all devices; a "
        "step of SGD, compiled for virtual CPU devices. Payload is what a device puts into all "
        "collectives of the step, in bytes. How it is counted is in the docstring of "
        "`benchmarks/collectives.py`.",
        f"## {DEVICES[0]} devices",
        steps_table(few, layers),
        "In sharded jit the backward statistics of jbn are the gradient of scale and bias, and "
        "cost nothing more. Of its forward statistics, as a CPU takes them, three collectives a "
        "layer with two thirds of the bytes are in a branch that runs only where mean^2 > 2 var.",
    ]
    if many:
        parts += [f"## {LARGEST:,} devices", steps_table(many, layers)]
    parts += [
        "## Payload of the statistics of one layer",
        "Forward and backward, in bytes per device and step, by the number of devices.",
        by_devices(rows, layers),
        f"Up to {_merge.GATHER_LIMIT} devices jbn gathers the moments of all; beyond, it has two "
        "sums of O(C). With index groups each sum has a slot for each group: groups that are rows "
        "of a mesh cost less as such, with the name of the mesh's inner axis.",
        f"The formula (`payload`) equals what was counted in {len(equal)} of {len(both)} cases.",
    ]
    return "\n\n".join(parts) + "\n"


def steps_table(rows: list[dict[str, Any]], layers: int) -> str:
    """Format the table of steps at one number of devices."""
    header = ["", "collectives", "at most", "forward", "backward", "gradient, loss", "all bytes"]
    lines = []
    for row in rows:
        parts = row["forward"], row["backward"], row["gradient"]
        lines.append(
            [
                f"{row['way']}: {row['mode']}",
                str(len(row["collectives"])),
                at_most(row["way"], row["mode"], row["devices"], layers),
                *(f"{part:,}" for part in (*parts, sum(parts))),
            ]
        )
    return common.table(header, lines)


def by_devices(rows: list[dict[str, Any]], layers: int) -> str:
    """Format the payload of the statistics: a row for each way and mode, devices as columns."""
    lines, sizes = {}, dict.fromkeys(row["devices"] for row in rows)
    for row in rows:
        parts = [row["forward"], row["backward"]] if "forward" in row else row.get("formula")
        text = {"compiled": "", "lowered": " (l)", "formula": " (f)", "unknown": ""}[row["from"]]
        cells = lines.setdefault(f"{row['way']}: {row['mode']}", [])
        cells.append(f"{round(sum(parts) / layers):,}{text}" if parts else "")
    header = ["", *(f"{devices:,}" for devices in sizes)]
    return (
        common.table(header, [[name, *cells] for name, cells in lines.items()])
        + "\n\n(l) lowered, not compiled; (f) from the formula; all others from compiled HLO. "
        "Where a cell is empty there is no formula either."
    )


def main(options: Options) -> dict[str, Any]:
    """Count, print, write; return the result."""
    smoke = options.preset == "smoke"
    layers, features = (
        options.layers or (1 if smoke else 3),
        options.features or (4 if smoke else 64),
    )
    result = {
        "env": common.environment(),
        "layers": layers,
        "features": features,
        "rows": measure(SMOKE_DEVICES if smoke else DEVICES, layers, features),
    }
    markdown = report(result)
    print(f"\n{markdown}")
    if output := options.output or (None if smoke else common.RESULTS):
        common.write(output, "collectives", result, markdown)
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", LARGEST)
    main(tyro.cli(Options, description=__doc__))
