"""Opens a source of images by name or path."""

import functools
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.studies.imagenet.data.folder import FolderSource
from experiments.studies.imagenet.data.image_source import ArraySource, ImageSource, check_enough
from experiments.studies.imagenet.data.shards import INDEX, ShardSource
from experiments.tasks import cifar, data

__all__ = ["ImageSource", "check_enough", "open_source"]

CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
DIGITS = tuple("0123456789")
DIGITS_SHARD = 120


def open_source(
    where: str, split: Literal["train", "validation"], data_dir: Path | None
) -> ImageSource:
    """Open the training or validation images of a data set.

    Args:
      where: "cifar10", whose test images are used for validation; "digits", the small gray images
        in scikit-learn; or the path of a folder of image files, see `folder`, or of shards made by
        `prepare`.
      split: which images to open.
      data_dir: see `experiments.tasks.cifar.load`.

    Raises:
      FileNotFoundError: no such folder, or no files of CIFAR-10.
      ValueError: invalid data; the message says what is wrong.

    Example:
      >>> from experiments.studies.imagenet.data.source import open_source
      >>> source = open_source("digits", "train", None)
      >>> len(source), source[0]["image"].shape
      (1438, (28, 28, 3))
    """
    if where == "cifar10":
        return _of_arrays(_cifar(data_dir), CIFAR_CLASSES, split, cifar.IMAGES)
    if where == "digits":
        return _of_arrays(data.load_digits(), DIGITS, split, DIGITS_SHARD)
    folder = Path(where)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected cifar10, digits or a folder of images, got {where}, which is not a folder."
        )
    if (folder / INDEX).exists():
        return ShardSource(folder, split)
    return FolderSource(folder, split)


@functools.lru_cache(maxsize=1)  # Both splits come from one archive that takes seconds to unpack.
def _cifar(data_dir: Path | None) -> data.Dataset:
    return cifar.load(data_dir=data_dir)


def _of_arrays(
    dataset: data.Dataset, classes: tuple[str, ...], split: str, shard_examples: int
) -> ArraySource:
    images, labels = dataset.test_images, dataset.test_labels
    if split == "train":
        images, labels = dataset.train_images, dataset.train_labels
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, -1)
    return ArraySource(
        dataset.name, dataset.source, classes, images, labels, shard_examples=shard_examples
    )
