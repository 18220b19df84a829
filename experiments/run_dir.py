"""Run directories: runs/<experiment>/<stamp>/ with all that a figure or a resumed run needs.

config.json    the experiment's name and its config: what was asked for
env.json       versions, devices, machine, commit: what it ran on
metrics.jsonl  one row per evaluation; only a function of the two above
timing.jsonl   seconds per row of metrics.jsonl
checkpoints/   the latest states, written by `experiments.training.loop`
summary.json   the results; a run that has it is finished
"""

import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax

PACKAGES = ("jbn", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "scikit-learn")

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, held until `with` ends: no other process writes to it meanwhile."""

    path: Path
    lock: TextIO = dataclasses.field(repr=False)

    def __enter__(self) -> "Run":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let other processes have it."""
        self.lock.close()

    def read(self, name: str) -> Any:
        """Read a JSON file of the run."""
        return read_json(self.path / name)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(self.path / name)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a JSON-lines file of the run, and see it onto the disk."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, name: str, step: int) -> None:
        """Forget the rows of a JSON-lines file after `step`, and a last one that was cut short."""
        path = self.path / name
        if not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        partial = path.with_name(f"{name}.partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(path)


def create(root: Path, experiment: str, config: Any) -> Run:
    """Make a new run directory, named after the time in UTC, and hold it."""
    folder = root / experiment
    folder.mkdir(parents=True, exist_ok=True)
    while True:  # Until no other process has taken this very microsecond.
        path = folder / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        run = Run(path, _lock(path))
        run.write("config.json", {"experiment": experiment, **to_json(config)})
        return run


def open_run(path: Path) -> Run:
    """Hold a run directory that exists.

    Raises: ValueError: not a run directory, or another process holds it.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"Expected a run directory, got {path}, which has no config.json.")
    try:
        return Run(path, _lock(path))
    except BlockingIOError:
        raise ValueError(f"Expected an idle run, but a process is at work in {path}.") from None


def finished(root: Path, experiment: str) -> list[Path]:
    """Find the finished runs of this experiment, newest first."""
    paths = sorted((root / experiment).glob("*/"), reverse=True)
    return [path for path in paths if (path / "summary.json").is_file()]


def newest_unfinished(root: Path, experiment: str, config: Any) -> Run:
    """Hold the newest run of this experiment and config that neither finished nor is running.

    Raises: ValueError: there is none.
    """
    wanted = {"experiment": experiment, **to_json(config)}
    others = []
    for path in sorted((root / experiment).glob("*/"), reverse=True):
        if not (path / "config.json").is_file() or (path / "summary.json").exists():
            continue
        if read_json(path / "config.json") != wanted:
            others.append(str(path))
            continue
        try:
            return Run(path, _lock(path))
        except BlockingIOError:
            continue
    hint = f" There is {others[0]} with others: pass it to --resume." if others else ""
    raise ValueError(
        f"Expected an unfinished run of {experiment} with these options in {root}, got none.{hint}"
    )


def _lock(path: Path) -> TextIO:
    # The kernel drops a flock when the process ends, however it ends: no stale locks.
    file = (path / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def to_json(config: Any) -> dict[str, Any]:
    """Turn a config into what its JSON file holds."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_config(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Turn the content of a JSON file into a config."""
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return kind(**{**values, **lists})


def read_config(path: Path, experiment: str, kind: type[Config]) -> Config:
    """Read the config of a run of this experiment.

    Raises: ValueError: it is a run of another experiment.
    """
    values = read_json(path / "config.json")
    if values.pop("experiment", None) != experiment:
        raise ValueError(
            f"Expected a run of {experiment}, got {path}, which is of another experiment."
        )
    return to_config(kind, values)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a JSON-lines file."""
    with path.open() as file:
        for line in file:
            yield json.loads(line)


def environment() -> dict[str, Any]:
    """Describe what this process runs on: versions, device, machine, commit of the code."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "versions": versions,
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "machine": {"cpu": _cpu(), "cores": _cores(), "system": platform.system()},
        "commit": _commit(),
    }


def keep_environment(run: Run, environment: dict[str, Any]) -> None:
    """Write env.json; for a resumed run, compare with it instead, and say what differs."""
    if not (run.path / "env.json").exists():
        run.write("env.json", environment)
        return
    before = run.read("env.json")
    for part in ("versions", "device", "machine", "spread"):
        if before.get(part) != environment.get(part):
            print(
                f"{part} differ from those this run began with: its metrics may do so in the last "
                f"digits. Then: {before.get(part)}; now: {environment.get(part)}",
                file=sys.stderr,
            )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # What this process may use, not what the machine has.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
