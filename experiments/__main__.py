"""Command line: python -m experiments NAME [options], or `list`, `all`, `report`."""

import contextlib
import gc
import importlib
import os
import sys

from experiments.checks import did_you_mean
from experiments.docstrings import summary_line
from experiments.training.signals import GracefulExit, Stopped

# Ordered by their running time with preset `quick`, the fastest first.
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
ALONE = ("imagenet",)  # Not part of `all`: as long as all others together, with its own presets.
USAGE = """usage: python -m experiments NAME [--preset smoke|quick|paper] [options]
       python -m experiments NAME --help
       python -m experiments list
       python -m experiments all [--preset smoke|quick|paper] [--resume] [options]
       python -m experiments report [options]"""


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status.

    0: success; 1: failure, such as a full disk; 2: invalid options or data; 128 plus the signal's
    number: stopped by a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # The terminal may lack "\N{PLUS-MINUS SIGN}".
            stream.reconfigure(errors="replace")
    try:
        return carry_out_command(arguments)
    except OSError as error:
        return tell("experiments", error)


def carry_out_command(arguments: list[str]) -> int:
    """Find out which command was given and run it; return the exit status."""
    if arguments[:1] == ["run"]:  # `run NAME` means `NAME`.
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

            graceful_exit.say("stopped; finished work is kept")
            status = imagenet.carry_out(rest)
            if status is not None:
                return status
        graceful_exit.say("stopped; nothing was started")
        if name != "all":
            refused = refuse(name, rest)
            if refused:
                return refused
        from experiments.cli import run_all
        from experiments.training import hosts  # Slow to import: not needed for `list`.

        with hosts.end_with_the_others():
            if name == "all":
                stopped = f"stopped; resume with: {run_all.to_go_on(rest)}"
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
        graceful_exit.say("stopped; the report is incomplete")
        try:
            parse_arguments(report.Options, arguments, command="report")
        except ValueError as error:
            return tell("report", error)
        return report.main(arguments)


def refuse(name: str, arguments: list[str]) -> int:
    """Report invalid options before anything slow is imported; return the exit status, or 0."""
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
      stopped: message printed when a signal ends the run; empty prints the command to resume it.
    """
    from experiments.cli import session  # Slow to import.
    from experiments.run_dir import Damaged
    from experiments.tasks import data
    from experiments.training import hosts

    try:
        ready = session.prepare(name, arguments, graceful_exit)
    except (ValueError, FileNotFoundError) as error:  # Invalid options or data, not a bug.
        return tell(name, error)
    except OSError as error:
        return end_alone(tell(name, error), hosts.count())
    with ready.run or contextlib.nullcontext():
        graceful_exit.say(stopped or f"stopped; resume with: {ready.resume_command}")
        print(f"run: {ready.path} ({ready.where})", file=sys.stderr)
        try:
            results = ready.work()
        except Stopped as signal:
            print(f"\n{graceful_exit.message}", file=sys.stderr)
            return 128 + signal.number
        except data.WrongData as error:  # A study may load its data late.
            return tell(name, error)
        except (OSError, Damaged, FloatingPointError) as error:
            if isinstance(error, OSError) and error.errno:  # An open file's error has no name.
                error.filename = error.filename or ready.path
            return end_alone(tell(name, error, ready.resume_command), hosts.count())
        if ready.run:
            print(f"{results}\n\nrun: {ready.path}")
            print("figures:", *sorted(path.name for path in ready.run.path.glob("*.png")))
    return 0


def tell(name: str, error: Exception, resume_command: str = "") -> int:
    """Print in one line what went wrong; return the exit status.

    System errors have a number and a path; the message of our own errors says everything.
    """
    from experiments.run_dir import Damaged

    if isinstance(error, OSError) and error.errno is not None:
        then = f". Once that is fixed, resume with: {resume_command}" if resume_command else ""
        print(f"{name}: {error.filename or 'output'}: {error.strerror}{then}", file=sys.stderr)
        return 1
    print(f"{name}: {error}", file=sys.stderr)
    return 1 if isinstance(error, (FloatingPointError, Damaged)) else 2


def end_alone(status: int, hosts: int) -> int:
    """Return the exit status; with several hosts, exit at once, as an orderly exit would hang."""
    if hosts > 1:
        sys.stderr.flush()
        os._exit(status)
    return status


def listing() -> str:
    """List each experiment with what it measures."""
    return "\n".join(f"  {name:16} {summary_line(name)}" for name in (*EXPERIMENTS, *ALONE))


def claims_listing() -> str:
    """List each experiment with the claims it measures."""
    from experiments.ledger.claims import CLAIMS

    lines = []
    for name in EXPERIMENTS:
        lines += [f"{name}: {summary_line(name)}"]
        for claim in CLAIMS:
            if claim.experiment == name:
                lines += [f"  {claim.id:32} {claim.text} [{', '.join(claim.sources)}]"]
    return "\n".join(lines)


if __name__ == "__main__":
    # Imports and tracing create so many objects that garbage collection takes 10% of startup.
    gc.set_threshold(50_000, 20, 20)
    sys.exit(main(sys.argv[1:]))
