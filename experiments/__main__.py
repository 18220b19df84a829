"""Command line: python -m experiments NAME [options], or `list`."""

import ast
import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.last_words import LastWords, Stopped

EXPERIMENTS = ("mnist_mlp",)
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
    with LastWords() as last_words:
        last_words.say("stopped; nothing was begun")
        from experiments import hosts  # Slow to import: not needed for `list`.

        with hosts.end_with_the_others():
            return carry_out(name, arguments[1:], last_words)


def carry_out(name: str, arguments: list[str], last_words: LastWords) -> int:
    """Run one experiment; return the exit status."""
    try:
        session = prepare(name, arguments, last_words)
    except (ValueError, FileNotFoundError) as error:  # Of options and data: no bug of ours.
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    with session.run or contextlib.nullcontext():
        last_words.say(f"stopped; go on with: {session.again}")
        print(f"run: {session.path} ({session.where})", file=sys.stderr)
        try:
            results = session.work()
        except Stopped as stopped:
            print(f"\n{last_words.words}", file=sys.stderr)
            return 128 + stopped.number
        if session.run:
            print(f"{results}\n\nrun: {session.path}")
            print("figures:", *sorted(path.name for path in session.run.path.glob("*.png")))
    return 0


def listing() -> str:
    """Name each experiment with the first line of its docstring, without importing it."""
    lines = []
    for name in EXPERIMENTS:
        source = Path(__file__).with_name(f"{name}.py").read_text()
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:16} {summary}")
    return "\n".join(lines)


class Session(NamedTuple):
    """A run that is ready to go; `run` is None on hosts other than the first."""

    run: Any
    path: str
    where: str
    work: Callable[[], str]
    again: str


def prepare(name: str, arguments: list[str], last_words: LastWords) -> Session:
    """Parse the options, connect the hosts, load the data, make or reopen the run directory."""
    # Slow to import: not needed for `list`.
    from experiments import data, hosts, options, record
    from experiments.devices import Devices
    from experiments.train import Execution

    experiment = importlib.import_module(f"experiments.{name}")
    config, how = options.parse(name, experiment, arguments)
    wanted = hosts.expected(how.coordinator, how.num_processes, how.process_id)
    if wanted.processes > 1:
        last_words.call_witness()
        last_words.say(
            f"Expected {wanted.processes} processes to connect and load the data, but not all did. "
            "Start one on every host, with the same options but for --process-id."
        )
    hosts.connect(wanted, how.devices)

    config = record.to_config(experiment.Config, hosts.told_by_first(record.to_json(config)))
    devices = Devices(how.devices or hosts.default_devices(), how.parallel)
    dataset = hosts.everywhere(lambda: data.load(config.dataset, data_dir=how.data_dir))
    hosts.check_same("examples", dataset.describe()["sha256"])
    environment = {**record.environment(), "data": dataset.describe(), "spread": str(devices)}

    def open_run() -> record.Run:
        if how.run is not None:
            run = record.open_run(how.run)
        elif how.resume is not None:
            run = record.newest_unfinished(how.runs, name, config)
        else:
            run = record.create(how.runs, name, config)
        try:
            record.keep_environment(run, environment)
        except ValueError:
            run.__exit__()
            raise
        return run

    run = hosts.on_first(open_run)
    path = hosts.told_by_first(str(run.path) if run else None)
    execution = Execution(devices, how.checkpoint_every, last_words)
    return Session(
        run,
        path,
        str(devices),
        lambda: experiment.run(config, dataset, run, execution),
        options.to_go_on(name, path, how),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
