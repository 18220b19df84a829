"""Run directories: runs/<experiment>/<stamp>/ with all that a figure or a resumed run needs.

config.json    the experiment's name and its config: what was requested
env.json       versions, devices, machine, commit: what it ran on
metrics.jsonl  one row per evaluation; depends on the two files above only
timing.jsonl   seconds per row of metrics.jsonl
checkpoints/   the latest states, written by `experiments.training.checkpoints`
summary.json   the results; a run that has it is finished
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

from experiments import checks

Config = TypeVar("Config")


class Damaged(ValueError):
    """A file of a run is truncated, or otherwise not what was written."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, locked until `with` ends: no other process writes to it meanwhile."""

    path: Path
    lock: TextIO = dataclasses.field(repr=False)

    def __enter__(self) -> "Run":
        """Return self."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self.lock.close()

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run, see `read_json`."""
        return read_json(self.path / name)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        with replacing(self.path / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a JSON-lines file and flush it to disk, whole or not at all.

        A truncated last row, such as a killed process leaves, is overwritten.

        Raises:
          OSError: such as a full disk; ValueError: a number that is not finite.
        """
        path, text = self.path / name, json.dumps(row, separators=(",", ":"), allow_nan=False)
        line = f"{text}\n".encode()
        with _naming(path), path.open("ab", buffering=0) as file:
            size = _size_of_whole_rows(path)
            try:
                file.truncate(size)
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise

    def rewind(self, name: str, step: int) -> None:
        """Drop the rows of a JSON-lines file after `step`, and a truncated last row.

        Rows that are damaged or out of order are dropped as well, with a message.
        """
        path = self.path / name
        if not path.exists():
            return
        lines, reached, damaged = [], -1, 0
        for line in path.read_bytes().splitlines(keepends=True):
            row_step = (read_row(line) or {}).get("step")
            if not isinstance(row_step, int) or row_step <= reached:
                damaged += line.endswith(b"\n")  # A row without one was cut off by a kill.
            elif row_step <= step:
                lines.append(line)
                reached = row_step
        if damaged:
            say(f"{path} has damaged rows: left out {damaged}")
        with replacing(path) as partial:
            partial.write_bytes(b"".join(lines))


def say(line: str) -> None:
    """Print a message for the user on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path to write to, which replaces `path` once all is written.

    Example:
      with replacing(folder / "summary.json") as partial:
          partial.write_text(...)

    Raises:
      OSError: such as a full disk, with the name of the path; `path` is then unchanged.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _naming(path):
        try:
            yield partial
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None]:
    """Add the path to system errors, which lack it when writing to an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _size_of_whole_rows(path: Path) -> int:
    """Return the number of bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"", b"\n"):
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def create(root: Path, experiment: str, config: Any) -> Run:
    """Create and lock a new run directory, named after the time in UTC.

    Raises:
      OSError: it cannot be written, such as on a full disk; no directory is left behind.
    """
    folder = root / experiment
    folder.mkdir(parents=True, exist_ok=True)
    while True:  # Another process may have taken the same microsecond.
        path = folder / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            run = stack.enter_context(Run(path, _lock(path)))
            run.write("config.json", {"experiment": experiment, **to_json(config)})
            stack.pop_all()  # Success: keep the directory and the lock.
            return run


def open_run(path: Path) -> Run:
    """Lock an existing run directory.

    Raises:
      ValueError: it is not a run directory, or another process has locked it.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"Expected a run directory, got {path}, which has no config.json.")
    try:
        return Run(path, _lock(path))
    except BlockingIOError:
        raise ValueError(f"Expected an idle run, but another process is using {path}.") from None


def finished(root: Path, experiment: str) -> list[Path]:
    """Find the finished runs of this experiment, newest first."""
    paths = sorted((root / experiment).glob("*/"), reverse=True)
    return [path for path in paths if (path / "summary.json").is_file()]


def newest_finished(root: Path, experiment: str, config: Any) -> Path | None:
    """Find the newest finished run of this experiment and config; None if there is none.

    Damaged runs are skipped with a message.
    """
    for path in finished(root, experiment):
        if _is_of(path, experiment, config) and _has_summary(path):
            return path
    return None


def newest_unfinished(root: Path, experiment: str, config: Any) -> Run:
    """Lock the newest run of this experiment and config that is neither finished nor running.

    Damaged and running ones are skipped with a message; a run with a damaged summary counts as
    unfinished.

    Raises:
      ValueError: there is none.
    """
    others = []
    for path in sorted((root / experiment).glob("*/"), reverse=True):
        if not (path / "config.json").is_file() or _has_summary(path):
            continue
        is_wanted = _is_of(path, experiment, config)
        if not is_wanted:
            others += [str(path)] if is_wanted is False else []
            continue
        try:
            return Run(path, _lock(path))
        except BlockingIOError:
            say(f"{path} is skipped: another process is using it")
    hint = f" There is {others[0]} with other options: pass it to --resume." if others else ""
    raise ValueError(
        f"Expected an unfinished run of {experiment} with these options in {root}, got none.{hint}"
    )


def _is_of(path: Path, experiment: str, config: Any) -> bool | None:
    """Tell whether a run has this config; None, with a message, if its config is damaged."""
    try:
        if read_json(path / "config.json") == {"experiment": experiment, **to_json(config)}:
            return True
        read_config(path, experiment, type(config))
    except (ValueError, OSError) as error:  # Damaged, or in the folder of another experiment.
        say(f"{path} is skipped: {error}")
        return None
    return False


def _has_summary(path: Path) -> bool:
    """Tell whether a run has a summary that is not damaged."""
    try:
        read_json(path / "summary.json")
    except FileNotFoundError:
        return False
    except (Damaged, OSError) as error:
        say(f"{path} counts as unfinished: {error}")
        return False
    return True


def _lock(path: Path) -> TextIO:
    # The kernel releases a flock when the process ends, however it ends: no stale locks.
    file = (path / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def to_json(config: Any) -> dict[str, Any]:
    """Convert a config to the content of its JSON file."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_config(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Convert the content of a JSON file to a config."""
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return kind(**{**values, **lists})


def read_config(path: Path, experiment: str, kind: type[Config]) -> Config:
    """Read the config of a run of this experiment.

    Raises:
      Damaged: it is incomplete, or its options are not those of this version.
      ValueError: it is a run of another experiment.
    """
    values = read_json(path / "config.json")
    if values.pop("experiment", None) != experiment:
        raise ValueError(
            f"Expected a run of {experiment}, got {path}, which is of another experiment."
        )
    try:
        config = to_config(kind, values)
        checks.check_types(config)
    except (TypeError, ValueError, RecursionError) as error:
        raise Damaged(
            f"{path / 'config.json'} is damaged or from another version: {error}"
        ) from None
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
      Damaged: it is empty, truncated, or otherwise not what was written.
    """
    content = path.read_bytes()
    try:
        value = json.loads(content.decode())
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # Not UTF-8, or not JSON.
        reason = str(error) if content else "it is empty"
    else:
        if isinstance(value, dict):
            return value
        reason = f"expected an object, got a {type(value).__name__}"
    raise Damaged(f"{path} is damaged: {reason}")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a JSON-lines file.

    Raises:
      Damaged: names the first incomplete or invalid line.
    """
    for i, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        row = read_row(line)
        if row is None:
            raise Damaged(
                f"{path} is damaged: line {i + 1} is not a complete row of finite numbers"
            )
        yield row


def read_row(line: bytes) -> dict[str, Any] | None:
    """Read one line of a JSON-lines file; None if it is damaged or has a non-finite number."""

    def refuse(constant: str) -> None:
        raise ValueError(f"Expected a finite number, got {constant}.")

    try:
        row = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None


def keep_environment(run: Run, environment: dict[str, Any]) -> None:
    """Write env.json; for a resumed run, compare with it instead and print what differs."""
    path = run.path / "env.json"
    try:
        before = read_json(path)
        lacking = sorted(environment.keys() - {"spread"} - before.keys())
        if lacking:
            raise Damaged(f"{path} is damaged: it lacks {', '.join(lacking)}")
    except FileNotFoundError:
        run.write("env.json", environment)
        return
    except Damaged as error:
        say(f"{error}; the run's original environment is unknown: writing the current one")
        run.write("env.json", environment)
        return
    for part in ("versions", "device", "machine", "spread"):
        if before.get(part) != environment.get(part):
            say(
                f"{part} changed since this run started: metrics may differ in the last digits. "
                f"Then: {before.get(part)}; now: {environment.get(part)}"
            )
