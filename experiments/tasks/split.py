"""Training, validation and test images; the validation images are drawn at random."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from numpy.typing import DTypeLike

from experiments import sampling
from experiments.tasks.data import Dataset

Examples = tuple[Any, Any]
Encode = Callable[[UInt8[np.ndarray, "N ..."]], np.ndarray]


class Split(NamedTuple):
    """Images, encoded as a network's input, and labels, int32, of each part."""

    train: Examples
    validation: Examples
    test: Examples


def sample_split(
    dataset: Dataset,
    encode: Encode,
    *,
    validation: int,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
) -> Split:
    """Draw validation and training images from the training images of a data set.

    They are drawn at random because the last training images of MNIST are easier than its test
    images.

    Args:
      dataset: the data set; test images are taken from its test set.
      encode: images -> input of a network, (N, ...).
      validation, train: number of images; None trains on all that remain.
      test: number of test images, evenly spread over the test set because the first half of MNIST's
        is easier than the second; None takes all.
      seed: seed of the draw.
      dtype: of the encoded images; np.uint8 keeps binary images small, for a network that converts
        them batch by batch.

    Returns:
      NumPy arrays; call `jax.device_put` on them once.

    Raises:
      ValueError: fewer images than asked for.
    """
    total = len(dataset.train_labels)
    asked = f"{'some' if train is None else train} for training and {validation} for validation"
    train = max(total - validation, 1) if train is None else train
    if train + validation > total:
        raise ValueError(
            f"Expected at least {train + validation} training images, {asked}, got {total} in "
            f"{dataset.name}. Ask for fewer, or use another data set."
        )
    rows = sampling.rng(seed, "split").permutation(total)[: validation + train]
    chosen, trained = np.split(rows, [validation])
    count = len(dataset.test_labels)
    tested = np.arange(count) if test is None else spread(count, test)

    def examples(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Examples:
        return encode(images[rows]).astype(dtype), labels[rows].astype(np.int32)

    of_training = dataset.train_images, dataset.train_labels
    return Split(
        examples(*of_training, trained),
        examples(*of_training, chosen),
        examples(dataset.test_images, dataset.test_labels, tested),
    )


def sample_splits(dataset: Dataset, encode: Encode, seeds: Iterable[int], **options: Any) -> Split:
    """Draw a split for every seed, (seeds, N, ...); the test images, (N, ...), are the same.

    Args:
      options: of `sample_split`.
    """
    each = [sample_split(dataset, encode, seed=seed, **options) for seed in seeds]
    train, validation = jax.tree.map(lambda *parts: np.stack(parts), *[one[:2] for one in each])
    return Split(train, validation, each[0].test)


def spread(count: int, some: int) -> np.ndarray:
    """Choose `some` of `count` examples, evenly spread; all if there are fewer."""
    return np.linspace(0, count - 1, min(some, count)).astype(int)
