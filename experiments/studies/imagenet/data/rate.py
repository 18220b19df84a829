"""How fast one core reads images, and so how many cores and hosts keep an accelerator busy."""

import time
from collections.abc import Callable

from experiments.studies.imagenet.data.examples import TrainingExample
from experiments.studies.imagenet.data.image_source import ImageSource
from experiments.studies.imagenet.data.order import Epochs
from experiments.studies.imagenet.data.unreadable import UnreadableImages


def measure_rate(
    source: ImageSource,
    *,
    size: int,
    strength: float = 1.0,
    lighting: float = 0.1,
    min_area: float = 0.08,
    seed: int = 0,
    seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure how many images a second one thread reads, decodes, crops and distorts.

    Args:
      source, size, strength, lighting, min_area, seed: see `loader.train_batches`.
      seconds: duration of the measurement, after a first image.
      clock: clock for `seconds`. With `time.perf_counter`, other load on the machine lowers the
        rate; `time.process_time` does not count waiting for a disk.

    Returns:
      Images per second.
    """
    epochs = Epochs("shuffled", seed, source.shards)
    unreadable = UnreadableImages(None, 100)
    read = TrainingExample(source, epochs, unreadable, size, strength, lighting, min_area)
    read(0)
    count, start = 0, clock()
    while clock() - start < seconds:
        count += 1
        read(count)
    return count / (clock() - start)
