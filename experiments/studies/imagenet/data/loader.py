"""Batches of images, prefetched by threads or processes, for one of several hosts.

Positions number the examples of all epochs, laid end to end. A global batch is the next
`hosts * batch_size` positions, and each host reads a contiguous part of it, so the training data
depend neither on the number of hosts nor on the number of worker processes. The random crop,
mirroring and distortion of an example are a function of seed and position alone, so a position is
all that is needed to resume.
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
LAST = 2**48  # Position at which the otherwise endless training stream ends.
THREADS = 2  # Reader threads per process: Pillow releases the GIL to decode and resize.
PATIENCE = 30.0  # Seconds that a worker process lives on after SIGTERM.
READ_AHEAD = 4  # Batches that each process prefetches.
READ_AHEAD_144 = 1  # With 144 crops of 224 pixels, a batch of 32 images is 700 MB.


class Batches(Iterator[Batch]):
    """Batches from a position on, which `get_state` returns and `set_state` sets.

    Close it when done, for example by `with`: it may hold worker processes.
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
        """Create an iterator that reads nothing before the first batch is requested.

        Args:
          read: position -> element of a batch; it must be picklable.
          examples: number of positions, without those that fill up the last batch; None for an
            endless stream.
          batch_size: images of this host.
          host, hosts: index of this host, and number of hosts.
          workers: worker processes; 0 reads in threads of this process.
          read_ahead: batches that threads prefetch; each process does so, and holds half as many
            more.
          identity: values that must match for a state to be restored.

        Raises:
          ValueError: `host` out of range, an empty batch, or a negative number of workers.
        """
        if not 0 <= host < hosts:
            raise ValueError(
                f"Expected `host` from 0 to {hosts - 1}, as `hosts` is {hosts}, got {host}."
            )
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
        # Close before the interpreter shuts down: grain could no longer stop its processes then.
        weakref.finalize(self, _close, self._reading)

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
          WrongData: too many images cannot be read.
          OSError: a worker process has died, for example because memory ran out.
        """
        if not self._reading:
            self._reading.append(iter(self._dataset()))
        try:
            batch = next(self._reading[0])
        except RuntimeError as error:  # grain raises it for a dead worker, and for other errors.
            code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if not code:
                raise
            self.close()
            how = f"ended with exit code {code[1]}, perhaps out of memory"
            raise OSError(errno.ECHILD, how, "a process that reads images") from None
        self._position += self._hosts * self._batch_size
        # Copy out of shared memory, where workers put batches: there may be little of it.
        return {name: np.array(value) for name, value in batch.items()} if self._workers else batch

    def get_state(self) -> dict[str, Any]:
        """Return where the next batch begins, as JSON-serializable values."""
        return {"position": self._position, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; the numbers of hosts and workers may have changed since.

        Raises:
          ValueError: a state of other examples, another seed or order, or one within a batch.
        """
        position, identity = state.get("position"), {**state}
        identity.pop("position", None)
        if identity != self._identity:
            raise ValueError(
                f"Expected a state of batches with {self._identity}, got one with {identity}. "
                "Resume with the same data and options."
            )
        whole = self._hosts * self._batch_size
        if not isinstance(position, int) or not 0 <= position <= self._stop or position % whole:
            raise ValueError(
                f"Expected a state at a multiple of {whole} examples, one batch of all hosts, got "
                f"one at {position}. Resume with the same batch size."
            )
        self.close()
        self._position = position

    def close(self) -> None:
        """Stop prefetching; the next batch restarts it."""
        _close(self._reading)

    def __enter__(self) -> "Batches":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop prefetching."""
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
        # grain 0.2.18 reads an Abseil flag, which fails unless `absl.app` has parsed the flags:
        # https://github.com/google/grain/issues/1355
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Workers take batches in turn, so the order does not depend on how many there are.
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
    """Return an endless stream of training batches.

    An unreadable image is logged and replaced by the next example, which also keeps its own place.

    Args:
      source: all examples, the same on every host.
      batch_size: images of this host.
      size: side of the images in pixels.
      seed: seed of order, crops, mirroring and distortion.
      strength, lighting: of photometric distortion, see `crops.distort`.
      min_area: smallest share of an image's area in a crop, see `crops.random_crop`.
      order: order of the examples, see `order.epoch_order`.
      host, hosts: index of this host, and number of hosts; each gets its own part of every batch.
      workers: worker processes; 0 reads in threads of this process.
      log: file that lists unreadable images, see `unreadable.UnreadableImages`.
      limit: number of images that may be unreadable.

    Returns:
      "image", uint8 (batch_size, size, size, 3), and "label", int32 (batch_size,).

    Raises:
      ValueError: fewer examples than a global batch; options out of range.

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
        raise ValueError(
            f"Expected `order` to be one of {', '.join(get_args(Order))}, got {order!r}."
        )
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
    """Return batches with every example once, split over all hosts into equal numbers of batches.

    Args:
      source, batch_size, size, host, hosts, workers, log, limit: see `train_batches`.
      crops: 1 for the center of each image, see `crops.center_crop`, or 144, see
        `crops.crops_144`.

    Returns:
      "image", uint8 (batch_size, size, size, 3) or (batch_size, 144, size, size, 3), "label", int32
      (batch_size,), and "mask", bool (batch_size,): False where a place is empty, because there are
      no more examples or because the image is unreadable.

    Raises:
      ValueError: options out of range.
    """
    if crops not in (1, 144):
        raise ValueError(f"Expected `crops` to be 1 or 144, got {crops}.")
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
    """Return the global position of an element that is numbered among this host's own."""
    batch, place = divmod(element, batch_size)
    return (batch * hosts + host) * batch_size + place


def _close(reading: list[grain.DatasetIterator[Batch]]) -> None:
    while reading:
        reading.pop().close()


def _end_with_the_parent(worker: int, workers: int) -> None:
    """Set up a worker process: it leaves signals to its parent, and ends when the parent does.

    A scheduler that ends a job sends SIGTERM to all its processes, but the parent still needs its
    workers until it has written a checkpoint.
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
    """Exit as if by the signal, after giving the parent time to end first."""
    timer = threading.Timer(PATIENCE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
