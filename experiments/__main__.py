"""Command line: python -m experiments NAME [options], or `list`, `all`, `report`."""

import contextlib
import gc
import importlib
import os
import sys

from experiments.checks import did_you_mean
from experiments.docstrings import summary_line
from experiments.training.signals import GracefulExit, Stopped

# In the order of what they cost at `quick`, the cheapest first.
EXPERIMENTS = (
    "mnist_mlp",
    "identities",
    "batches",
    "whitening",
    "inference",
    "titanic",
    "transfer",
    "gradients",
    "saturation",
    "regularization",
    "batch_size",
    "placement",
    "shift",
    "inception",
    "recurrent",
    "learning_rate",
    "compare",
)
ALONE = ("imagenet",)  # Not of `all`: it takes as long as all others, and has presets of its own.
USAGE = """usage: python -m experiments NAME [--preset smoke|quick|paper] [options]
       python -m experiments NAME --help
       python -m experiments list
       python -m experiments all [--preset smoke|quick|paper] [--resume] [options]
       python -m experiments report [options]"""


def main(arguments: list[str]) -> int:
    """Carry out one command; return the exit status.

    0: done; 1: failed, as of a full disk; 2: options or data with which it cannot be done; 128 and
    the signal's number: stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A terminal may have no "\N{PLUS-MINUS SIGN}".
            stream.reconfigure(errors="replace")
    try:
        return carry_out_command(arguments)
    except OSError as error:
        return tell("experiments", error)


def carry_out_command(arguments: list[str]) -> int:
    """Tell which command it is, and carry it out; return the exit status."""
    if arguments[:1] == ["run"]:  # `run NAME` is `NAME`.
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help", "list"):
        if arguments[1:] and set(arguments[1:]).isdisjoint(("-h", "--help")):
            command, word = arguments[:2]
            print(f"Expected nothing after {command}, got {word!r}. Leave it out.", file=sys.stderr)
            return 2
        print(claims_listing() if arguments == ["list"] else f"{USAGE}\n\n{listing()}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "report":
        return carry_out_report(rest)
    names = (*EXPERIMENTS, *ALONE, "all", "report", "list")
    if name not in names:
        hint = did_you_mean(name, names)
        print(f"Expected one of {', '.join(names)}, got {name!r}.{hint}", file=sys.stderr)
        return 2
    with GracefulExit() as graceful_exit:
        if name == "imagenet":
            from experiments.cli import imagenet

            graceful_exit.say("stopped; what was finished is kept")
            status = imagenet.carry_out(rest)
            if status is not None:
                return status
        graceful_exit.say("stopped; nothing was begun")
        if name != "all":
            refused = refuse(name, rest)
            if refused:
                return refused
        from experiments.cli import run_all
        from experiments.training import hosts  # Slow to import: not needed for `list`.

        with hosts.end_with_the_others():
            if name == "all":
                stopped = f"stopped; go on with: {run_all.to_go_on(rest)}"
                return run_all.carry_out(
                    EXPERIMENTS,
                    rest,
                    lambda name, arguments: carry_out(name, arguments, graceful_exit, stopped),
                )
            return carry_out(name, rest, graceful_exit)


def carry_out_report(arguments: list[str]) -> int:
    """Write the report; return the exit status."""
    from experiments.ledger import page as report
    from experiments.options import parse_arguments

    with GracefulExit() as graceful_exit:
        graceful_exit.say("stopped; the report is not whole")
        try:
            parse_arguments(report.Options, arguments, command="report")
        except ValueError as error:
            return tell("report", error)
        return report.main(arguments)


def refuse(name: str, arguments: list[str]) -> int:
    """Tell what is wrong with the options before anything slow is imported; return 0 if nothing."""
    from experiments import options  # Not needed for `list`.

    settings = importlib.import_module(f"experiments.studies.{name}.config")
    try:
        options.parse(name, settings, arguments, options.kind_of(settings))
    except (ValueError, OSError) as error:
        return tell(name, error)
    return 0


def carry_out(
    name: str, arguments: list[str], graceful_exit: GracefulExit, stopped: str = ""
) -> int:
    """Run one experiment; return the exit status.

    Args:
      stopped: what is said where a signal ends it; empty for the command that resumes this run.
    """
    from experiments.cli import session  # Slow to import.
    from experiments.run_dir import Damaged
    from experiments.tasks import data
    from experiments.training import hosts

    try:
        ready = session.prepare(name, arguments, graceful_exit)
    except (ValueError, FileNotFoundError) as error:  # Of options and data: no bug of ours.
        return tell(name, error)
    except OSError as error:
        return end_alone(tell(name, error), hosts.count())
    with ready.run or contextlib.nullcontext():
        graceful_exit.say(stopped or f"stopped; go on with: {ready.resume_command}")
        print(f"run: {ready.path} ({ready.where})", file=sys.stderr)
        try:
            results = ready.work()
        except Stopped as signal:
            print(f"\n{graceful_exit.message}", file=sys.stderr)
            return 128 + signal.number
        except data.WrongData as error:  # A study may load its data late.
            return tell(name, error)
        except (OSError, Damaged, FloatingPointError) as error:
            if isinstance(error, OSError) and error.errno:  # Of an open file it has no name.
                error.filename = error.filename or ready.path
            return end_alone(tell(name, error, ready.resume_command), hosts.count())
        if ready.run:
            print(f"{results}\n\nrun: {ready.path}")
            print("figures:", *sorted(path.name for path in ready.run.path.glob("*.png")))
    return 0


def tell(name: str, error: Exception, resume_command: str = "") -> int:
    """Say in one line what went wrong; return the exit status.

    An error of the system has a number, and is of a path; one of ours says all in words.
    """
    from experiments.run_dir import Damaged

    if isinstance(error, OSError) and error.errno is not None:
        then = f". Once that is mended, go on with: {resume_command}" if resume_command else ""
        print(f"{name}: {error.filename or 'output'}: {error.strerror}{then}", file=sys.stderr)
        return 1
    print(f"{name}: {error}", file=sys.stderr)
    return 1 if isinstance(error, (FloatingPointError, Damaged)) else 2


def end_alone(status: int, hosts: int) -> int:
    """Return the exit status; with other hosts, which wait for this one, end at once instead."""
    if hosts > 1:
        sys.stderr.flush()
        os._exit(status)
    return status


def listing() -> str:
    """Name each experiment with what it measures."""
    return "\n".join(f"  {name:16} {summary_line(name)}" for name in (*EXPERIMENTS, *ALONE))


def claims_listing() -> str:
    """Name each experiment, and the claims it measures."""
    from experiments.ledger.claims import CLAIMS

    lines = []
    for name in EXPERIMENTS:
        lines += [f"{name}: {summary_line(name)}"]
        for claim in CLAIMS:
            if claim.experiment == name:
                lines += [f"  {claim.id:32} {claim.text} [{', '.join(claim.sources)}]"]
    return "\n".join(lines)


if __name__ == "__main__":
    # Imports and traces make so many objects that to look for garbage takes a tenth of a start.
    gc.set_threshold(50_000, 20, 20)
    sys.exit(main(sys.argv[1:]))
