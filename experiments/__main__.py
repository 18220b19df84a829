"""Command line: python -m experiments NAME [options], or `list`."""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Any

EXPERIMENTS = ("mnist_mlp",)
NEWEST = "newest"
USAGE = """usage: python -m experiments NAME [--preset smoke|quick|paper] [options]
       python -m experiments NAME --help
       python -m experiments list"""


def main(arguments: list[str]) -> int:
    """Run one experiment; return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "list"):
        print(listing() if arguments == ["list"] else f"{USAGE}\n\n{listing()}")
        return 0
    name = arguments[0]
    if name not in EXPERIMENTS:
        print(f"Expected an experiment, got {name!r}. There are:\n{listing()}", file=sys.stderr)
        return 2
    with last_words() as say:
        say("stopped; nothing was begun")
        try:
            run, work, folder = prepare(name, arguments[1:])
        except (ValueError, FileNotFoundError) as error:  # Of options and data: no bug of ours.
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        with run:
            again = f"--resume {run.path}" + (f" --data-dir {folder}" if folder else "")
            say(f"stopped; go on with: python -m experiments {name} {again}")
            print(f"run: {run.path}", file=sys.stderr)
            print(f"{work()}\n\nrun: {run.path}")
            print("figures:", *sorted(path.name for path in run.path.glob("*.png")))
    return 0


@contextlib.contextmanager
def last_words() -> Generator[Callable[[str], None]]:
    """End the process on Ctrl-C or SIGTERM at once, with the line that was set last.

    A run may end at any moment, so nothing needs to be put in order. A KeyboardInterrupt, by
    contrast, gets lost where it strikes inside a callback of XLA, or takes the interpreter down.
    """
    words = ""

    def say(line: str) -> None:
        nonlocal words
        words = line

    def stop(number: int, frame: object) -> None:
        os.write(2, f"\n{words}\n".encode())  # print might be what was interrupted.
        os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield say
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listing() -> str:
    """Name each experiment with the first line of its docstring, without importing it."""
    lines = []
    for name in EXPERIMENTS:
        source = Path(__file__).with_name(f"{name}.py").read_text()
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:16} {summary}")
    return "\n".join(lines)


def prepare(name: str, arguments: list[str]) -> tuple[Any, Callable[[], str], Path | None]:
    """Parse the options, load the data, make or reopen the run directory.

    Returns: the Run, the function that runs the experiment and returns its results, and the data
      folder if one was given.
    """
    from experiments import data, record  # Slow to import: not needed for `list`.

    experiment = importlib.import_module(f"experiments.{name}")
    options = parse(name, experiment, arguments)
    dataset = data.load(options.config.dataset, data_dir=options.data_dir)
    environment = {**record.environment(), "data": dataset.describe()}
    if options.resume is None:
        run = record.create(options.runs, name, options.config)
    elif options.resume == NEWEST:
        run = record.newest_unfinished(options.runs, name, options.config)
    else:
        run = record.open_run(Path(options.resume))
    try:
        record.keep_environment(run, environment)
    except ValueError:
        run.__exit__()
        raise
    return run, lambda: experiment.run(options.config, dataset, run), options.data_dir


def parse(name: str, experiment: Any, arguments: list[str]) -> Any:
    """Parse the options: the preset sets their defaults, or the run that is to be resumed does."""
    import tyro

    first = argparse.ArgumentParser(
        prog=f"python -m experiments {name}", add_help=False, allow_abbrev=False
    )
    first.add_argument("--preset", choices=list(experiment.PRESETS))
    first.add_argument("--resume", nargs="?", const=NEWEST)
    known, rest = first.parse_known_args(arguments)
    base = experiment.PRESETS[known.preset or "quick"]
    resumed = None
    if known.resume not in (None, NEWEST):
        resumed = read_config(name, experiment, Path(known.resume))
        base = base if known.preset else resumed

    def option(kind: Any, default: Any, help: str, **more: Any) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(help=help, **more)], default

    fields = {
        "preset": option(
            str,
            known.preset or "quick",
            "sets the defaults of the options below",
            metavar="{" + ",".join(experiment.PRESETS) + "}",
        ),
        "config": (Annotated[experiment.Config, tyro.conf.arg(name="")], base),
        "data_dir": option(
            Path | None,
            None,
            "folder with mnist/*.gz; else JBN_DATA, else a download",
            metavar="DIR",
        ),
        "runs": option(Path, Path("runs"), "where run directories go", metavar="DIR"),
        "resume": option(
            str | None,
            known.resume,
            "go on with a run that was stopped: this one, or the newest with these options",
            metavar="[RUN]",
        ),
    }
    kind = dataclasses.make_dataclass("Options", [(key, of) for key, (of, _) in fields.items()])
    options = tyro.cli(
        kind,
        prog=f"python -m experiments {name}",
        description=experiment.__doc__,
        args=rest,
        default=kind(**{key: default for key, (_, default) in fields.items()}),
    )
    if resumed is not None and options.config != resumed:
        raise ValueError(
            f"Expected the options of {known.resume} itself, got others. Leave them out: a run "
            "goes on as it was begun."
        )
    return options


def read_config(name: str, experiment: Any, path: Path) -> Any:
    """Read the config of a run of this experiment."""
    from experiments import record

    if not (path / "config.json").is_file():
        raise ValueError(f"Expected a run directory, got {path}, which has no config.json.")
    values = record.read_json(path / "config.json")
    if values.pop("experiment", None) != name:
        raise ValueError(f"Expected a run of {name}, got {path}, which is of another experiment.")
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return experiment.Config(**{**values, **lists})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
