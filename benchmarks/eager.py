"""Time calls at the prompt: every function outside `jit`, next to the other libraries.

In a notebook or a debugger nothing is compiled as a whole. What counts is how many operations a
call dispatches to the device and whether it retraces anything. x is 256 x 64, float32, small enough
that the arithmetic itself takes a few dozen microseconds. A gradient is `value_and_grad` of
sum(y * cotangent) with respect to x and the parameters, as a user would write it. Layers update
their running statistics. Times are medians over rounds that call the libraries in turn.

Calls that do no arithmetic show the minimum overhead: "jit alone" is one compiled program that
returns the same arguments; "linen alone" and "nnx alone" are layers that have the variables of a
BatchNorm and return x.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import tyro
from flax import nnx

import jbn
import jbn.linen
import jbn.nnx
from benchmarks import common
from benchmarks.common import Run
from benchmarks.eager_calls import (
    FEATURES,
    ROWS,
    Call,
    Calls,
    equinox_calls,
    haiku_calls,
    jbn_calls,
    linen_calls,
    linen_others,
    nnx_calls,
    nnx_others,
    nothing_calls,
    torch_calls,
    with_schedule,
)
from benchmarks.modes_spreads import DEVICES
from jbn import linen

FLAX = ("Flax linen", "Flax nnx")
# Outside `jit`, JAX's own `shard_map` compiles every operation at every call. This takes seconds in
# any library, so one call after a warm-up call is enough.
ONCE = ("batch_norm, shard_map",)


@dataclasses.dataclass(frozen=True)
class Options:
    """How long to measure, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: every call twice, to see that all works"""
    operations: tuple[str, ...] = ()
    """those only whose name has one of these words"""
    repeats: int = 9
    """rounds, of which the median counts"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- Time and report -----------------------------------------------------------------------------


def all_calls() -> Calls:
    """Collect the operations of all installed libraries."""
    found = [
        jbn_calls(),
        linen_calls("jbn.linen", jbn.linen.BatchNorm),
        nnx_calls("jbn.nnx", jbn.nnx.BatchNorm),
        with_schedule(),
        linen_calls("Flax linen", nn.BatchNorm),
        linen_others("Flax linen", nn),
        linen_others("jbn.linen", linen),
        nnx_calls("Flax nnx", nnx.BatchNorm),
        nnx_others(),
        nothing_calls(),
    ]
    for module, make in (
        ("haiku", haiku_calls),
        ("equinox", equinox_calls),
        ("torch", torch_calls),
    ):
        if common.installed(module):
            found.append(make())
        else:
            print(f"{module} is not installed; skipping it.")
    calls: Calls = {}
    for part in found:
        for operation, ways in part.items():
            calls.setdefault(operation, {}).update(ways)
    return calls


def repeated(call: Call) -> Run:
    """Make a run that waits for the result of each call, as a user who looks at it does."""

    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(jax.tree.leaves(call()))

    return run


def ours_to_flax(seconds: dict[str, float]) -> float | None:
    """Return the largest ratio of our times to Flax's of the same kind.

    Functions of jbn are compared with the faster of Flax linen and nnx.
    """
    flax = {name: seconds[name] for name in FLAX if name in seconds}
    if not flax:
        return None
    like = {"jbn": min(flax.values())} | {
        f"jbn.{name.split()[1]}": value for name, value in flax.items()
    }
    return max(seconds[name] / value for name, value in like.items() if name in seconds)


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    rows = result["seconds"]
    ways = list(dict.fromkeys(way for seconds in rows.values() for way in seconds))
    lines = []
    for operation, seconds in rows.items():
        ratio = ours_to_flax(seconds)
        cells = [f"{seconds[way] * 1e3:.2f}" if way in seconds else "" for way in ways]
        lines.append([operation, *cells, "" if ratio is None else f"{ratio:.2f}"])
    parts = [
        "# At the prompt",
        f"`python -m benchmarks.eager` on {common.describe(result['env'])}.",
        f"Milliseconds of one call outside `jit`, x of {ROWS} x {FEATURES} float32. The last "
        "column is the largest ratio of a layer of jbn's to Flax's of the same kind, and of a "
        "function to the faster of the two. How the calls are made is in "
        "the docstring of `benchmarks/eager.py`. Outside `jit`, JAX's own `shard_map` compiles "
        "every operation at every call; it is measured once.",
        common.table(["", *ways, "jbn / Flax"], lines),
    ]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print, write; return the result."""
    calls = all_calls()
    words = options.operations
    chosen = {
        name: call for name, call in calls.items() if not words or any(w in name for w in words)
    }
    if not chosen:
        raise SystemExit(f"Expected words from {', '.join(calls)}; got {', '.join(words)}.")
    smoke = options.preset == "smoke"
    rows: dict[str, dict[str, float]] = {}
    for operation, ways in chosen.items():
        runs = {way: repeated(call) for way, call in ways.items()}
        once = smoke or operation in ONCE
        repeats, steps = (1, 1) if once else (options.repeats, None)
        rows[operation] = common.interleaved(
            runs, repeats=repeats, steps=steps, seconds=0.1, least=3
        )
        shown = ", ".join(f"{way} {value * 1e3:.2f}" for way, value in rows[operation].items())
        print(f"{operation}: {shown} ms", flush=True)
    result = {
        "env": common.environment(),
        "options": {**dataclasses.asdict(options), "output": None},
        "seconds": rows,
        "jbn / Flax": {operation: ours_to_flax(seconds) for operation, seconds in rows.items()},
    }
    markdown = report(result)
    print(f"\n{markdown}")
    whole = not smoke and not words
    if output := options.output or (common.RESULTS if whole else None):
        common.write(output, f"eager_{jax.default_backend()}", result, markdown)
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    main(tyro.cli(Options, description=__doc__))
