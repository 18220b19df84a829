"""The order of a source's examples in each epoch."""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Int64

from experiments import sampling

Order = Literal["shuffled", "within_shards", "fixed"]


@functools.lru_cache(maxsize=4)  # An epoch of ImageNet takes 10 MB, and about 20 ms to draw.
def epoch_order(
    order: Order, seed: int, epoch: int, shards: tuple[range, ...]
) -> Int64[np.ndarray, "N"]:
    """Draw the order of an epoch, a permutation of all examples.

    Args:
      order: "shuffled" draws any permutation. "within_shards", as in the paper, reads shard after
        shard, with the shards and the examples of each shuffled. "fixed" repeats the first epoch's
        order of "within_shards" in every epoch, so that the same examples stay together.
      seed: seed of the draw.
      epoch: number of the epoch, from 0.
      shards: shards of the source.

    References:
      Ioffe and Szegedy 2015, section 4.2.1: "We enabled within-shard shuffling of the training
      data, which prevents the same examples from always appearing in a mini-batch together".
    """
    rng = sampling.rng(seed, f"order of images, epoch {0 if order == 'fixed' else epoch}")
    if order == "shuffled":
        return rng.permutation(shards[-1].stop)
    shuffled = [rng.permutation(np.arange(shard.start, shard.stop)) for shard in shards]
    return np.concatenate([shuffled[i] for i in rng.permutation(len(shards))])


class Epochs:
    """The examples of all epochs, laid end to end, by position."""

    def __init__(self, order: Order, seed: int, shards: tuple[range, ...]) -> None:
        """Create the sequence; for the arguments, see `epoch_order`."""
        self.order: Order = order
        self.seed = seed
        self.shards = shards
        self.examples = shards[-1].stop
        self._drawn: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> int:
        """Return the index of the example at a position, counted from 0."""
        epoch, place = divmod(position, self.examples)
        drawn = self._drawn  # Read once: other threads may replace it.
        if drawn is None or drawn[0] != epoch:
            drawn = epoch, epoch_order(self.order, self.seed, epoch, self.shards)
            self._drawn = drawn
        return int(drawn[1][place])
