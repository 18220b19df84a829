"""Checkpoints of a run: written by orbax, read back only if they are whole and the run's own.

Orbax writes a checkpoint under another name and renames it. Beside its files goes a manifest with
the SHA-256 of each and of the run's config; without a manifest that fits, a checkpoint is refused
before a byte of it is decoded, and the one before it is used.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.run_dir import Run

KEPT = 2
MANIFEST = "manifest.json"


class Checkpoints:
    """The latest states of a run: `with Checkpoints(run) as checkpoints: checkpoints.save(...)`."""

    def __init__(self, run: Run):
        """Open checkpoints/ of the run; set aside what cannot be used."""
        self.folder = (run.path / "checkpoints").absolute()
        self.owner = _sha256(run.path / "config.json")
        self._set_aside(run.path / "refused")
        here = jax.process_index()
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                create=False,  # Orbax creates no folder where a part of the processes writes.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=here, active_processes={here}
                ),
            ),
        )

    def save(self, step: int, state: Any) -> None:
        """Write the state after `step`, whole or not at all, and forget the oldest."""
        self.manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)))
        folder = self.folder / str(step)
        manifest = {"step": step, "run": self.owner, "files": dict(_digests(folder))}
        partial = self.folder / f"{step}.{MANIFEST}.partial"
        partial.write_text(json.dumps(manifest, indent=2) + "\n")
        partial.replace(folder / MANIFEST)

    def newest(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest step and its state, of the shapes of `like`; None where there is none."""
        step = self.manager.latest_step()
        if step is None:
            return None
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
        return step, self.manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def _set_aside(self, refused: Path) -> None:
        """Move what is damaged, or another run's, to `refused`, and say so."""
        self.folder.mkdir(exist_ok=True)
        found = [path for path in self.folder.iterdir() if path.name.isdigit()]
        reasons = {path: self._reason(path) for path in found}
        good = [int(path.name) for path, reason in reasons.items() if not reason]
        for path, reason in reasons.items():
            if not reason:
                continue
            refused.mkdir(exist_ok=True)
            taken = sum(1 for other in refused.iterdir() if other.name.startswith(path.name))
            path.rename(refused / f"{path.name}.{taken}")
            earlier = f"that of step {max(good)}" if good else "the beginning"
            print(
                f"checkpoint {path} is refused: {reason}. It is now in {refused}; the run goes on "
                f"from {earlier}.",
                file=sys.stderr,
            )

    def _reason(self, path: Path) -> str | None:
        """Say why a checkpoint cannot be used; None if it can."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            owner, step, files = (manifest[key] for key in ("run", "step", "files"))
        except (OSError, ValueError, KeyError, TypeError):
            return f"it has no readable {MANIFEST}, as if its writing was interrupted"
        if owner != self.owner or str(step) != path.name:
            return f"it is step {step} of a run with another config"
        found = dict(_digests(path))
        for name in sorted(files.keys() | found.keys()):
            if files.get(name) != found.get(name):
                what = (
                    "changed" if name in files.keys() & found.keys() else "missing or not its own"
                )
                return f"its file {name} is {what}"
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
        """Close orbax's manager."""
        self.manager.close()


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Give name and SHA-256 of every file below a folder, but the manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield str(path.relative_to(folder)), _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
