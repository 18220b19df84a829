"""Command line: python -m experiments NAME [options], or `list`, `all`, `report`."""

import contextlib
import gc
import sys

from experiments.docstrings import summary_line
from experiments.training.signals import GracefulExit, Stopped

EXPERIMENTS = (
    "mnist_mlp",
    "identities",
    "gradients",
    "recurrent",
    "whitening",
    "titanic",
    "learning_rate",
    "regularization",
    "batch_size",
    "inference",
    "shift",
    "batches",
    "saturation",
    "placement",
    "transfer",
    "inception",
)
USAGE = """usage: python -m experiments NAME [--preset smoke|quick|paper] [options]
       python -m experiments NAME --help
       python -m experiments list
       python -m experiments all [--preset smoke|quick|paper] [--resume] [options]
       python -m experiments report [options]"""


def main(arguments: list[str]) -> int:
    """Carry out one command; return the exit status."""
    if arguments[:1] == ["run"]:  # `run NAME` is `NAME`.
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help", "list"):
        print(claims_listing() if arguments == ["list"] else f"{USAGE}\n\n{listing()}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "report":
        from experiments.ledger import page as report

        return report.main(rest)
    if name != "all" and name not in EXPERIMENTS:
        print(
            f"Expected an experiment, all, report or list, got {name!r}. There are:\n{listing()}",
            file=sys.stderr,
        )
        return 2
    with GracefulExit() as graceful_exit:
        graceful_exit.say("stopped; nothing was begun")
        from experiments.cli import run_all
        from experiments.training import hosts  # Slow to import: not needed for `list`.

        with hosts.end_with_the_others():
            if name == "all":
                return run_all.carry_out(
                    EXPERIMENTS,
                    rest,
                    lambda name, arguments: carry_out(name, arguments, graceful_exit),
                )
            return carry_out(name, rest, graceful_exit)


def carry_out(name: str, arguments: list[str], graceful_exit: GracefulExit) -> int:
    """Run one experiment; return the exit status."""
    from experiments.cli import session  # Slow to import.
    from experiments.tasks import data

    try:
        made = session.prepare(name, arguments, graceful_exit)
    except (ValueError, FileNotFoundError) as error:  # Of options and data: no bug of ours.
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    with made.run or contextlib.nullcontext():
        graceful_exit.say(f"stopped; go on with: {made.resume_command}")
        print(f"run: {made.path} ({made.where})", file=sys.stderr)
        try:
            results = made.work()
        except Stopped as stopped:
            print(f"\n{graceful_exit.message}", file=sys.stderr)
            return 128 + stopped.number
        except (data.WrongData, FileNotFoundError) as error:  # A study loads its data late.
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        if made.run:
            print(f"{results}\n\nrun: {made.path}")
            print("figures:", *sorted(path.name for path in made.run.path.glob("*.png")))
    return 0


def listing() -> str:
    """Name each experiment with what it measures."""
    return "\n".join(f"  {name:16} {summary_line(name)}" for name in EXPERIMENTS)


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
