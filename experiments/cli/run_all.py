"""All experiments, one after the other; what fails does not keep the others from being measured."""

import contextlib
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from typing import Annotated, Literal

import jax
import tyro

from experiments import run_dir
from experiments.options import NEWEST, IOOptions

CarryOut = Callable[[str, list[str]], int]


@dataclasses.dataclass(frozen=True)
class Options:
    """Run every experiment, or those that are named."""

    preset: Literal["smoke", "quick", "paper"] = "quick"
    """smoke: does everything run; quick: every verdict, within 45 minutes on two cores; paper: more
    seeds and steps"""
    only: tuple[str, ...] = ()
    """these alone, by name"""
    io: Annotated[IOOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=IOOptions)


def carry_out(names: Sequence[str], arguments: list[str], one: CarryOut) -> int:
    """Run all of `names` by `one`, `(name, arguments) -> status`; return the exit status.

    With --resume, what is finished with these very options stays, and what was begun goes on.
    """
    # A bare --resume, as the other commands have it.
    arguments = [f"--resume={NEWEST}" if word == "--resume" else word for word in arguments]
    how = tyro.cli(Options, prog="python -m experiments all", args=arguments)
    unknown = sorted(set(how.only) - set(names))
    if unknown:
        print(
            f"Expected --only with experiments among {', '.join(names)}, got {', '.join(unknown)}.",
            file=sys.stderr,
        )
        return 2
    began, statuses = time.perf_counter(), {}
    with _compiling_fast() if how.preset == "smoke" else contextlib.nullcontext():
        for name in how.only or names:
            statuses[name] = _one(name, how, one)
            if how.preset != "smoke":
                jax.clear_caches()  # Of no use to the next, and large.
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    failed = [name for name, status in statuses.items() if status]
    print(f"{len(statuses)} experiments, {minutes} min {seconds} s")
    if failed:
        print(f"failed: {', '.join(failed)}; see above", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _compiling_fast() -> Generator[None]:
    """Compile with few optimizations: a smoke run takes most of its time for compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)  # Its default.


def _one(name: str, how: Options, one: CarryOut) -> int:
    io = how.io
    arguments = ["--preset", how.preset, "--runs", str(io.runs)]
    if io.data_dir:
        arguments += ["--data-dir", str(io.data_dir)]
    if io.resume:
        config = import_module(f"experiments.studies.{name}.config").PRESETS[how.preset]
        wanted = {"experiment": name, **run_dir.to_json(config)}
        for path in run_dir.finished(io.runs, name):
            if run_dir.read_json(path / "config.json") == wanted:
                print(f"{name}: finished in {path}", file=sys.stderr)
                return 0
        try:
            run_dir.newest_unfinished(io.runs, name, config).__exit__()
            arguments += ["--resume"]
        except ValueError:
            pass  # Not begun.
    print(f"== {name}", file=sys.stderr)
    try:
        return one(name, arguments)
    except Exception:
        traceback.print_exc()
        return 1
