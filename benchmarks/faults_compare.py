"""Inspect what a run of `benchmarks/faults.py` left behind, and compare two runs."""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import run_dir
from experiments.studies.mnist_mlp import measure as mnist_mlp
from experiments.studies.mnist_mlp.config import Config
from experiments.tasks import data
from experiments.training.checkpoints import MANIFEST, Checkpoints

# ---- The state of a run --------------------------------------------------------------------------


class Found(NamedTuple):
    """The run in a folder: its checkpoints with a manifest, and what else is next to them."""

    path: Path | None = None
    finished: bool = False
    whole: Sequence[int] = ()
    unsigned: Sequence[int] = ()  # In place, but without a manifest.
    others: Sequence[str] = ()

    @property
    def checkpoint(self) -> int:
        """The step to resume from."""
        return max(self.whole, default=0)

    @property
    def what(self) -> str:
        """The state of the run in a few words."""
        if self.path is None or self.finished:
            return "finished" if self.finished else "no run yet"
        seen = [name for name, is_seen in SIGHTS.items() if is_seen(self)]
        return seen[0] if seen else "a checkpoint" if self.whole else "no checkpoint"


# States in which a run can be killed, the shortest-lived first.
SIGHTS: dict[str, Callable[[Found], bool]] = {
    "deleting the oldest": lambda found: any(step < found.checkpoint for step in found.unsigned),
    "no manifest yet": lambda found: any(step > found.checkpoint for step in found.unsigned),
    "writing a checkpoint": lambda found: bool(found.others),
    "two checkpoints": lambda found: len(found.whole) > 1,
}


def look(folder: Path) -> Found:
    """Inspect the run in a folder, whose files may vanish meanwhile if it is still running."""
    # A run killed before it wrote config.json cannot be resumed; the next one gets a new folder.
    paths = sorted(path.parent for path in folder.glob("mnist_mlp/*/config.json"))
    if not paths:
        return Found()
    checkpoints, names = paths[-1] / "checkpoints", []
    with contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(checkpoints))
    steps = {int(name) for name in names if name.isdigit()}
    whole = {step for step in steps if (checkpoints / str(step) / MANIFEST).exists()}
    others = [name for name in names if not name.isdigit()]
    is_finished = (paths[-1] / "summary.json").exists()
    return Found(paths[-1], is_finished, sorted(whole), sorted(steps - whole), others)


def describe(found: Found) -> dict[str, Any]:
    """Return the state of a run, and how many steps in metrics.jsonl will be repeated."""
    metrics = found.path / "metrics.jsonl" if found.path else None
    whole = metrics.read_text().split("\n")[:-1] if metrics and metrics.exists() else []
    row = json.loads(whole[-1])["step"] if whole else 0
    again = 0 if found.finished else row - found.checkpoint
    return {"what": found.what, "checkpoint": found.checkpoint, "row": row, "again": again}


# ---- Identical or not ----------------------------------------------------------------------------


def differences(want: Path, got: Path) -> list[str]:
    """List what is not bit for bit the same in two finished runs."""
    sides = [{path.name for path in run.iterdir()} - {"refused"} for run in (want, got)]
    found = [f"{name} on one side only" for name in sorted(sides[0] ^ sides[1])]
    found += [f"checkpoints/{name} left over" for name in look(got.parents[1]).others]
    compare: dict[str, Callable[[Path], Any]] = {
        "summary.json": results,
        "timing.jsonl": lambda path: [row["step"] for row in run_dir.read_rows(path)],
        "checkpoints": last_state,
    }
    for name in sorted(sides[0] & sides[1] - {"env.json", "lock"}):
        content = compare.get(name, Path.read_bytes)
        found += [] if content(want / name) == content(got / name) else [name]
    return found


def results(path: Path) -> dict[str, Any]:
    """Read a summary without the times and the commit, which may differ between runs."""
    summary = run_dir.read_json(path)
    del summary["seconds"], summary["environment"]["commit"]
    return summary


def last_state(path: Path) -> Any:
    """Restore the last checkpoint of a run: its step, and name, dtype and bytes of each leaf."""
    config = run_dir.read_config(path.parent, "mnist_mlp", Config)
    features = data.load(config.dataset).train_images[0].size
    keys = jax.random.split(jax.random.key(0), config.seeds)
    like = jax.eval_shape(jax.vmap(lambda key: mnist_mlp.init(config, key, features)), keys)
    with run_dir.open_run(path.parent) as run, Checkpoints(run) as checkpoints:
        step, state = checkpoints.newest(like) or (None, {})
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, state))
    return step, [(str(name), str(leaf.dtype), leaf.tobytes()) for name, leaf in leaves]
