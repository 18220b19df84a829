"""What the benchmarks share: interleaved timing, the environment, the result files."""

import functools
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments import environment as ran_on

Run = Callable[[int], None]  # Runs the given number of steps and waits for the last one.

RESULTS = Path(__file__).parent / "results"
PEERS = ("dm-haiku", "equinox", "torch")


def interleaved(
    runs: Mapping[str, Run],
    *,
    repeats: int,
    steps: int | None = None,
    seconds: float = 0.2,
    least: int = 10,
) -> dict[str, float]:
    """Time functions in turn, so that a busy moment of the machine affects all of them alike.

    Args:
      runs: the functions by name.
      repeats: number of rounds; every other one goes through the functions in reverse order.
      steps: steps per round; None runs as many as take `seconds`, and at least `least`.

    Returns:
      name -> median over the rounds of the seconds per step.
    """
    counts = {}
    for name, run in runs.items():
        run(steps or 2)  # Compiles.
        counts[name] = steps or max(least, round(seconds / timed(run, 3)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(repeats):
        for name in order:
            taken[name].append(timed(runs[name], counts[name]))
        order.reverse()
    return {name: statistics.median(values) for name, values in taken.items()}


def timed(run: Run, count: int) -> float:
    """Time `count` steps and return the seconds per step."""
    began = time.perf_counter()
    run(count)
    return (time.perf_counter() - began) / count


def by_threads(name: str, run: Run) -> dict[str, Run]:
    """Make two runs of a torch run: with one thread and with one per core. See `fastest`."""
    import torch

    def with_threads(threads: int, count: int) -> None:
        torch.set_num_threads(threads)
        run(count)

    counts = (1, os.cpu_count() or 1)
    return {f"{name}@{threads}": functools.partial(with_threads, threads) for threads in counts}


def fastest(seconds: Mapping[str, float]) -> dict[str, float]:
    """Keep the faster of the runs made by `by_threads`, under the name without threads."""
    found: dict[str, float] = {}
    for key, value in seconds.items():
        name = key.partition("@")[0]
        found[name] = min(value, found.get(name, value))
    return found


def installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def environment() -> dict[str, Any]:
    """Describe the machine, the versions (peers included) and the date."""
    found = ran_on.describe()
    for package in PEERS:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "date": datetime.now(UTC).date().isoformat()}


def describe(env: Mapping[str, Any]) -> str:
    """Summarize the result of `environment` in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    machine, device = env["machine"], env["device"]
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if device["platform"] != "cpu":
        where = f"{device['kind']}; host: {where}"
    return f"{where}; {versions}; {env['date']}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table that is readable as plain text: first column left, others right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])])


def write(folder: Path, name: str, result: Mapping[str, Any], markdown: str) -> None:
    """Write `name`.json and `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / f"{name}.md").write_text(markdown)
    print(f"\nwritten: {folder / name}.json, {folder / name}.md")
