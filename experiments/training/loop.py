"""The training loop of every experiment.

Chunks of steps, each one jitted `lax.scan` with the data set on the device, all seeds in one
`vmap`, on one device or many, on one host or several. After each chunk come an evaluation and a row
of metrics.jsonl, after every few a checkpoint; a run that was stopped at any moment goes on from
its last checkpoint and ends with the very same metrics.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from experiments import sampling
from experiments.run_dir import Run
from experiments.training import hosts
from experiments.training.checkpoints import Checkpoints
from experiments.training.devices import Devices, Step
from experiments.training.progress import Progress
from experiments.training.signals import GracefulExit, Stopped


@dataclass(frozen=True)
class Execution:
    """How a run is carried out: nothing here changes its results, but for rounding."""

    devices: Devices = field(default_factory=Devices)
    checkpoint_every: int = 10  # Chunks.
    graceful_exit: GracefulExit = field(default_factory=GracefulExit)


def train(
    run: Run | None,
    state: Any,
    *,
    step: Step,
    evaluate: Callable[[Any], dict[str, Any]],
    examples: Any,
    seeds: int,
    steps: int,
    batch_size: int,
    evaluate_every: int,
    execution: Execution,
    note: Callable[[dict[str, Any]], str] = lambda row: "",
) -> Any:
    """Train from `state`, or from the run's last checkpoint, to `steps`.

    Args:
      run: the run directory, which gets metrics.jsonl, timing.jsonl and checkpoints/; None on
        hosts other than the first.
      state: pytree of arrays with a leading axis of `seeds`, before the first step.
      step: `(state, batch, share) -> state` for one seed, to be traced.
      evaluate: state of all seeds -> what goes into a row of metrics.jsonl.
      examples: pytree of arrays with a leading axis of examples; a batch is rows of each.
      seeds: number of seeds; the batches of each are `sampling.batch_indices`.
      steps: number of training steps.
      batch_size: examples in a batch.
      evaluate_every: steps between evaluations, also the length of a chunk.
      execution: on which devices, how often to write a checkpoint, when to stop.
      note: row -> a few words for the progress bar.

    Returns: state after the last step.
    Raises: Stopped: by a signal, after a checkpoint.
    """
    devices, num_examples = execution.devices, len(jax.tree.leaves(examples)[0])
    run_chunk = devices.compile(step, batch_size)
    with contextlib.ExitStack() as stack:
        # ---- Where to begin -------------------------------------------------------------------
        checkpoints = stack.enter_context(Checkpoints(run)) if run else None
        found = checkpoints.newest(state) if checkpoints else None
        if run:
            for name in ("metrics.jsonl", "timing.jsonl"):
                run.rewind(name, found[0] if found else -1)
            if not found:
                run.append("metrics.jsonl", {"step": 0, **evaluate(state)})
        done = hosts.broadcast_from_first(found[0] if found else 0)
        state = hosts.arrays_of_first(found[1] if found else state)
        state, examples = devices.replicate(state), devices.replicate(examples)

        # ---- Chunk by chunk -------------------------------------------------------------------
        progress = stack.enter_context(Progress(steps, done=done))
        stack.enter_context(execution.graceful_exit.deferred())
        while done < steps:
            began = time.perf_counter()
            until = min(done + evaluate_every, steps)
            drawn = [
                sampling.batch_indices(seed, done, until, batch_size, num_examples)
                for seed in range(seeds)
            ]
            state = run_chunk(state, examples, np.stack(drawn, axis=1))
            here = jax.block_until_ready(devices.one(state))
            trained = time.perf_counter()

            chunk = math.ceil(until / evaluate_every)
            signal = hosts.largest(execution.graceful_exit.received)
            said = ""
            if run and checkpoints:
                row = {"step": until, **evaluate(here)}
                seconds = {"train": trained - began, "evaluate": time.perf_counter() - trained}
                timing = {f"{name}_seconds": round(took, 4) for name, took in seconds.items()}
                run.append("metrics.jsonl", row)
                run.append("timing.jsonl", {"step": until, **timing})
                # The checkpoint comes last: rows after it are forgotten and written again.
                if signal or until == steps or chunk % execution.checkpoint_every == 0:
                    checkpoints.save(until, here)
                said = note(row)
            progress.advance(until - done, said)
            done = until
            if signal:
                raise Stopped(signal)
    return devices.one(state)
