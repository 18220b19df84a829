"""Command-line options: those of the experiment, and those of how it is run."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from experiments import option_errors, run_dir
from experiments.checks import did_you_mean
from experiments.docstrings import docstring

NEWEST = "newest"
OWN = "own options"
FROM_FILES = {"mnist", "fashion_mnist", "cifar10", "titanic"}  # Data sets read from --data-dir.

Parsed = TypeVar("Parsed")


@dataclasses.dataclass(frozen=True)
class IOOptions:
    """Where data come from and results go: nothing here changes them."""

    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder with mnist/*.gz and the like; else JBN_DATA, else a download"""
    runs: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """where run directories go"""
    resume: Annotated[str | None, tyro.conf.arg(metavar="[RUN]")] = None
    """resume a stopped run: this one, or the newest with these options"""

    @property
    def run(self) -> Path | None:
        """The run to resume, if one is named."""
        return None if self.resume in (None, NEWEST) else Path(self.resume)


@dataclasses.dataclass(frozen=True)
class ExecutionOptions(IOOptions):
    """How training is carried out: nothing here changes its results, but for rounding."""

    checkpoint_every: Annotated[int, tyro.conf.arg(metavar="K")] = 10
    """evaluations between checkpoints; Ctrl-C and SIGTERM write one more"""
    devices: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """devices that share each batch, on all hosts together; on CPU, virtual ones. None: 1 on one
    host, all on several"""
    parallel: Literal["shard_map", "jit", "pmap"] = "shard_map"
    """how JAX runs the devices: one program each, or with jit one that XLA spreads over them"""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """several hosts: the address of process 0. On TPU and under Slurm, JAX finds all three"""
    num_processes: Annotated[int | None, tyro.conf.arg(metavar="P")] = None
    """several hosts: the number of processes, one on each"""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """several hosts: which process this is, from 0"""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for name in ("checkpoint_every", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"Expected --{name.replace('_', '-')} to be at least 1, got {value}."
                )


class Options(NamedTuple):
    """What to run, and how."""

    config: Any
    execution: ExecutionOptions


def parse(
    name: str, study: Any, arguments: list[str], kind: type[IOOptions] = ExecutionOptions
) -> Options:
    """Parse the options; defaults come from the preset, or from the run to resume.

    Args:
      study: module with the study's `Config` and `PRESETS`.

    Raises:
      ValueError: names the invalid option or value in one line.
    """
    option_errors.refuse_empty(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", nargs="?", const="")
    first.add_argument("--resume", nargs="?", const=NEWEST)
    known, rest = first.parse_known_args(arguments)
    if known.preset is not None and known.preset not in study.PRESETS:
        raise ValueError(
            f"Expected --preset to be one of {', '.join(study.PRESETS)}, got "
            f"{known.preset or 'none'}.{did_you_mean(known.preset, study.PRESETS)}"
        )
    usual = getattr(study, "DEFAULT_PRESET", "quick")
    base = study.PRESETS[known.preset or usual]
    resumed = None
    # Of several hosts only the first has the run directory and can check it.
    if known.resume not in (None, NEWEST) and (Path(known.resume) / "config.json").is_file():
        resumed = run_dir.read_config(Path(known.resume), name, study.Config)
        base = base if known.preset else resumed
    presets = tyro.conf.arg(
        help="sets the defaults of the options below",
        metavar="{" + ",".join(study.PRESETS) + "}",
    )
    fields = {
        "preset": (Annotated[str, presets], known.preset or usual),
        "config": (Annotated[study.Config, tyro.conf.arg(name="")], base),
        "execution": (Annotated[kind, tyro.conf.arg(name="")], kind(resume=known.resume)),
    }
    whole = dataclasses.make_dataclass("Options", [(key, of) for key, (of, _) in fields.items()])
    parsed = parse_arguments(
        whole,
        rest,
        command=name,
        description=docstring(name),
        default=whole(**{key: default for key, (_, default) in fields.items()}),
    )
    if resumed is not None and parsed.config != resumed:
        given, before = dataclasses.asdict(parsed.config), dataclasses.asdict(resumed)
        others = [f"--{key.replace('_', '-')}" for key in before if given[key] != before[key]]
        raise ValueError(
            f"Expected the options of {known.resume} itself, got others: {', '.join(others)}. "
            "Leave them out: a run resumes with the options it was started with."
        )
    if parsed.execution.data_dir is not None and not reads_files(parsed.config):
        raise ValueError(
            f"Expected no --data-dir, as {name} reads no data files with these options, got "
            f"{parsed.execution.data_dir}. Leave it out."
        )
    return Options(parsed.config, parsed.execution)


def parse_arguments(
    kind: type[Parsed],
    arguments: list[str],
    *,
    command: str,
    description: str | None = None,
    default: Parsed | None = None,
    example: str = "",
) -> Parsed:
    """Parse a command line, with errors of one line each.

    Args:
      kind: a dataclass whose fields are the options, or dataclasses of further options.
      arguments: the words after the command.
      command: what was typed after `python -m experiments`.
      description: first paragraph of the help; None uses the docstring of `kind`.
      default: values of options that are not given; None uses the defaults of `kind`.
      example: words after the command, shown as an example if an option is missing.

    Returns:
      An object of `kind`.

    Raises:
      ValueError: an unknown option, or an invalid value.
      SystemExit: help was requested and has been printed.

    Example:
      >>> import dataclasses
      >>> from experiments.options import parse_arguments
      >>> @dataclasses.dataclass
      ... class Options:
      ...     steps: int = 10
      >>> parse_arguments(Options, ["--steps", "3"], command="demo")
      Options(steps=3)
      >>> parse_arguments(Options, ["--stpes", "3"], command="demo")
      Traceback (most recent call last):
      ValueError: Expected options of demo, got '--stpes'. Did you mean --steps?
    """
    option_errors.refuse_empty(arguments)
    stderr = io.StringIO()
    try:
        # Tyro prints errors in a box; its public interface has no shorter form.
        with contextlib.redirect_stderr(stderr):
            parsed, unknown = tyro.cli(
                kind,
                prog=f"python -m experiments {command}",
                description=description,
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        line = option_errors.explain(arguments, kind)
        if not line and default is None:
            line = option_errors.lacking(arguments, kind)
        if line.endswith("got none."):
            typed = f"Type: python -m experiments {command} {example}"
            line += f" {typed if example else 'Type one, or leave it out.'}"
        raise ValueError(line or _first_paragraph(stderr.getvalue())) from None
    if unknown:
        option = next((word for word in unknown if word.startswith("-")), unknown[0])
        option = option.partition("=")[0]
        hint = did_you_mean(option.replace("_", "-"), option_errors.options_of(kind))
        hint = hint or f" See: python -m experiments {command} --help"
        raise ValueError(f"Expected options of {command}, got {option!r}.{hint}")
    return parsed


def _first_paragraph(box: str) -> str:
    """Extract the first paragraph of a box: below its title, above the next rule or edge."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)  # Without colors.
    _, *lines = (line.strip("│ ") for line in f"{plain}\n".split("\n"))
    inside = itertools.dropwhile(_is_rule, lines)  # Drawn in ASCII, the title is underlined.
    paragraph = itertools.takewhile(lambda line: not _is_rule(line), inside)
    return " ".join(paragraph) or " ".join(plain.split())


def _is_rule(line: str) -> bool:
    return not line.strip("─-╰╯ ")


def kind_of(study: Any) -> type[IOOptions]:
    """Return the class of a study's common options: with `MANY_DEVICES`, also those of devices."""
    return ExecutionOptions if getattr(study, "MANY_DEVICES", False) else IOOptions


def reads_files(config: Any) -> bool:
    """Tell whether a study reads a data set from a data folder.

    Raises:
      ValueError: the config uses more images at once than it loads.
    """
    if hasattr(config, "reads_files"):
        return config.reads_files()
    return hasattr(config, "needs") and not FROM_FILES.isdisjoint(config.needs())


def preset_of(presets: Mapping[str, Any], config: Any) -> str:
    """Name the preset that a config equals, or "own options" if it equals none."""
    return next((name for name, preset in presets.items() if preset == config), OWN)


def to_go_on(name: str, path: str, execution: IOOptions) -> str:
    """Write the command that resumes a run in the same way, to be typed in the same folder.

    The experiment's own options, which the run stores, and --runs are left out.
    """
    command = ["python", "-m", "experiments", name, "--resume", _no_option(path)]
    for field in dataclasses.fields(execution):
        value = getattr(execution, field.name)
        if field.name not in ("resume", "runs") and value != field.default:
            command += [f"--{field.name.replace('_', '-')}", _no_option(str(value))]
    return shlex.join(command)


def _no_option(value: str) -> str:
    """Write a path that begins with a dash so that it is not parsed as an option."""
    return f"./{value}" if value.startswith("-") else value
