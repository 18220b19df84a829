"""Test and time batch normalization on one GPU: correctness, speed and memory next to the peers.

  python -m benchmarks.gpu --output results

This takes at most nine minutes, with whatever jax, flax and torch are installed:

  tests     test_numerics*.py and test_transforms*.py of tests/jbn, on the device; tests that need
            eight devices are skipped
  op, block, masked, resnet50
            the programs of `benchmarks/programs.py`, forward and forward + backward, bfloat16 and
            float32: jbn, Flax, and no normalization; torch with channels last, eager and compiled

Times are medians over rounds that run the implementations in turn; a round queues its calls and
waits for the last one. `copy` moves an array as large as the one to normalize, in the same rounds,
which gives the bandwidth. Memory is what the program needs in addition to its arguments: XLA's
allocation for JAX, the peak of the allocator for torch. torch's compiler takes the longest, so its
rows come last, timed separately, as far as time allows.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from benchmarks import common, gpu_torch, op, op_steps, peers, programs
from benchmarks.common import Run

PARTS = ("tests", "op", "block", "resnet50")
PASSES = op.PASSES
TESTS = (
    "tests/jbn/test_numerics.py",
    "tests/jbn/test_numerics_devices.py",
    "tests/jbn/test_numerics_platforms.py",
    "tests/jbn/test_transforms.py",
    "tests/jbn/test_transforms_second_order.py",
)
SMOKE_TESTS = ("tests/jbn/test_transforms.py::test_grad_is_that_of_the_plain_formula",)
TESTS_SECONDS = 120
ROOT = Path(__file__).parents[1]
NORMS: dict[str, peers.Make] = {
    "jbn": peers.with_jbn,
    "Flax": peers.with_flax,
    "none": peers.without,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write the result."""

    output: Path
    """folder for gpu.json and gpu.md"""
    preset: Literal["smoke", "full"] = "full"
    """smoke: tiny shapes on any device, to see that all works"""
    parts: tuple[str, ...] = PARTS
    """some parts only"""
    dtypes: tuple[str, ...] = programs.DTYPES
    """some dtypes only"""
    minutes: float = 8.5
    """what has not begun by then is left out, and named"""
    repeats: int = 7
    """rounds, of which the median counts"""
    seconds: float = 0.06
    """of one round of one way"""


class Case(NamedTuple):
    """One row of the table: a program with every normalization, and the same in torch."""

    name: str
    dtype: str
    passes: str
    ways: dict[str, programs.Program]
    torch: Callable[[bool], Run] | None


# ---- Measurement ---------------------------------------------------------------------------------


def cases(options: Options) -> list[Case]:
    """List the rows."""
    sizes = programs.FULL if options.preset == "full" else programs.SMOKE
    found = []
    for dtype in options.dtypes:
        for passes in PASSES:
            back = passes == op.PASSES[1]
            if "op" in options.parts:
                for shape in sizes.op:
                    ways = {n: programs.op(make, shape, dtype, back) for n, make in NORMS.items()}
                    torch = functools.partial(gpu_torch.normalization, shape, dtype, back)
                    found.append(Case(f"op {op_steps.label(shape)}", dtype, passes, ways, torch))
            if "block" in options.parts:
                for kind in ("matmul", "conv", "masked"):
                    ways = {
                        n: programs.block(make, kind, sizes, dtype, back)
                        for n, make in NORMS.items()
                    }
                    torch = functools.partial(gpu_torch.block, kind, sizes, dtype, back)
                    torch = None if kind == "masked" else torch  # torch has no masks.
                    found.append(Case(f"block, {kind}", dtype, passes, ways, torch))
            if "resnet50" in options.parts:
                ways = {n: programs.network(n, sizes, dtype, back) for n in programs.NORMS}
                torch = functools.partial(gpu_torch.network, sizes.images, dtype, back)
                found.append(Case("ResNet-50", dtype, passes, ways, torch))
    return found


def prepare(found: list[Case]) -> list[dict[str, Any]]:
    """Compile JAX's programs, several at a time, and make torch's eager runs, or keep the error."""
    with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as threads:
        jobs: list[dict[str, Any]] = []
        for case in found:
            jobs.append({})
            for name, program in case.ways.items():
                lowered = jax.jit(program.step).lower(*jax.eval_shape(program.make))
                jobs[-1][name] = threads.submit(lowered.compile)
        ready = [{n: or_error(job.result) for n, job in row.items()} for row in jobs]
    for case, row in zip(found, ready, strict=True):
        if (make := case.torch) and gpu_torch.is_available(compiled=False):
            row["torch"] = or_error(lambda m=make: gpu_torch.warm(m(False)))
    return ready


def or_error(function: Callable[[], Any]) -> Any:
    """Return the function's result or its exception, so that one failure does not end the table."""
    try:
        return function()
    except Exception as error:
        return error


def calls(compiled: Any, program: programs.Program) -> Run:
    """Make the run of a compiled program."""
    arguments = jax.block_until_ready(jax.jit(program.make)())

    return queued(lambda: compiled(*arguments))


def copies(size: int) -> Run:
    """Make the run that copies `size` bytes."""
    copy = jax.jit(lambda x: x + 1)
    array = jnp.ones(size // 4, jnp.float32)

    return queued(lambda: copy(array))


def queued(call: Callable[[], Any]) -> Run:
    """Make the run that queues calls and waits for the last."""

    def run(count: int) -> None:
        result = None
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)

    return run


def measure(case: Case, ready: dict[str, Any], options: Options) -> dict[str, Any]:
    """Time one row, print it, return it."""
    size = next(iter(case.ways.values())).size
    runs, memory, bytes_accessed, notes = {"copy": copies(size)}, {}, {}, {}
    for name, each in ready.items():
        if isinstance(each, Exception):
            notes[name] = f"{type(each).__name__}: {each}".splitlines()[0]
        elif name in case.ways:
            runs[name] = calls(each, case.ways[name])
            memory[name], bytes_accessed[name] = temporary(each), accessed(each)
        else:
            runs[name], memory[name] = each, gpu_torch.peak(each)
    seconds = common.interleaved(runs, repeats=options.repeats, seconds=options.seconds, least=3)
    row = {
        "program": case.name,
        "dtype": case.dtype,
        "pass": case.passes,
        "bytes": size,
        "seconds": seconds,
        "temporary": memory,
        "accessed": bytes_accessed,
        "notes": notes,
    }
    print(
        f"{label(row)}: {', '.join(f'{n} {s * 1e3:.3f}' for n, s in seconds.items())}", flush=True
    )
    return row


def measure_compiled_torch(case: Case, row: dict[str, Any], options: Options) -> None:
    """Compile torch's program and time it; add both to a row."""
    make, name = case.torch, "torch, compiled"
    if make is None or not gpu_torch.is_available(compiled=True):
        return
    run = or_error(lambda: gpu_torch.warm(make(True)))
    if isinstance(run, Exception):
        row["notes"][name] = f"{type(run).__name__}: {run}".splitlines()[0]
        return
    row["temporary"][name] = gpu_torch.peak(run)
    row["seconds"] |= common.interleaved(
        {name: run}, repeats=options.repeats, seconds=options.seconds, least=3
    )


def temporary(compiled: Any) -> int | None:
    """Return the bytes that a program needs in addition to arguments and results."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def accessed(compiled: Any) -> float | None:
    """Return the bytes that the program's kernels read and write, according to XLA."""
    return (compiled.cost_analysis() or {}).get("bytes accessed")


def tests(options: Options) -> dict[str, Any]:
    """Run the core's tests on this device; return pytest's last line and the failures."""
    files = TESTS if options.preset == "full" else SMOKE_TESTS
    began = time.monotonic()
    arguments = ["-q", "-p", "no:cacheprovider", "-W", "ignore", *files]
    if options.preset == "full" and common.installed("xdist"):
        arguments += ["-n", "8"]
    log = options.output / "tests.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "JBN_TEST_PLATFORM": {"gpu": "cuda"}.get(jax.default_backend(), "cpu"),
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            },
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(TESTS_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    lines = log.read_text().strip().splitlines() or [""]
    return {
        "files": list(files),
        "summary": lines[-1],
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "seconds": time.monotonic() - began,
    }


# ---- Report --------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    parts = [
        "# Batch normalization on a GPU",
        f"`python -m benchmarks.gpu` on {common.describe(result['env'])}.",
        "Milliseconds, medians; below them the share of the copy's bandwidth that the program's "
        "bytes by XLA's own count come to, and its memory beside arguments and results. What the "
        "programs are is in `benchmarks/programs.py`, how they are timed in `benchmarks/gpu.py`.",
    ]
    if found := result.get("tests"):
        parts.append(f"Tests on the device ({', '.join(found['files'])}): {found['summary']}")
        parts += [f"- {line}" for line in found["failed"]]
    rows = result["rows"]
    found = dict.fromkeys(name for row in rows for name in row["seconds"])
    names = [name for name in found if name != "copy"]
    lines = [[label(row), *(cell(row, name) for name in names), against_flax(row)] for row in rows]
    if lines:
        parts.append(common.table(["ms (bandwidth, GB)", *names, "jbn / Flax"], lines))
    for row in rows:
        for name, note in row["notes"].items():
            parts.append(f"- {name}, {label(row)}: {note}")
    if result["left_out"]:
        parts.append(f"Left out, for time: {'; '.join(result['left_out'])}.")
    return "\n\n".join(parts) + "\n"


def label(row: dict[str, Any]) -> str:
    """Name a row."""
    return f"{row['program']}, {row['pass']}, {row['dtype']}"


def against_flax(row: dict[str, Any]) -> str:
    """Write jbn's time divided by Flax's, if both were measured."""
    seconds = row["seconds"]
    both = "jbn" in seconds and "Flax" in seconds
    return f"{seconds['jbn'] / seconds['Flax']:.2f}" if both else ""


def cell(row: dict[str, Any], name: str) -> str:
    """Write the milliseconds, the share of the bandwidth, and the memory."""
    if name not in row["seconds"]:
        return ""
    seconds, more = row["seconds"][name], []
    if count := row["accessed"].get(name):
        copy = 2 * row["bytes"] / row["seconds"]["copy"]
        more.append(f"{count / seconds / copy:.0%}")
    if (memory := row["temporary"].get(name)) is not None:
        more.append(f"{memory / 1e9:.2f}")
    return f"{seconds * 1e3:.3f}" + (f" ({', '.join(more)})" if more else "")


def keep(options: Options, result: dict[str, Any]) -> None:
    """Write the result so far without printing."""
    with contextlib.redirect_stdout(io.StringIO()):
        common.write(options.output, "gpu", result, report(result))


def main(options: Options) -> dict[str, Any]:
    """Measure, print, write; return the result."""
    began = time.monotonic()
    if unknown := set(options.parts) - set(PARTS):
        raise SystemExit(f"Expected parts among {', '.join(PARTS)}, got {', '.join(unknown)}.")
    if jax.default_backend() != "gpu" and options.preset == "full":
        raise SystemExit(
            f"Expected a GPU, got JAX on {jax.default_backend()}. Install jax[cuda12] or "
            "jax[cuda13], or pass --preset smoke to check that the script works."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"env": common.environment(), "rows": [], "left_out": []}
    if "tests" in options.parts:
        result["tests"] = tests(options)
        print(result["tests"]["summary"], flush=True)
    found = cases(options)
    ready = prepare(found)
    print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)
    for case, each in zip(found, ready, strict=True):
        if time.monotonic() - began > options.minutes * 60:
            result["left_out"].append(f"{case.name}, {case.passes}, {case.dtype}")
            continue
        result["rows"].append(measure(case, each, options))
        keep(options, result)  # Save each row, in case the process is killed.
    for case, row in zip(found, result["rows"], strict=False):
        if time.monotonic() - began < options.minutes * 60:
            measure_compiled_torch(case, row, options)
            keep(options, result)
    keep(options, result)
    print(f"\n{report(result)}")
    return result


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory, too.
    main(tyro.cli(Options, description=__doc__))
