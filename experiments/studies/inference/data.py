"""Images of the study `inference`, original and shifted, and its batches."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from scipy import ndimage

from experiments import sampling
from experiments.studies.inference.config import Config
from experiments.tasks.data import Dataset

POPULATION_EXAMPLES = 60, 300, 1000, 10_000, 20_000  # Rounded up to whole batches.
TEST_BATCHES = 2, 8, 32, 500  # At most as many examples as there are.


class Data(NamedTuple):
    """Images as rows of gray levels from 0 to 1, and the rows that make up each batch.

    - population_rows: training batches for population statistics, different for each seed.
    - test_batches: name -> batches of test images, of mixed classes or one class each.
    - shifted: name -> all test images, shifted.
    """

    train: Float[Array, "N features"]
    population_rows: Int[Array, "seeds K batch"]
    test: Float[Array, "M features"]
    labels: UInt8[Array, "M"]
    test_batches: dict[str, Int[Array, "K size"]]
    shifted: dict[str, Float[Array, "M features"]]


def prepare(config: Config, dataset: Dataset) -> Data:
    """Draw all batches, and shift the test images."""
    train, test = (x.astype(np.float32) / 255 for x in (dataset.train_images, dataset.test_images))
    shape = (max(population_batches(config).values()), config.batch_size, len(train))
    population_rows = [
        sampling.batch_indices(seed, 0, *shape, purpose="population")
        for seed in range(config.seeds)
    ]
    shifted = {
        "unchanged": test,
        "contrast": config.contrast * test + config.brightness,
        "rotation": ndimage.rotate(test, config.degrees, axes=(1, 2), reshape=False, order=1),
    }
    arrays: Any = {
        "train": train.reshape(len(train), -1),
        "population_rows": np.stack(population_rows),
        "test": test.reshape(len(test), -1),
        "labels": dataset.test_labels,
        "test_batches": cut_test_batches(dataset.test_labels),
        "shifted": {name: images.reshape(len(images), -1) for name, images in shifted.items()},
    }
    return Data(**jax.device_put(arrays))


def cut_test_batches(labels: UInt8[np.ndarray, "M"]) -> dict[str, Int[np.ndarray, "K size"]]:
    """Split the test images into whole batches: in their given order, or of one class each."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    batches = {}
    for kind, groups in {"mixed": [np.arange(len(labels))], "sorted": classes}.items():
        for wanted in TEST_BATCHES:
            size = min(wanted, *map(len, groups))
            cut = [rows[: len(rows) // size * size].reshape(-1, size) for rows in groups]
            batches[f"{kind}_{wanted}"] = np.concatenate(cut)
    return batches


def population_batches(config: Config) -> dict[int, int]:
    """Return the number of batches for each number of examples."""
    return {size: math.ceil(size / config.batch_size) for size in POPULATION_EXAMPLES}
