"""A resumable training loop with evaluations and checkpoints.

Steps run in chunks, as jitted `lax.scan`s with the data set on the device and all seeds in one
`vmap`, on one device or many, on one host or several. Each chunk is followed by an evaluation and a
row of metrics.jsonl, every few chunks by a checkpoint. A run that is stopped at any moment resumes
from its last checkpoint and ends with exactly the same metrics. A chunk of much work is cut into
pieces of one call each, so that a signal never waits for long.
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

# Maximum work of one call, in weights times examples: half a second on two cores. Pieces this
# large are as fast as one long call: the usual 100 steps of `mnist_mlp` are a single piece.
WORK = 4_000_000_000
WORK_OF_ANY_STEP = 2_000_000  # The part of a small step's time that does not depend on weights.


@dataclass(frozen=True)
class Execution:
    """How a run is executed: nothing here changes its results, except for rounding."""

    devices: Devices = field(default_factory=Devices)
    checkpoint_every: int = 10  # In chunks.
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
    """Train from `state`, or from the run's last checkpoint, up to `steps`.

    Args:
      run: the run directory, for metrics.jsonl, timing.jsonl and checkpoints/; None on hosts other
        than the first.
      state: pytree of arrays with a leading axis of `seeds`, before the first step.
      step: `(state, batch, share) -> state` for one seed, to be traced.
      evaluate: state of all seeds -> content of a row of metrics.jsonl.
      examples: pytree of arrays with a leading axis of examples; a batch is rows of each.
      seeds: number of seeds; the batches of each are `sampling.batch_indices`.
      steps: number of training steps.
      batch_size: examples in a batch.
      evaluate_every: steps between evaluations, also the length of a chunk.
      execution: devices, checkpoint interval, and handling of signals.
      note: row -> a few words for the progress bar.

    Returns:
      state after the last step.

    Raises:
      Stopped: by a signal, after writing a checkpoint of the last evaluation.
      FloatingPointError: training diverged.
    """
    devices, num_examples = execution.devices, len(jax.tree.leaves(examples)[0])
    run_steps = devices.compile(step, batch_size)
    longest = piece_length(evaluate_every, batch_size, state)
    with contextlib.ExitStack() as stack:
        # ---- Where to begin -------------------------------------------------------------------
        checkpoints = stack.enter_context(Checkpoints(run)) if run else None
        restored = checkpoints.newest(state) if checkpoints else None
        if run:
            for name in ("metrics.jsonl", "timing.jsonl"):
                run.rewind(name, restored[0] if restored else -1)
            if not restored:
                _append_metrics(run, {"step": 0, **evaluate(state)})
        done = hosts.broadcast_from_first(restored[0] if restored else 0)
        state = hosts.arrays_of_first(restored[1] if restored else state)
        state, examples = devices.replicate(state), devices.replicate(examples)
        evaluated, saved, said = devices.one(state), done, ""

        # ---- Chunk by chunk -------------------------------------------------------------------
        progress = stack.enter_context(Progress(steps, done=done))
        stack.enter_context(execution.graceful_exit.deferred())
        while done < steps:
            began = time.perf_counter()
            until = min(done + evaluate_every, steps)
            for first in range(done, until, longest):
                last = min(first + longest, until)
                batches = [
                    sampling.batch_indices(seed, first, last, batch_size, num_examples)
                    for seed in range(seeds)
                ]
                state = run_steps(state, examples, np.stack(batches, axis=1))
                here = jax.block_until_ready(devices.one(state))
                signal = hosts.largest(execution.graceful_exit.received)
                if last == until:
                    break
                progress.advance(last - first, said)
                if signal:  # The steps since the last evaluation are repeated after resuming.
                    if checkpoints and saved < done:
                        checkpoints.save(done, evaluated)
                    raise Stopped(signal)
            trained = time.perf_counter()

            chunk = math.ceil(until / evaluate_every)
            if run and checkpoints:
                row = {"step": until, **evaluate(here)}
                seconds = {"train": trained - began, "evaluate": time.perf_counter() - trained}
                timing = {f"{name}_seconds": round(took, 4) for name, took in seconds.items()}
                _append_metrics(run, row)
                run.append("timing.jsonl", {"step": until, **timing})
                # Written last: resuming drops the rows after a checkpoint and writes them again.
                if signal or until == steps or chunk % execution.checkpoint_every == 0:
                    checkpoints.save(until, here)
                    saved = until
                said = note(row)
            progress.advance(until - first, said)
            done, evaluated = until, here
            if signal:
                raise Stopped(signal)
    return devices.one(state)


def piece_length(evaluate_every: int, batch_size: int, state: Any) -> int:
    """Choose the number of steps per call: as many as `WORK` allows, with few distinct lengths.

    It does not depend on the devices or their speed, because each length is compiled to its own
    program, which may round differently.

    Args:
      state: the state of all seeds.

    Example:
      >>> import numpy as np
      >>> from experiments.training.loop import piece_length
      >>> [piece_length(every, 60, np.zeros(600_000)) for every in (100, 1000, 1001, 1009)]
      [100, 100, 91, 105]
    """
    weights = sum(np.size(leaf) for leaf in jax.tree.leaves(state))
    longest = WORK // (batch_size * weights + WORK_OF_ANY_STEP)
    longest = max(1, min(longest, evaluate_every))
    divisors = (n for n in range(longest, longest // 2, -1) if evaluate_every % n == 0)
    return next(divisors, longest)


def _append_metrics(run: Run, row: dict[str, Any]) -> None:
    try:
        run.append("metrics.jsonl", row)
    except ValueError:
        raise FloatingPointError(
            f"Expected finite numbers at step {row['step']}, got NaN or infinity: training "
            "diverged. Start another run with a lower learning rate or smaller weights."
        ) from None
