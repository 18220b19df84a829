"""Options of `python -m experiments imagenet` that do something other than training."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.options import parse_arguments
from experiments.run_dir import Damaged, replacing


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Make shards of a folder of images: read faster, and checked once and for all."""

    prepare: Annotated[Path, tyro.conf.arg(metavar="OUTPUT")]
    """where the shards go: a new folder, or that of an interrupted call, which then continues"""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """the images: train/CLASS/*.jpg and validation/CLASS/*.jpg"""
    shards: int | None = None
    """number of training shards; None puts about 5,000 images in each"""
    workers: int = 2
    """threads that read and check"""
    unreadable: int = 100
    """number of unreadable images to leave out before giving up"""


@dataclasses.dataclass(frozen=True)
class EnsembleOptions:
    """Average the class probabilities of trained networks, and evaluate them (Fig. 4)."""

    ensemble: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]
    """folders of runs, for all their networks, or of single networks in them"""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """the one that the runs used"""
    crops: Literal[1, 144] = 1
    """of each validation image"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file to save the errors to"""


def carry_out(arguments: list[str]) -> int | None:
    """Run the command that an option asks for; return the exit status, or None if there is none."""
    given = {word.partition("=")[0] for word in arguments}
    if not given.isdisjoint(("-h", "--help")):
        arguments = ["--help"]  # Even if required options are missing.
    for option, command in COMMANDS.items():
        if option in given:
            try:
                return command(arguments)
            except (ValueError, FileNotFoundError) as error:
                print(f"imagenet: {error}", file=sys.stderr)
                return 1 if isinstance(error, Damaged) else 2
    return None


def compile_step(arguments: list[str]) -> int:
    """Compile the training step for another machine, and print what it needs.

    Raises:
      ValueError: invalid options.
    """
    from experiments.studies.imagenet import scale  # Slow to import.
    from experiments.training import machines

    machines.look_for_no_device()
    example = "--compile v5e:16x16"
    scale.main(parse_arguments(scale.Options, arguments, command="imagenet", example=example))
    return 0


def prepare_shards(arguments: list[str]) -> int:
    """Make shards of a folder of images.

    Raises:
      ValueError, FileNotFoundError: invalid options or images.
      OSError: such as a full disk; finished shards are kept.
    """
    from experiments.plotting import counted  # Slow to import.
    from experiments.studies.imagenet.data.prepare import prepare
    from experiments.studies.imagenet.data.unreadable import LOG

    example = "--prepare SHARDS --data-dir FOLDER"
    how = parse_arguments(PrepareOptions, arguments, command="imagenet", example=example)
    index = prepare(
        how.data_dir, how.prepare, shards=how.shards, workers=how.workers, limit=how.unreadable
    )
    counts = ", ".join(
        f"{sum(of['counts']):,} for {what}"
        for what, of in zip(("training", "validation"), index["splits"].values(), strict=True)
    )
    print(f"{len(index['classes']):,} classes, images: {counts}")
    log = how.prepare / LOG
    if log.exists():
        unreadable = len(log.read_text(encoding="utf-8").splitlines())
        print(f"left out {counted(unreadable, 'unreadable image')}, listed in {log}")
    print(f"train on them with: --dataset folder --data-dir {how.prepare}")
    return 0


def evaluate_ensemble(arguments: list[str]) -> int:
    """Evaluate networks and the mean of their class probabilities.

    Raises:
      ValueError, FileNotFoundError: invalid options, runs or images.
    """
    from experiments.studies.imagenet import ensemble  # Slow to import.

    how = parse_arguments(EnsembleOptions, arguments, command="imagenet")
    if how.output and not how.output.parent.is_dir():  # Checked before hours of evaluation.
        raise FileNotFoundError(
            f"Expected --output in an existing folder, got {how.output}. Create the folder first."
        )
    members = ensemble.find_members(how.ensemble)
    errors = ensemble.evaluate(members, how.data_dir, how.crops)
    print(ensemble.table(members, errors, how.crops))
    if how.output:
        content = {
            "crops": how.crops,
            "networks": {str(member.path): member.describe() for member in members},
            "errors": {name: error._asdict() for name, error in errors.items()},
        }
        with replacing(how.output) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "--compile": compile_step,
    "--ensemble": evaluate_ensemble,
    "--prepare": prepare_shards,
}
