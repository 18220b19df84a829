"""The training loop of every experiment.

One jitted `lax.scan` per chunk of steps, the data set on the device, all seeds in one `vmap`.
After each chunk come an evaluation, a row of metrics.jsonl and a checkpoint; a run that was stopped
at any moment goes on from its last checkpoint and ends with the very same metrics.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Int32

from experiments.progress import Progress
from experiments.record import Run

Step = Callable[[Any, Any], Any]


def train(
    run: Run,
    state: Any,
    *,
    step: Step,
    evaluate: Callable[[Any], dict[str, Any]],
    examples: Any,
    seeds: int,
    steps: int,
    batch_size: int,
    evaluate_every: int,
    note: Callable[[dict[str, Any]], str] = lambda row: "",
) -> Any:
    """Train from `state`, or from the run's last checkpoint, to `steps`.

    Args:
      run: the run directory, which gets metrics.jsonl, timing.jsonl and checkpoints/.
      state: pytree of arrays with a leading axis of `seeds`, before the first step.
      step: `(state, batch) -> state` for one seed, to be traced.
      evaluate: state of all seeds -> what goes into a row of metrics.jsonl.
      examples: pytree of arrays with a leading axis of examples; a batch is rows of each.
      seeds: number of seeds; seed i draws its batches from generator i.
      steps: number of training steps.
      batch_size: examples in a batch.
      evaluate_every: steps between evaluations, also the length of a chunk.
      note: row -> a few words for the progress bar.

    Returns: state after the last step.
    """
    num_examples = len(jax.tree.leaves(examples)[0])
    examples = jax.device_put(examples)
    run_chunk = jax.jit(functools.partial(scan_steps, step))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    with ocp.CheckpointManager((run.path / "checkpoints").absolute(), options=options) as saved:
        # ---- Where to begin -------------------------------------------------------------------
        done = saved.latest_step()
        for name in ("metrics.jsonl", "timing.jsonl"):
            run.rewind(name, -1 if done is None else done)
        if done is None:
            done = 0
            run.append("metrics.jsonl", {"step": 0, **evaluate(state)})
        else:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = saved.restore(done, args=ocp.args.StandardRestore(like))

        # ---- Chunk by chunk -------------------------------------------------------------------
        with Progress(steps, done=done) as progress:
            while done < steps:
                began = time.perf_counter()
                until = min(done + evaluate_every, steps)
                drawn = [
                    batch_indices(seed, done, until, batch_size, num_examples)
                    for seed in range(seeds)
                ]
                state = run_chunk(state, examples, np.stack(drawn, axis=1))
                jax.block_until_ready(state)
                trained = time.perf_counter()
                row = {"step": until, **evaluate(state)}
                evaluated = time.perf_counter()

                # The checkpoint comes last: rows after it are forgotten and written again.
                run.append("metrics.jsonl", row)
                run.append(
                    "timing.jsonl",
                    {
                        "step": until,
                        "train_seconds": round(trained - began, 4),
                        "evaluate_seconds": round(evaluated - trained, 4),
                    },
                )
                saved.save(until, args=ocp.args.StandardSave(state))
                progress.advance(until - done, note(row))
                done = until
    return state


def scan_steps(
    step: Step, state: Any, examples: Any, indices: Int32[Array, "steps seeds batch"]
) -> Any:
    """Take one step per row of indices, for all seeds at once."""
    seeds = indices.shape[1]

    def body(state: Any, rows: Int32[Array, "seeds batch"]) -> tuple[Any, None]:
        if seeds > 1:
            batch = jax.tree.map(lambda values: values[rows], examples)
            return jax.vmap(step)(state, batch), None
        # XLA's batched matrix product is slower than the plain one, even for a batch of one.
        batch = jax.tree.map(lambda values: values[rows[0]], examples)
        one = step(jax.tree.map(lambda leaf: leaf[0], state), batch)
        return jax.tree.map(lambda leaf: leaf[None], one), None

    return jax.lax.scan(body, state, indices)[0]


def batch_indices(
    seed: int, start: int, stop: int, batch_size: int, num_examples: int
) -> Int32[np.ndarray, "steps batch"]:
    """Draw the batches of steps `start` to `stop`: a function of seed and step alone.

    Every epoch is a permutation of all examples, drawn from (seed, epoch); batches are cut from
    the epochs laid end to end, so that none is ragged.
    """
    first, last = start * batch_size, stop * batch_size
    epochs = range(first // num_examples, -(-last // num_examples))
    order = np.concatenate(
        [np.random.default_rng([seed, epoch]).permutation(num_examples) for epoch in epochs]
    )
    offset = epochs.start * num_examples
    return order[first - offset : last - offset].reshape(-1, batch_size).astype(np.int32)
