"""Checkpoints of a run: written by orbax, read back only if they are complete and of this run.

Orbax writes a checkpoint under a temporary name and renames it. A manifest beside its files holds
the SHA-256 of each file, of the run's config, and of metrics.jsonl up to that step. A checkpoint
without a matching manifest is refused before any of it is decoded, and the previous one is used.
The rows are checked as well, because a resumed run appends to them and none may be missing.
Anything besides the state, such as the position of a data iterator, is in a JSON file beside it.
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
LATE_SECONDS = 0.5  # After one of orbax's threads fails, the others take about this long to end.


def check_path(path: Path) -> None:
    """Refuse a run directory in which orbax could not write checkpoints.

    Orbax's C++ writers require UTF-8. If the locale or the path itself is not UTF-8, Python
    represents non-ASCII characters by surrogates, which cannot be encoded.

    Args:
      path: the directory of the run, or of all runs.

    Raises:
      ValueError: says how to fix it.
    """
    whole = path.absolute()
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(whole).decode(errors="replace")
        mend = "Pass another --runs" if "\N{REPLACEMENT CHARACTER}" in shown else "Set PYTHONUTF8=1"
        raise ValueError(
            f"Expected a UTF-8 path for the checkpoints, got {shown}. {mend}."
        ) from None


class Checkpoints:
    """The latest states of a run: `with Checkpoints(run) as checkpoints: checkpoints.save(...)`."""

    def __init__(self, run: Run, *, asynchronous: bool = False):
        """Open checkpoints/ of the run; set aside checkpoints that cannot be used.

        Args:
          run: the run that the checkpoints belong to.
          asynchronous: `save` returns once the state is copied, and a thread writes it. A
            checkpoint that was incomplete when the process was killed is refused as damaged.
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
                create=False,  # Orbax does not support True with `active_processes`.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=here, active_processes={here}
                ),
            ),
        )
        self.thread = ThreadPoolExecutor(1) if asynchronous else None
        self.writing: Future[None] | None = None

    def save(self, step: int, state: Any, beside: Mapping[str, Any] | None = None) -> None:
        """Write the state after `step`, whole or not at all, and delete the oldest checkpoint.

        Args:
          step: number of steps taken.
          state: pytree of arrays.
          beside: anything that JSON can hold, to be read by the method `beside`.

        Raises:
          OSError: such as a full disk; if asynchronous, also from writing the previous state.
        """
        self.finish()
        folder = self.folder / str(step)
        rows = self.rows.read_bytes() if self.rows.exists() else b""
        # Serialized now: training continues and changes it while the thread writes.
        text = None if beside is None else json.dumps(beside) + "\n"
        with _errors_of_the_system(folder):
            self.manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)))
        if self.thread is None:
            self._complete(folder, rows, text)
        else:
            self.writing = self.thread.submit(self._complete, folder, rows, text)

    def finish(self) -> None:
        """Wait until the checkpoint being written is complete.

        Raises:
          OSError: it could not be written.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def beside(self, step: int) -> dict[str, Any]:
        """Read what was saved beside the state of a step that `newest` returned."""
        return read_json(self.folder / str(step) / BESIDE)

    def _complete(self, folder: Path, rows: bytes, beside: str | None) -> None:
        """Wait for orbax, then write the files beside its own; the manifest comes last."""
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
        """Read the newest step and its state, of the shapes of `like`; None if there is none.

        A checkpoint whose arrays differ from `like`, such as one of another version, is set aside
        with a message.
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
                reason = f"it has other arrays than this version expects: {why}"
                self._set_aside(self.folder / str(step), reason, steps)
                self.manager.reload()
        return None

    def _set_aside_damaged(self) -> None:
        """Set aside checkpoints that are damaged or belong to another run."""
        self.folder.mkdir(exist_ok=True)
        paths = [path for path in self.folder.iterdir() if path.name.isdigit()]
        reasons = {path: self._reason(path) for path in paths}
        good = [int(path.name) for path, reason in reasons.items() if not reason]
        for path, reason in reasons.items():
            if reason:
                self._set_aside(path, reason, good)

    def _set_aside(self, path: Path, reason: str, good: list[int]) -> None:
        """Move an unusable checkpoint to `refused`, with a message; `good` are the steps left."""
        refused = self.folder.with_name("refused")
        refused.mkdir(exist_ok=True)
        taken = sum(1 for other in refused.iterdir() if other.name.startswith(path.name))
        path.rename(refused / f"{path.name}.{taken}")
        earlier = f"that of step {max(good)}" if good else "the beginning"
        say(
            f"checkpoint {path} is refused: {reason}. It is now in {refused}; the run "
            f"continues from {earlier}."
        )

    def _reason(self, path: Path) -> str | None:
        """Return why a checkpoint cannot be used; None if it can."""
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
            return f"rows of {self.rows} up to it are missing or changed"
        return None

    def __enter__(self) -> "Checkpoints":
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the checkpoint being written, and close orbax's manager."""
        try:
            if error is None:
                self.finish()
        finally:
            if self.thread is not None:
                self.thread.shutdown()
            self.manager.close()


def _check_shapes(state: Any, wanted: Any) -> None:
    """Refuse arrays of the wrong shape, which orbax returns without an error.

    Raises:
      ValueError: names the first one that differs.
    """
    for (path, shape), leaf in zip(
        jax.tree.leaves_with_path(wanted), jax.tree.leaves(state), strict=True
    ):
        if leaf.shape != shape.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} of shape {leaf.shape}, not {shape.shape}")


@contextlib.contextmanager
def _errors_of_the_system(path: Path) -> Generator[None]:
    """Turn orbax's version of a system error, such as a full disk, back into an OSError.

    Its C++ writers raise a ValueError that ends with the system's error number. What its threads
    log at that point or later does not help a user whose disk is full, so it is suppressed.
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
        late = print_others  # On a busy machine, some errors come even later.
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        sys.unraisablehook = late
        logger.setLevel(level)


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and SHA-256 of every file below a folder except the manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, f"{MANIFEST}.partial"):
            yield str(path.relative_to(folder)), _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
