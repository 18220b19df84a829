"""The order in which the epochs meet the examples of a source."""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Int64

from experiments import sampling

Order = Literal["shuffled", "within_shards", "fixed"]


@functools.lru_cache(maxsize=4)  # An epoch of ImageNet is 10 MB, and is drawn in some 20 ms.
def epoch_order(
    order: Order, seed: int, epoch: int, shards: tuple[range, ...]
) -> Int64[np.ndarray, "N"]:
    """Draw the order of an epoch, a permutation of all examples.

    Args:
      order: "shuffled" draws any. "within_shards", as in the paper, reads shard after shard, these
        in random order and the examples of each in random order. "fixed" is the first epoch's order
        of the latter, in every epoch: examples always meet the same others.
      seed: of the draw.
      epoch: 0 for the first.
      shards: of the source.

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
    """The examples of epochs laid end to end, by their position."""

    def __init__(self, order: Order, seed: int, shards: tuple[range, ...]) -> None:
        """Take order, seed and shards, see `epoch_order`."""
        self.order: Order = order
        self.seed = seed
        self.shards = shards
        self.examples = shards[-1].stop
        self._drawn: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> int:
        """Return the index of the example at this position; the first one is at 0."""
        epoch, place = divmod(position, self.examples)
        drawn = self._drawn  # By one name: other threads may write it.
        if drawn is None or drawn[0] != epoch:
            drawn = epoch, epoch_order(self.order, self.seed, epoch, self.shards)
            self._drawn = drawn
        return int(drawn[1][place])
