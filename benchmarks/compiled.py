"""Compile programs for accelerators that are not present: traffic, kernels, cycles, memory.

  python -m benchmarks.compiled --targets v5e h100

XLA's compilers for TPU and GPU run on any machine. They compile the programs of
`benchmarks/programs.py` with jbn, its peers and no normalization, and the results are counted as
described in `experiments/training/traffic.py`. The counts are exact and reproducible. They rank
designs but are not times. Needs `pip install 'jbn[tpu-compile]'` or `'jbn[gpu-compile]'` (4.5 GB).

`sync` is the step of `benchmarks/collectives.py` over the devices of one or two whole machines: how
many collectives it has, and how many bytes a device puts into them. Collectives in a branch that is
not taken are counted separately.

Rows already in the output folder are kept unless they are counted again.
"""

import contextlib
import dataclasses
import functools
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import (
    collectives_steps,
    common,
    op,
    op_steps,
    peers,
    programs,
)
from experiments.training import machines, traffic
from experiments.training.machines import TARGETS

NETWORKS = {"resnet50": "ResNet-50", "bninception": "BN-Inception"}
PROGRAMS = ("op", "block", *NETWORKS, "sync")
WAYS: dict[str, peers.Make] = {
    "jbn": peers.with_jbn,
    "Flax": peers.with_flax,
    "Haiku": peers.with_haiku,
    "Equinox": peers.with_equinox,
    "none": peers.without,
}
# Equinox is channels-first, and neither Equinox nor Haiku supports masks.
CANNOT = {"conv": ("Equinox",), "masked": ("Equinox", "Haiku")}
NEEDS = {"Haiku": "haiku", "Equinox": "equinox"}
# Topologies of whole machines, by number of devices.
SYNC: dict[str, dict[int, dict[str, str]]] = {
    "v5e": {4: {}, 256: {"topology_name": "v5e:16x16"}},
    "h100": {8: {"topology": "1x1x8"}},
}
SYNC_WAYS: dict[str, collectives_steps.Make] = {
    "jbn": collectives_steps.with_jbn,
    "jbn, masked": functools.partial(collectives_steps.with_jbn, masked=True),
    "Flax": collectives_steps.with_flax,
    "Flax, masked": functools.partial(collectives_steps.with_flax, masked=True),
}
SYNC_STEP = {"layers": 3, "features": 64, "examples": 256}
# JAX's pmap needs GPUs that are present.
CANNOT_SYNC = {"h100": ("pmap",)}
SYNC_COLUMNS = ("collectives", "bytes", "apart", "bytes apart")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile, for which machines, and where to write the result."""

    targets: tuple[str, ...] = ("v5e",)
    """machines: v5e, h100"""
    programs: tuple[str, ...] = ("op", "block")
    """op, block, resnet50 and bninception (minutes), sync"""
    output: Path = common.RESULTS
    """folder for JSON and Markdown"""


class Case(NamedTuple):
    """One row of the table: a program in every way to normalize."""

    name: str
    ways: dict[str, Callable[[], programs.Program]]


def cases(chosen: tuple[str, ...]) -> list[Case]:
    """List the rows."""
    sizes, found = programs.FULL, []
    ways = {n: make for n, make in WAYS.items() if common.installed(NEEDS.get(n, "jax"))}

    def case(name: str, program: Callable[..., programs.Program], *rest: Any) -> Case:
        return Case(name, {n: functools.partial(program, m, *rest) for n, m in ways.items()})

    for dtype in programs.DTYPES:
        if "op" in chosen:
            shape = sizes.op[0]
            for back, passes in enumerate(op.PASSES):
                name = f"op {op_steps.label(shape)}, {passes}, {dtype}"
                found.append(case(name, programs.op, shape, dtype, bool(back)))
        if "block" in chosen:
            for kind in ("matmul", "conv", "masked"):
                row = case(f"block, {kind}, {dtype}", programs.block, kind, sizes, dtype, True)
                fit = {n: make for n, make in row.ways.items() if n not in CANNOT.get(kind, ())}
                found.append(row._replace(ways=fit))
    for network in [name for name in NETWORKS if name in chosen]:
        steps: dict[str, Callable[[], programs.Program]] = {
            n: functools.partial(programs.network, n, sizes, "bfloat16", True, name=network)
            for n in programs.NORMS
        }
        label = f"{NETWORKS[network]}, {op_steps.label(sizes.images)}, bfloat16"
        found.append(Case(label, steps))
    return found


def devices_of(target: str, **options: str) -> list[Any]:
    """List the devices of a machine that need not be present.

    Raises:
      SystemExit: the compiler is not installed.
    """
    try:
        return machines.devices_of(target, **options)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def compile_for(target: str, program: programs.Program) -> Any:
    """Compile a program for one device of a machine."""
    devices = devices_of(target)
    everywhere = NamedSharding(Mesh(np.array(devices[:1]), ("d",)), PartitionSpec())
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(program.make),
    )
    return jax.jit(program.step).lower(*arguments).compile()


def measure(target: str, program: programs.Program) -> dict[str, Any]:
    """Compile and count."""
    began = time.monotonic()
    compiled = compile_for(target, program)
    seconds = time.monotonic() - began
    found = traffic.traffic(compiled.as_text())
    return {
        "GB": found.bytes / 1e9,
        "passes": found.bytes / program.size,
        "kernels": found.kernels,
        "million cycles": found.cycles / 1e6,
        "temporary GB": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "compile seconds": seconds,
    }


def measure_sync(
    target: str, devices: int, mode: str, make: collectives_steps.Make
) -> dict[str, Any]:
    """Compile a step over all devices of a machine, and count its collectives."""
    places = devices_of(target, **SYNC[target][devices])
    lowered = collectives_steps.lower(
        mode,
        make,
        devices=devices,
        target=collectives_steps.Target(TARGETS[target].platform, places),
        **SYNC_STEP,
    )
    found = traffic.traffic(lowered.compile().as_text())
    return {
        "collectives": len(found.collectives),
        "bytes": sum(size for _, size in found.collectives),
        "apart": len(found.in_other_branches),
        "bytes apart": sum(size for _, size in found.in_other_branches),
    }


def jobs(target: str, chosen: tuple[str, ...]) -> dict[str, dict[str, Callable[[], Any]]]:
    """List the measurements to make, by row and by way."""
    found: dict[str, dict[str, Callable[[], Any]]] = {}
    for case in cases(chosen):
        found[case.name] = {
            name: lambda make=make: measure(target, make()) for name, make in case.ways.items()
        }
    for devices in SYNC[target] if "sync" in chosen else ():
        for mode in collectives_steps.MODES:
            if mode not in CANNOT_SYNC.get(target, ()):
                found[f"sync over {devices}, {mode}"] = {
                    name: functools.partial(measure_sync, target, devices, mode, make)
                    for name, make in SYNC_WAYS.items()
                }
    return found


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    parts = [
        "# Compiled for machines that are not here",
        f"`python -m benchmarks.compiled` on {common.describe(result['env'])}.",
        "Counts of compiled programs, as `experiments/training/traffic.py` says; nothing was run. "
        "Blocks and networks are forward + backward. A pass is one read or write of the array to "
        "normalize.",
    ]
    for target, rows in result["targets"].items():
        cycles = target == "v5e"
        header = ["", *(["million cycles"] if cycles else []), "passes", "GB", "kernels", "temp GB"]
        lines, sync = [], []
        for program, ways in rows.items():
            for name, found in ways.items():
                label = f"{program}: {name}"
                if "collectives" in found:
                    sync.append([label, *(f"{found[what]:,}" for what in SYNC_COLUMNS)])
                    continue
                numbers = [f"{found['million cycles']:.2f}"] if cycles else []
                numbers += [f"{found[what]:.2f}" for what in ("passes", "GB")]
                numbers += [str(found["kernels"]), f"{found['temporary GB']:.2f}"]
                lines.append([label, *numbers])
        parts.append(f"## {target}")
        parts += [common.table(header, lines)] if lines else []
        if sync:
            step = ", ".join(f"{count} {what}" for what, count in SYNC_STEP.items())
            parts.append(
                f"Collectives of a step of SGD over whole machines, float32, {step} a device. "
                "Bytes are what a device puts in, the gradients and the loss included."
            )
            parts.append(common.table(["", *SYNC_COLUMNS], sync))
    return "\n\n".join(parts) + "\n"


def kept(output: Path) -> dict[str, Any]:
    """Read the rows already in the output folder."""
    path = output / "compiled.json"
    return json.loads(path.read_text())["targets"] if path.exists() else {}


def main(options: Options) -> dict[str, Any]:
    """Compile, count, print, write; return the result."""
    for name, known, given in (
        ("targets", tuple(TARGETS), options.targets),
        ("programs", PROGRAMS, options.programs),
    ):
        if unknown := set(given) - set(known):
            raise SystemExit(
                f"Expected {name} among {', '.join(known)}, got {', '.join(sorted(unknown))}."
            )
    result: dict[str, Any] = {"env": common.environment(), "targets": kept(options.output)}
    for target in options.targets:
        rows = result["targets"].setdefault(target, {})
        for program, ways in jobs(target, options.programs).items():
            rows[program] = {}
            for name, count in ways.items():
                rows[program][name] = found = count()
                numbers = ", ".join(f"{what} {value:,.7g}" for what, value in found.items())
                print(f"{target} {program}: {name}: {numbers}", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):  # Save each row, in case we are killed.
                common.write(options.output, "compiled", result, report(result))
    print(f"\n{report(result)}")
    return result


if __name__ == "__main__":
    # Before JAX looks for devices: the compilers need none, but the plugins would wait for one.
    machines.look_for_no_device()
    main(tyro.cli(Options, description=__doc__))
