"""Training of one network of a variant on a stream of examples.

The devices run a step while the next batch is read. At regular intervals, the network is evaluated,
a row is appended to metrics.jsonl, and a thread writes a checkpoint together with the position in
the stream: an interrupted run resumes with the very next example, and ends with the same metrics.
"""

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import sampling
from experiments.run_dir import Run
from experiments.studies.imagenet import network as networks
from experiments.studies.imagenet.config import Config
from experiments.studies.imagenet.data.image_source import ImageSource
from experiments.studies.imagenet.data.unreadable import LOG
from experiments.studies.imagenet.evaluate import Evaluator, train_batches
from experiments.studies.imagenet.stream import Stream
from experiments.studies.imagenet.variants import Variant
from experiments.training import hosts
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import Execution
from experiments.training.networks import Network
from experiments.training.progress import Progress
from experiments.training.signals import Stopped

AT_ONCE = 1e-3  # Seconds: a loss that is read faster than this was already computed.
LISTEN_EVERY = 10  # Steps between exchanges of signals among hosts, each of which is a collective.


class Data(NamedTuple):
    """The training and the validation images."""

    train: ImageSource
    validation: ImageSource


def train(
    config: Config,
    variant: Variant,
    seed: int,
    data: Data,
    run: Run | None,
    execution: Execution,
) -> tuple[Network, Evaluator]:
    """Train a network to the end, from the start or from the last checkpoint.

    Args:
      config, variant, seed: what to train.
      data: the images.
      run: the network's folder; None on hosts other than the first.
      execution: devices, checkpoint interval, and the handler of signals.

    Returns:
      The trained network, replicated on all devices, and an evaluator for it.

    Raises:
      Stopped: a signal arrived; a checkpoint has been written.
      WrongData: more unreadable images than the config allows.
    """
    mesh = networks.make_mesh(list(execution.devices.mesh.devices.flat), config.statistics)
    classes = len(data.train.classes)
    step, sharding = networks.make_step(config, variant, classes, mesh, execution.devices.way)
    key = sampling.keys([seed], "dropout")[0]
    model = networks.make_model(config, variant, classes)
    optimizer = networks.make_optimizer(config, variant, mesh.size)
    network = networks.init(model, optimizer, sampling.keys([seed], "weights")[0], config.size)
    log = run.path / LOG if run else None
    evaluator = Evaluator(config, model, data.validation, mesh, log)
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(
            train_batches(config, variant, data.train, seed=seed, devices=mesh.size, log=log)
        )
        stream = Stream(batches, sharding)

        # ---- Where to begin ----------------------------------------------------------------------
        checkpoints = stack.enter_context(Checkpoints(run, asynchronous=True)) if run else None
        restored = checkpoints.newest(network) if checkpoints else None
        beside: dict[str, Any] = {"examples": batches.get_state(), "losses": []}
        if checkpoints and restored:
            beside = checkpoints.beside(restored[0])
        if run:
            for name in ("metrics.jsonl", "timing.jsonl"):
                run.rewind(name, restored[0] if restored else -1)
        done = hosts.broadcast_from_first(restored[0] if restored else 0)
        network = hosts.arrays_of_first(restored[1] if restored else network)
        network = jax.device_put(network, NamedSharding(mesh, P()))
        batches.set_state(hosts.broadcast_from_first(beside["examples"]))
        board = stack.enter_context(_board(run.path)) if config.tensorboard and run else None

        # ---- Step by step ------------------------------------------------------------------------
        progress = stack.enter_context(Progress(config.steps, done=done))
        stack.enter_context(execution.graceful_exit.deferred())
        losses, under_way, saved = list(beside["losses"]), None, done
        began, first, waited = time.perf_counter(), done, 0.0
        while done < config.steps:
            batch = stream.next()
            network, loss = step(network, batch, jax.random.fold_in(key, done))
            done += 1
            if under_way is not None:  # Devices run at most one step ahead.
                came = time.perf_counter()
                losses.append(float(under_way))
                if time.perf_counter() - came < AT_ONCE:  # They were idle.
                    waited += stream.took
            under_way = loss
            signal = _signal(execution, done)
            if signal or done % config.evaluate_every == 0:
                losses.append(float(loss))
                under_way = None
            took = time.perf_counter() - began
            if done % config.evaluate_every == 0:
                row = {"step": done, "loss": _mean(losses), **evaluator.watch(network)}
                if run:
                    run.append("metrics.jsonl", row)
                    timing = {"train_seconds": round(took, 4), "waiting_seconds": round(waited, 4)}
                    run.append("timing.jsonl", {"step": done, **timing})
                if board:
                    for name, value in row.items():
                        board.add_scalar(name, math.nan if value is None else value, done)
                losses = []
            every = config.evaluate_every * execution.checkpoint_every
            if (signal and saved < done) or done == config.steps or done % every == 0:
                if checkpoints:
                    here = jax.tree.map(lambda leaf: leaf.addressable_data(0), network)
                    beside = {"examples": batches.get_state(), "losses": losses}
                    checkpoints.save(done, here, beside)
                saved = done
            images = config.batch_size * mesh.size * (done - first) / took
            progress.advance(1, f"{images:,.0f} images/s, {waited / took:.1%} waiting")
            if done % config.evaluate_every == 0:
                began, first, waited = time.perf_counter(), done, 0.0
            if signal:
                raise Stopped(signal)
    return network, evaluator


def _signal(execution: Execution, done: int) -> int:
    """Return the number of a signal that any host has received, at the same step on all, or 0."""
    if hosts.count() > 1 and done % LISTEN_EVERY:
        return 0
    return hosts.largest(execution.graceful_exit.received)


def _mean(losses: Sequence[float]) -> float | None:
    """Return the mean, or None if training diverged, as JSON has no NaN."""
    mean = float(np.mean(losses))
    return mean if math.isfinite(mean) else None


@contextlib.contextmanager
def _board(folder: Path) -> Generator[Any]:
    """Write event files for TensorBoard."""
    from tensorboardX import SummaryWriter  # Optional dependency.

    with SummaryWriter(str(folder / "tensorboard")) as board:
        yield board
