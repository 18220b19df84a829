"""Checkpoints of a run: written by orbax, read back only if they are whole and the run's own.

Orbax writes a checkpoint under another name and renames it. Beside its files goes a manifest with
the SHA-256 of each, of the run's config and of its metrics.jsonl up to then; without a manifest
that fits, a checkpoint is refused before a byte of it is decoded, and the one before it is used: it
stands for the rows as well, of which none may be lost. What the state is not, such as where an
iterator of examples is, stands in a JSON file beside it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.run_dir import Run, read_json, replacing, say

KEPT = 2
MANIFEST = "manifest.json"
BESIDE = "beside.json"
ROWS = "metrics.jsonl"
LATE_SECONDS = 0.5  # Orbax's other threads end so much after the first that failed.


def check_path(path: Path) -> None:
    """Refuse the path of a run whose checkpoints orbax could not write.

    Its writers in C++ take UTF-8. Where the locale has not, or the path itself is not UTF-8, Python
    holds letters beyond ASCII as bytes that have no place there.

    Args:
      path: of the run, or of the folder of all runs.

    Raises:
      ValueError: says how to mend it.
    """
    whole = path.absolute()
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(whole).decode(errors="replace")
        mend = "Pass another --runs" if "\N{REPLACEMENT CHARACTER}" in shown else "Set PYTHONUTF8=1"
        raise ValueError(
            f"Expected a path that can be written in UTF-8, for the checkpoints, got {shown}. "
            f"{mend}."
        ) from None


class Checkpoints:
    """The latest states of a run: `with Checkpoints(run) as checkpoints: checkpoints.save(...)`."""

    def __init__(self, run: Run, *, asynchronous: bool = False):
        """Open checkpoints/ of the run; set aside what cannot be used.

        Args:
          run: whose states they are.
          asynchronous: `save` returns once the state is copied, and a thread writes it. One that
            was not written to its end when the process was killed is refused like a damaged one.
        """
        self.folder = (run.path / "checkpoints").absolute()
        self.owner, self.rows = _sha256(run.path / "config.json"), run.path / ROWS
        self._set_aside_damaged()
        here = jax.process_index()
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=asynchronous,
                create=False,  # Orbax creates no folder where a part of the processes writes.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=here, active_processes={here}
                ),
            ),
        )
        self.thread = ThreadPoolExecutor(1) if asynchronous else None
        self.writing: Future[None] | None = None

    def save(self, step: int, state: Any, beside: Mapping[str, Any] | None = None) -> None:
        """Write the state after `step`, whole or not at all, and forget the oldest.

        Args:
          step: number of steps taken.
          state: pytree of arrays.
          beside: what JSON can hold and `beside` gives back.

        Raises:
          OSError: as of a full disk; where writing is asynchronous, of the state before as well.
        """
        self.finish()
        folder = self.folder / str(step)
        rows = self.rows.read_bytes() if self.rows.exists() else b""
        # As it is now: the thread writes it while training goes on and changes it.
        text = None if beside is None else json.dumps(beside) + "\n"
        with _errors_of_the_system(folder):
            self.manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)))
        if self.thread is None:
            self._complete(folder, rows, text)
        else:
            self.writing = self.thread.submit(self._complete, folder, rows, text)

    def finish(self) -> None:
        """Wait until what is being written is written.

        Raises:
          OSError: it could not be.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def beside(self, step: int) -> dict[str, Any]:
        """Read what was written beside a state that `newest` gave."""
        return read_json(self.folder / str(step) / BESIDE)

    def _complete(self, folder: Path, rows: bytes, beside: str | None) -> None:
        """Wait for orbax, and write what stands beside its files; the manifest comes last."""
        with _errors_of_the_system(folder):
            self.manager.wait_until_finished()
        if beside is not None:
            with replacing(folder / BESIDE) as partial:
                partial.write_text(beside, encoding="utf-8")
        manifest = {
            "step": int(folder.name),
            "run": self.owner,
            "rows": {"bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()},
            "files": dict(_digests(folder)),
        }
        with replacing(folder / MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    def newest(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest step and its state, of the shapes of `like`; None where there is none.

        One with other arrays than `like`, as of another version, is set aside, and said.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
        steps = sorted(self.manager.all_steps())
        while steps:
            step = steps.pop()
            try:
                state = self.manager.restore(step, args=ocp.args.StandardRestore(shapes))
                _check_shapes(state, shapes)
                return step, state
            except (KeyError, TypeError, ValueError) as error:
                why = " ".join(str(error).split())[:200]
                reason = f"it has other arrays than this version takes: {why}"
                self._set_aside(self.folder / str(step), reason, steps)
                self.manager.reload()
        return None

    def _set_aside_damaged(self) -> None:
        """Set aside what is damaged, or another run's."""
        self.folder.mkdir(exist_ok=True)
        paths = [path for path in self.folder.iterdir() if path.name.isdigit()]
        reasons = {path: self._reason(path) for path in paths}
        good = [int(path.name) for path, reason in reasons.items() if not reason]
        for path, reason in reasons.items():
            if reason:
                self._set_aside(path, reason, good)

    def _set_aside(self, path: Path, reason: str, good: list[int]) -> None:
        """Move a checkpoint that cannot be used to `refused`, and say so; `good` steps are left."""
        refused = self.folder.with_name("refused")
        refused.mkdir(exist_ok=True)
        taken = sum(1 for other in refused.iterdir() if other.name.startswith(path.name))
        path.rename(refused / f"{path.name}.{taken}")
        earlier = f"that of step {max(good)}" if good else "the beginning"
        say(
            f"checkpoint {path} is refused: {reason}. It is now in {refused}; the run goes on "
            f"from {earlier}."
        )

    def _reason(self, path: Path) -> str | None:
        """Say why a checkpoint cannot be used; None if it can."""
        try:
            manifest = read_json(path / MANIFEST)
            owner, step, files = (manifest[key] for key in ("run", "step", "files"))
            rows, digest = manifest["rows"]["bytes"], manifest["rows"]["sha256"]
            before = self.rows.read_bytes()[:rows] if self.rows.exists() else b""
            files.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"it has no readable {MANIFEST}, as if its writing was interrupted"
        if owner != self.owner or str(step) != path.name:
            return f"it is step {step} of a run with another config"
        digests = dict(_digests(path))
        for name in sorted(files.keys() | digests.keys()):
            if files.get(name) != digests.get(name):
                what = (
                    "changed" if name in files.keys() & digests.keys() else "missing or not its own"
                )
                return f"its file {name} is {what}"
        if hashlib.sha256(before).hexdigest() != digest:
            return f"{self.rows} up to it is not as it was: rows are missing or changed"
        return None

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for what is being written, and close orbax's manager."""
        try:
            if error is None:
                self.finish()
        finally:
            if self.thread is not None:
                self.thread.shutdown()
            self.manager.close()


def _check_shapes(state: Any, wanted: Any) -> None:
    """Refuse arrays of other shapes than were asked for: orbax returns what it finds.

    Raises:
      ValueError: names the first that differs.
    """
    for (path, shape), leaf in zip(
        jax.tree.leaves_with_path(wanted), jax.tree.leaves(state), strict=True
    ):
        if leaf.shape != shape.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} of shape {leaf.shape}, not {shape.shape}")


@contextlib.contextmanager
def _errors_of_the_system(path: Path) -> Generator[None]:
    """Turn what orbax makes of an error of the system, as of a full disk, into OSError again.

    Its writers in C++ raise ValueError, with the system's number at the end. What its threads log
    then, and what those say that come too late, is of no use to who has a full disk.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)

    def print_others(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    sys.unraisablehook = print_others
    late = hook
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except ValueError as error:
        match = re.search(r"os_error_code='(\d+)'", str(error))
        if not match:
            raise
        time.sleep(LATE_SECONDS)
        late = print_others  # On a busy machine they come later still.
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        sys.unraisablehook = late
        logger.setLevel(level)


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Give name and SHA-256 of every file below a folder, but the manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, f"{MANIFEST}.partial"):
            yield str(path.relative_to(folder)), _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
