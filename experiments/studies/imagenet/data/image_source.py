"""The interface of a source of labeled images, and a source of arrays in memory."""

import abc
import functools
import hashlib
from typing import TypedDict

import numpy as np
from jaxtyping import Int, UInt8

SHARD_EXAMPLES = 1_250  # For shards that are not files: about that of ImageNet in 1,024 shards.


class Example(TypedDict):
    """One labeled image: an encoded file, or pixels (H, W, 3)."""

    image: bytes | UInt8[np.ndarray, "H W 3"]
    label: int
    name: str


class ImageSource(abc.ABC):
    """Labeled images by index, in the form that `grain.MapDataset.source` expects.

    The examples of a shard are a random sample of all: data stored by class are put in a fixed
    random order.
    """

    def __init__(
        self, name: str, origin: str, classes: tuple[str, ...], shards: tuple[range, ...]
    ) -> None:
        """Create a source.

        Args:
          name: name of the data set.
          origin: where it came from, such as "data folder".
          classes: class names, in the order of their labels.
          shards: indices of each shard; together, all indices in order.

        Raises:
          ValueError: fewer than two classes.
        """
        if len(classes) < 2:
            raise ValueError(
                f"Expected at least two classes of images in {name}, got "
                f"{', '.join(classes) or 'none'}. Give each class its own folder of images."
            )
        self.name = name
        self.origin = origin
        self.classes = classes
        self.shards = shards

    def __len__(self) -> int:
        """Return how many examples there are."""
        return self.shards[-1].stop if self.shards else 0

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Read an example.

        Raises:
          OSError: the file cannot be read.
        """

    @abc.abstractmethod
    def name_of(self, index: int) -> str:
        """Return the name of an example, without reading it."""

    @functools.cached_property
    @abc.abstractmethod
    def sha256(self) -> str:
        """Checksum of the examples, or of a stand-in where they are too many to read."""

    def describe(self) -> dict[str, str | int]:
        """Describe the data, for the record of a run."""
        return {
            "name": self.name,
            "source": self.origin,
            "examples": len(self),
            "sha256": self.sha256,
        }


class ArraySource(ImageSource):
    """Images that are in memory."""

    def __init__(
        self,
        name: str,
        origin: str,
        classes: tuple[str, ...],
        images: UInt8[np.ndarray, "N H W 3"],
        labels: Int[np.ndarray, "N"],
        *,
        shard_examples: int = SHARD_EXAMPLES,
    ) -> None:
        """Create a source from arrays.

        Args:
          name, origin, classes: see `ImageSource`.
          images: images, not sorted by class.
          labels: 0 to K - 1.
          shard_examples: largest number of examples in a shard.

        Raises:
          ValueError: labels that do not match the images or the classes; fewer than two classes.
        """
        super().__init__(name, origin, classes, even_shards(len(images), shard_examples))
        wrong = labels[(labels < 0) | (labels >= len(classes))]
        if len(labels) != len(images) or len(wrong):
            got = f"a label {wrong[0]}" if len(wrong) else f"{len(labels):,} labels"
            raise ValueError(
                f"Expected a label from 0 to {len(classes) - 1} for each of the {len(images):,} "
                f"images of {name}, got {got}. Number the classes from 0."
            )
        self._images = images
        self._labels = labels

    def __getitem__(self, index: int) -> Example:
        """Return an example."""
        return {
            "image": self._images[index],
            "label": int(self._labels[index]),
            "name": self.name_of(index),
        }

    def name_of(self, index: int) -> str:
        """Return the name of an example, made from its index."""
        return f"{self.name}/{index}"

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of all images and labels."""
        digest = hashlib.sha256(self._images.tobytes())
        digest.update(self._labels.tobytes())
        return digest.hexdigest()


def even_shards(examples: int, most: int) -> tuple[range, ...]:
    """Split indices into the fewest shards of at most `most`, of sizes that differ by at most one.

    Example:
      >>> from experiments.studies.imagenet.data.image_source import even_shards
      >>> even_shards(10, 4)
      (range(0, 3), range(3, 6), range(6, 10))
    """
    count = -(-examples // most)
    ends = [examples * i // count for i in range(count + 1)] if count else [0]
    return tuple(map(range, ends[:-1], ends[1:]))


def check_enough(source: ImageSource, batch_size: int) -> None:
    """Refuse a source with fewer examples than a batch.

    Raises:
      ValueError: it has fewer.
    """
    if len(source) < batch_size:
        raise ValueError(
            f"Expected at least {batch_size:,} images in {source.name}, one batch of all hosts, "
            f"got {len(source):,}. Use a smaller batch or more images."
        )
