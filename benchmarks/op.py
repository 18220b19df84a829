"""Compare batch normalization in jbn, Flax, Haiku, Equinox and torch: time and precision.

Times are of training mode, running statistics included. The JAX libraries run many steps inside one
`fori_loop`, so that dispatch and fresh memory pages do not hide the operation:

  forward             x <- y
  forward + backward  dy <- y, x <- dy + dx / 2, and one step of SGD on scale and bias

The loop carries x, scale, bias and the running statistics. dy is the array y behind a branch that
the compiler cannot see through, like a gradient from the next layer: it differs in every step and
is read from memory, not recomputed from x. x is updated in place, because it is dead after the step
like the output of a convolution. SGD keeps mean / std of x at its target.

torch runs the same steps one by one from Python, out of place, with its own autograd. Its x stays
the same, because torch would need further passes for the update that XLA fuses into dx. Its large
arrays use fresh memory pages in each step, as in normal use. It runs with one thread or one per
core, whichever is faster.

`copy` reads one array and writes another of x's size, in the same loop. Sequences have random
lengths and are padded; libraries without masks are left out of these cases.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Array, ArrayLike, Float

import jbn
from benchmarks import common, peers
from benchmarks.op_steps import CALM, OFF_CENTER, Case, batch, copy_run, jax_run, start, torch_run
from benchmarks.peers import Candidate, Shape

CASES = (Case((256, 100)), Case((8192, 1024)), Case((256, 28, 28, 64)), Case((64, 28, 28, 128)),
         Case((64, 14, 14, 256)), Case((64, 7, 7, 512)),
         Case((64, 28, 28, 128), channels_first=True), Case((32, 200, 256), padded=True),
         Case((8, 4096)), Case((100_000, 16)), Case((8, 8, 28, 28, 64)))  # fmt: skip
SMOKE_CASES = (Case((16, 3, 3, 4), channels_first=True), Case((8, 3, 4), padded=True))
COLUMNS = 6  # Per table.
DTYPES = ("float32", "bfloat16")
PASSES = ("forward", "forward + backward")
RATIOS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
TORCH = {"torch": False, "torch, channels last": True}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: tiny shapes, a second or two, to see that all works"""
    cases: tuple[str, ...] = ()
    """some cases only, such as 256x100 64x128x28x28-first 32x200x256-padded"""
    steps: int | None = None
    """in one loop; None takes at least ten, and as many as fit into .2 s"""
    repeats: int | None = None
    """rounds, of which the median counts; None takes 9 (smoke: 2)"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- Time ----------------------------------------------------------------------------------------


def time_all(
    cases: Iterable[Case], ways: dict[str, peers.Make], device: str | None, options: Options
) -> list[dict[str, Any]]:
    """Time every implementation at every case, dtype and pass; print each row once measured."""
    rows, smoke = [], options.preset == "smoke"
    for dtype in DTYPES:
        for passes in PASSES:
            backward = passes == PASSES[1]
            for case in cases:
                shape, first = case.shape, case.channels_first
                runs = {"copy": copy_run(shape, dtype)}
                for name, make in ways.items():
                    candidate = make(shape, dtype, channels_first=first)
                    if not case.padded or candidate.has_mask:
                        runs[name] = jax_run(candidate, case, dtype, CALM, backward)
                for name in ("jbn", "Flax"):
                    candidate = ways[name](shape, dtype, channels_first=first)
                    runs[off_center(name)] = jax_run(candidate, case, dtype, OFF_CENTER, backward)
                for name, channels_last in TORCH.items():
                    both = len(shape) > 2 and not first
                    if device and not case.padded and (both or not channels_last):
                        run = torch_run(shape, dtype, channels_last, backward, device)
                        runs |= common.by_threads(name, run)
                repeats = options.repeats or (2 if smoke else 9)
                count = options.steps or (5 if smoke else None)
                seconds = common.fastest(common.interleaved(runs, repeats=repeats, steps=count))
                row = {"dtype": dtype, "pass": passes, "case": case.label, "seconds": seconds}
                rows.append(row)
                ratio = seconds["jbn"] / seconds["Flax"]
                print(f"{dtype} {passes} {case.label}: jbn / Flax {ratio:.2f}", flush=True)
    return rows


def off_center(name: str) -> str:
    """Name the row of an implementation at large mean / std."""
    return f"{name}, mean/std {OFF_CENTER:.0f}"


def ratios(rows: list[dict[str, Any]], dtype: str, passes: str) -> list[float]:
    """Return jbn / Flax for each case."""
    chosen = (row["seconds"] for row in rows if (row["dtype"], row["pass"]) == (dtype, passes))
    return [seconds["jbn"] / seconds["Flax"] for seconds in chosen]


def kept(make: peers.Make, shape: Shape, dtype: str) -> float:
    """Compute how much is kept for the backward pass, as a multiple of x."""
    candidate = make(shape, dtype)
    x, scale, bias, stats = start(candidate, shape, dtype, CALM)

    def residuals(x: Array, scale: Array, bias: Array) -> Any:
        def forward(x: Array, scale: Array, bias: Array) -> tuple[Array, Any]:
            return candidate.apply(x, scale, bias, stats)

        return jax.vjp(forward, x, scale, bias, has_aux=True)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, x, scale, bias))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / x.nbytes


# ---- Precision -----------------------------------------------------------------------------------


def errors(ways: dict[str, peers.Make], device: str | None) -> dict[str, list[float | None]]:
    """Measure the largest error of y against float64, for x of 1024x64 float32, by mean / std.

    None if y has a NaN, which JSON does not have.
    """
    shape, shards = (1024, 64), 8
    functions: dict[str, Callable[[Array], ArrayLike]] = {
        name: normalizer(make(shape, "float32"), shape) for name, make in ways.items()
    }
    one_shard = jax.jit(sharded)
    functions[f"jbn, {shards} shards"] = lambda x: one_shard(x.reshape(shards, -1, shape[-1]))
    if device:
        functions["torch"] = functools.partial(torch_normalizer, device)
    found: dict[str, list[float | None]] = {name: [] for name in functions}
    for ratio in RATIOS:
        x = batch(shape, ratio)
        exact = np.asarray(x, np.float64)
        exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
        for name, function in functions.items():
            y = np.asarray(function(x), np.float64).reshape(shape)
            error = float(np.abs(y - exact).max())
            found[name].append(error if math.isfinite(error) else None)
    return found


def normalizer(candidate: Candidate, shape: Shape) -> Callable[[Array], Array]:
    """Make the function x -> y of a candidate, with scale 1 and bias 0."""
    _, *rest = start(candidate, shape, "float32", 0.0)
    apply = jax.jit(candidate.apply)
    return lambda x: apply(x, *rest)[0]


def torch_normalizer(device: str, x: Array) -> np.ndarray:
    """Normalize with torch."""
    import torch

    y = torch.nn.functional.batch_norm(
        torch.from_numpy(np.array(x)).to(device), None, None, training=True
    )
    return y.cpu().numpy()


def sharded(x: Float[Array, "D N C"]) -> Float[Array, "D N C"]:
    """Normalize shards with jbn, by statistics pooled over all of them."""
    params, state = jbn.init(x.shape[-1])
    one = functools.partial(jbn.batch_norm, training=True, axis_name="shards")
    return jax.vmap(one, axis_name="shards", in_axes=(0, None, None))(x, params, state)[0]


# ---- Report --------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Reduce jbn / Flax over the cases to the geometric mean and the largest."""
    found = {}
    for dtype in DTYPES:
        for passes in PASSES:
            values = ratios(rows, dtype, passes)
            found[f"{dtype} {passes}"] = {
                "geometric_mean": statistics.geometric_mean(values),
                "largest": max(values),
                "cases": values,
            }
    return found


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    rows = result["rows"]
    parts = [
        "# Batch normalization, jbn and its peers",
        f"`python -m benchmarks.op` on {common.describe(result['env'])}.",
        "Microseconds per step, and in brackets the multiple of the time to copy x. "
        f"Mean / std of x is {CALM} where not said otherwise. How the steps are made, and how "
        "torch's differ, is in the docstring of `benchmarks/op.py`.",
    ]
    for dtype in DTYPES:
        for passes in PASSES:
            chosen = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, passes)]
            parts.append(f"## {dtype}, {passes}")
            starts = range(0, len(chosen), COLUMNS)
            parts += [times(chosen[i : i + COLUMNS]) for i in starts]
            total = result["jbn / Flax"][f"{dtype} {passes}"]
            parts.append(
                f"jbn / Flax: geometric mean {total['geometric_mean']:.2f}, "
                f"largest {total['largest']:.2f}."
            )
    parts += [
        "## Kept for the backward pass",
        "Bytes that `jax.vjp` keeps, as a multiple of x, at " + result["kept"]["case"] + ".",
        common.table(
            ["", *DTYPES],
            [
                [name, *(f"{value:.2f}" for value in values)]
                for name, values in result["kept"]["multiples"].items()
            ],
        ),
        "## Largest error of y against float64",
        "x of 1024x64 float32, by mean / std.",
        common.table(
            ["", *(f"{ratio:g}" for ratio in RATIOS)],
            [
                [name, *("NaN" if value is None else f"{value:.1e}" for value in values)]
                for name, values in result["errors"].items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def times(rows: list[dict[str, Any]]) -> str:
    """Format a table with a column for each case."""
    columns = [row["seconds"] for row in rows]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [[name, *(cell(column, name) for column in columns)] for name in names]
    lines.append(["jbn / Flax", *(f"{column['jbn'] / column['Flax']:.2f}" for column in columns)])
    return common.table(["", *(row["case"] for row in rows)], lines)


def cell(seconds: dict[str, float], name: str) -> str:
    """Write microseconds and the multiple of a copy; nothing if it was not measured."""
    if name not in seconds:
        return ""
    return f"{seconds[name] * 1e6:,.0f} ({seconds[name] / seconds['copy']:.1f})"


def main(options: Options) -> dict[str, Any]:
    """Measure, print, write; return the result."""
    every = SMOKE_CASES if options.preset == "smoke" else CASES
    known = {case.label: case for case in every}
    if unknown := set(options.cases) - set(known):
        raise SystemExit(f"Expected cases among {', '.join(known)}, got {', '.join(unknown)}.")
    cases = [known[name] for name in options.cases or known]
    largest = max(cases, key=lambda case: math.prod(case.shape))
    ways = peers.candidates()
    device = peers.torch_device()
    rows = time_all(cases, ways, device, options)
    result = {
        "env": common.environment(),
        "options": {**dataclasses.asdict(options), "output": None},
        "rows": rows,
        "jbn / Flax": summary(rows),
        "kept": {
            "case": largest.label,
            "multiples": {
                name: [kept(make, largest.shape, dtype) for dtype in DTYPES]
                for name, make in ways.items()
            },
        },
        "mean / std": RATIOS,
        "errors": errors(ways, device),
    }
    markdown = report(result)
    print(f"\n{markdown}")
    whole = options.preset == "full" and not options.cases
    if output := options.output or (common.RESULTS if whole else None):
        common.write(output, f"op_{jax.default_backend()}", result, markdown)
    return result


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
