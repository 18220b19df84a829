"""A stream of batches, placed on the devices."""

import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.studies.imagenet.data.loader import Batches
from experiments.studies.imagenet.network import Batch


class Stream:
    """Batches of this host's loader as arrays over all devices.

    - took: seconds spent waiting for the last batch.
    """

    def __init__(self, batches: Batches, sharding: NamedSharding):
        """Create a stream from the loader's current position on."""
        self.batches, self.sharding, self.took = batches, sharding, 0.0

    def next(self) -> Batch:
        """Return the next batch."""
        began = time.perf_counter()
        batch = next(self.batches)
        self.took = time.perf_counter() - began
        return place(batch, self.sharding)


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> Batch:
    """Put this host's part of a batch on its devices."""
    parts: list[Any] = [
        jax.make_array_from_process_local_data(sharding, batch[name]) for name in Batch._fields
    ]
    return Batch(*parts)
