"""Batches of images, read ahead by threads or by processes, for one of several hosts.

Positions count the examples of all epochs, laid end to end. A batch of all hosts is the next
`hosts * batch_size` positions, and each host's part of it is as many in a row: what is trained on
depends neither on how many hosts share a batch, nor on how many processes read. What is drawn for
an example, its window, mirroring and distortion, is a function of seed and position alone, so that
a position is all that is needed to go on from.
"""

import errno
import functools
import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import grain
import numpy as np
from absl import flags

from experiments.studies.imagenet.data.examples import EvaluationExample, TrainingExample
from experiments.studies.imagenet.data.image_source import ImageSource, check_enough
from experiments.studies.imagenet.data.order import Epochs, Order
from experiments.studies.imagenet.data.unreadable import UnreadableImages

Batch = dict[str, np.ndarray]
LAST = 2**48  # Position at which training would end.
THREADS = 2  # That read, in each process: Pillow decodes and resizes without Python's lock.
PATIENCE = 30.0  # Seconds from SIGTERM to the end of a process that reads.
READ_AHEAD = 4  # Batches, in each process.
READ_AHEAD_144 = 1  # Of 32 images with 144 crops of 224 pixels, one is 700 MB.


class Batches(Iterator[Batch]):
    """Batches from some position on; `get_state` and `set_state` tell and choose which.

    Close it, as by `with`, when it is not needed any more: it may hold processes.
    """

    def __init__(
        self,
        read: Callable[[int], Mapping[str, Any]],
        *,
        examples: int | None,
        batch_size: int,
        host: int,
        hosts: int,
        workers: int,
        read_ahead: int = READ_AHEAD,
        identity: Mapping[str, Any],
    ) -> None:
        """Make an iterator that reads nothing before it is asked for a batch.

        Args:
          read: position -> element of a batch; it travels to processes.
          examples: how many positions there are, before what fills the last batch; None for no end.
          batch_size: of this host.
          host, hosts: which of how many this is.
          workers: processes that read; 0 reads in threads of this one.
          read_ahead: batches that threads hold; each process does, and half as many more.
          identity: what must be the same where one goes on from a state.

        Raises:
          ValueError: a host that is none of the hosts, a batch of no images, less than no workers.
        """
        if not 0 <= host < hosts:
            raise ValueError(f"Expected `host` from 0 to {hosts - 1}, of {hosts}, got {host}.")
        if batch_size < 1 or workers < 0:
            raise ValueError(
                "Expected `batch_size` of at least 1 and `workers` of at least 0, got "
                f"{batch_size} and {workers}."
            )
        self._read = read
        whole = hosts * batch_size
        self._stop = LAST // whole * whole if examples is None else -(-examples // whole) * whole
        self._batch_size = batch_size
        self._host, self._hosts = host, hosts
        self._workers = workers
        self._read_ahead = read_ahead
        self._identity = dict(identity)
        self._position = 0
        self._reading: list[grain.DatasetIterator[Batch]] = []  # One, or none.
        # Before Python ends, or what grain needs to end its processes is gone.
        weakref.finalize(self, _close, self._reading)

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
          WrongData: too many images cannot be read.
          OSError: a process that reads has ended, as where memory ran out.
        """
        if not self._reading:
            self._reading.append(iter(self._dataset()))
        try:
            batch = next(self._reading[0])
        except RuntimeError as error:  # How grain tells it, and errors of its own.
            code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if not code:
                raise
            self.close()
            how = f"ended with exit code {code[1]}, as where memory runs out"
            raise OSError(errno.ECHILD, how, "a process that reads images") from None
        self._position += self._hosts * self._batch_size
        # What processes read is in shared memory, of which there may be little: out of it.
        return {name: np.array(value) for name, value in batch.items()} if self._workers else batch

    def get_state(self) -> dict[str, Any]:
        """Return, as JSON can hold it, where the next batch begins."""
        return {"position": self._position, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; hosts and workers may be others than then.

        Raises:
          ValueError: a state of other examples, another seed or order, or one within a batch.
        """
        position, identity = state.get("position"), {**state}
        identity.pop("position", None)
        if identity != self._identity:
            raise ValueError(
                f"Expected the state of batches with {self._identity}, got one with {identity}. Go "
                "on with the same data and options."
            )
        whole = self._hosts * self._batch_size
        if not isinstance(position, int) or not 0 <= position <= self._stop or position % whole:
            raise ValueError(
                f"Expected a state at a multiple of {whole} examples, the batch of all hosts, got "
                f"one at {position}. Go on with the same batch size."
            )
        self.close()
        self._position = position

    def close(self) -> None:
        """End what reads ahead; the next batch starts it anew."""
        _close(self._reading)

    def __enter__(self) -> "Batches":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End what reads ahead."""
        self.close()

    def _dataset(self) -> grain.IterDataset:
        start, stop = self._position // self._hosts, self._stop // self._hosts
        position = functools.partial(position_of, self._batch_size, self._host, self._hosts)
        elements = grain.MapDataset.range(start, stop).map(position).map(self._read)
        count = self._read_ahead
        ahead = grain.ReadOptions(num_threads=min(THREADS, count), prefetch_buffer_size=count)
        batches = elements.batch(self._batch_size).to_iter_dataset(ahead)
        if not self._workers:
            return batches
        # grain 0.2.18 reads a flag of Abseil's that only `absl.app` parses:
        # https://github.com/google/grain/issues/1355
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Each process takes every so many batches: their order does not depend on its number.
        options = grain.multiprocessing.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=max(count // 2, 1)
        )
        return batches.mp_prefetch(options, worker_init_fn=_end_with_the_parent)


def train_batches(
    source: ImageSource,
    *,
    batch_size: int,
    size: int,
    seed: int,
    strength: float,
    lighting: float = 0.0,
    min_area: float,
    order: Order,
    host: int = 0,
    hosts: int = 1,
    workers: int = 0,
    log: Path | None = None,
    limit: int = 100,
) -> Batches:
    """Read batches to train on, epoch after epoch without an end.

    An image that cannot be read is named and skipped: the next example takes its place, as well as
    its own.

    Args:
      source: all examples; every host has all of them.
      batch_size: images of this host.
      size: pixels of a side.
      seed: of order, windows, mirrors and distortion.
      strength, lighting: of photometric distortion, see `crops.distort`.
      min_area: smallest share of an image that a window takes, see `crops.random_crop`.
      order: of the examples, see `order.epoch_order`.
      host, hosts: which of how many this is; each gets its own part of every batch.
      workers: processes that read; 0 reads in threads of this one.
      log: file that names the images that cannot be read, see `unreadable.UnreadableImages`.
      limit: how many images may be unreadable.

    Returns:
      "image", uint8 (batch_size, size, size, 3), and "label", int32 (batch_size,).

    Raises:
      ValueError: fewer examples than a batch of all hosts; options out of range.

    Example:
      >>> from experiments.studies.imagenet.data.loader import train_batches
      >>> from experiments.studies.imagenet.data.source import open_source
      >>> with train_batches(
      ...     open_source("digits", "train", None), batch_size=4, size=28, seed=0, strength=0.5,
      ...     min_area=0.5, order="shuffled",
      ... ) as batches:
      ...     print(next(batches)["image"].shape, batches.get_state()["position"])
      (4, 28, 28, 3) 4
    """
    check_enough(source, hosts * batch_size)
    if order not in get_args(Order):
        raise ValueError(f"Expected `order` of {', '.join(get_args(Order))}, got {order!r}.")
    if not 0 < min_area <= 1 or not 0 <= strength <= 2 or lighting < 0:
        raise ValueError(
            "Expected `min_area` in (0, 1], `strength` in [0, 2] and `lighting` of at least 0, got "
            f"{min_area}, {strength} and {lighting}."
        )
    epochs = Epochs(order, seed, source.shards)
    unreadable = UnreadableImages(log, limit)
    return Batches(
        TrainingExample(source, epochs, unreadable, size, strength, lighting, min_area),
        examples=None,
        batch_size=batch_size,
        host=host,
        hosts=hosts,
        workers=workers,
        identity={"examples": len(source), "seed": seed, "order": order},
    )


def evaluation_batches(
    source: ImageSource,
    *,
    batch_size: int,
    size: int,
    crops: Literal[1, 144],
    host: int = 0,
    hosts: int = 1,
    workers: int = 0,
    log: Path | None = None,
    limit: int = 100,
) -> Batches:
    """Read every example once, over all hosts; these get equally many batches.

    Args:
      source, batch_size, size, host, hosts, workers, log, limit: of `train_batches`.
      crops: 1 for the middle of each image, see `crops.center_crop`, or 144, see `crops.crops_144`.

    Returns:
      "image", uint8 (batch_size, size, size, 3) or (batch_size, 144, size, size, 3), "label", int32
      (batch_size,), and "mask", bool (batch_size,): False where a batch has no example, since there
      are no more, or since it cannot be read.

    Raises:
      ValueError: options out of range.
    """
    if crops not in (1, 144):
        raise ValueError(f"Expected `crops` of 1 or 144, got {crops}.")
    return Batches(
        EvaluationExample(source, UnreadableImages(log, limit), size, crops),
        examples=len(source),
        batch_size=batch_size,
        host=host,
        hosts=hosts,
        workers=workers,
        read_ahead=READ_AHEAD if crops == 1 else READ_AHEAD_144,
        identity={"examples": len(source), "crops": crops},
    )


def position_of(batch_size: int, host: int, hosts: int, element: int) -> int:
    """Return the position of this host's element, counted from 0."""
    batch, place = divmod(element, batch_size)
    return (batch * hosts + host) * batch_size + place


def _close(reading: list[grain.DatasetIterator[Batch]]) -> None:
    while reading:
        reading.pop().close()


def _end_with_the_parent(worker: int, workers: int) -> None:
    """Prepare a process that reads: signals are for its parent, without which it ends, too.

    Whoever ends a job sends SIGTERM to all processes of it: the parent writes a checkpoint first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end_later(number: int, frame: object) -> None:
    """End by a signal once the parent has had the time to do so."""
    timer = threading.Timer(PATIENCE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
