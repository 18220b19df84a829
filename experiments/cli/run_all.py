"""Run all experiments, one after the other; a failure does not stop the others."""

import contextlib
import dataclasses
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from experiments import run_dir
from experiments.checks import did_you_mean
from experiments.ledger.collect import BadRun, result_of
from experiments.option_errors import apart
from experiments.options import NEWEST, IOOptions, parse_arguments, reads_files
from experiments.plotting import counted

REFUSED = 2  # Exit status of an experiment that cannot run here, for example without its data.

CarryOut = Callable[[str, list[str]], int]


def to_go_on(arguments: Sequence[str]) -> str:
    """Write the command that resumes all experiments: what was typed, and --resume.

    Example:
      >>> from experiments.cli.run_all import to_go_on
      >>> to_go_on(["--preset", "smoke"])
      'python -m experiments all --preset smoke --resume'
    """
    resume = [] if "--resume" in arguments else ["--resume"]
    return shlex.join(["python", "-m", "experiments", "all", *arguments, *resume])


@dataclasses.dataclass(frozen=True)
class Options:
    """Run every experiment, or those that are named."""

    preset: Literal["smoke", "quick", "paper"] = "quick"
    """smoke: does everything run; quick: every verdict, 122 minutes on two cores with other work
    beside it; paper: more seeds and steps"""
    only: tuple[str, ...] = ()
    """only these, by name"""
    io: Annotated[IOOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=IOOptions)


def carry_out(names: Sequence[str], arguments: list[str], one: CarryOut) -> int:
    """Run all of `names` with `one`, `(name, arguments) -> status`; return the exit status.

    An experiment that cannot run here, for example without its data, is skipped and named at the
    end. With --resume, runs finished with exactly these options are kept, and unfinished ones are
    resumed.
    """
    # A bare --resume means the newest run, as in the other commands.
    arguments = [f"--resume={NEWEST}" if word == "--resume" else word for word in arguments]
    try:
        how = parse_arguments(Options, arguments, command="all")
    except ValueError as error:
        print(f"all: {error}", file=sys.stderr)
        return 2
    if how.io.resume not in (None, NEWEST):
        print(
            f"all: Expected nothing after --resume, as each experiment resumes its newest run, got "
            f"{how.io.resume!r}. Resume that one by itself.",
            file=sys.stderr,
        )
        return 2
    if "--only" in arguments and not how.only:
        print(f"all: Expected --only with any of {', '.join(names)}, got none.", file=sys.stderr)
        return 2
    for name in how.only:
        if name not in names:
            wrong = f"Expected --only with any of {', '.join(names)}, got {name!r}."
            wrong = apart("--only", name) or wrong + did_you_mean(name, names)
            print(f"all: {wrong}", file=sys.stderr)
            return 2
    if how.io.data_dir and not any(
        reads_files(_config(name, how.preset)) for name in how.only or names
    ):
        print(
            "all: Expected no --data-dir, as none of the experiments reads data files with preset "
            f"{how.preset}, got {how.io.data_dir}. Leave it out.",
            file=sys.stderr,
        )
        return 2
    began, statuses = time.perf_counter(), {}
    with _compiling_fast() if how.preset == "smoke" else contextlib.nullcontext():
        for name in how.only or names:
            statuses[name] = _one(name, how, one)
            if statuses[name] > 128:  # Stopped by a signal, which is meant for all experiments.
                return statuses[name]
            if how.preset != "smoke":
                jax.clear_caches()  # They are large, and the next experiment cannot use them.
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    skipped = [name for name, status in statuses.items() if status == REFUSED]
    failed = [name for name, status in statuses.items() if status not in (0, REFUSED)]
    count = counted(len(statuses) - len(skipped), "experiment")
    print(f"{count}, {minutes} min {seconds} s")
    for what, names in (("skipped", skipped), ("failed", failed)):
        if names:
            print(f"{what}: {', '.join(names)}; see above for the reasons", file=sys.stderr)
    if failed:
        return 1
    return REFUSED if len(skipped) == len(statuses) else 0


@contextlib.contextmanager
def _compiling_fast() -> Generator[None]:
    """Compile with few optimizations: a smoke run spends most of its time compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)  # Its default.


def _is_whole(path: Path, name: str) -> bool:
    """Tell whether the report will accept a finished run; print why not."""
    try:
        result_of(path, name)
    except BadRun as error:
        print(f"{name}: {path} counts as unfinished: {error}", file=sys.stderr)
        return False
    return True


def _config(name: str, preset: str) -> Any:
    return import_module(f"experiments.studies.{name}.config").PRESETS[preset]


def _one(name: str, how: Options, one: CarryOut) -> int:
    io, config = how.io, _config(name, how.preset)
    arguments = ["--preset", how.preset, "--runs", str(io.runs)]
    if io.data_dir and reads_files(config):
        arguments += ["--data-dir", str(io.data_dir)]
    try:
        if io.resume:
            path = run_dir.newest_finished(io.runs, name, config)
            if path and _is_whole(path, name):
                print(f"{name}: finished in {path}", file=sys.stderr)
                return 0
            if path:  # Its parts are kept, only the summary and figures are made again.
                arguments += [f"--resume={path}"]
            else:
                with contextlib.suppress(ValueError):  # No run was begun.
                    run_dir.newest_unfinished(io.runs, name, config).__exit__()
                    arguments += ["--resume"]
        print(f"== {name}", file=sys.stderr)
        return one(name, arguments)
    except OSError as error:
        print(f"{name}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
