"""What a source of labeled images is, and arrays in memory as one."""

import abc
import functools
import hashlib
from typing import TypedDict

import numpy as np
from jaxtyping import Int, UInt8

SHARD_EXAMPLES = 1_250  # Of a shard that is no file of its own: about ImageNet's, cut in 1,024.


class Example(TypedDict):
    """One labeled image: an encoded file, or pixels (H, W, 3)."""

    image: bytes | UInt8[np.ndarray, "H W 3"]
    label: int
    name: str


class ImageSource(abc.ABC):
    """Labeled images by index, as `grain.MapDataset.source` takes them.

    The examples of a shard are a random sample of all: whatever is stored by class is put in a
    random order, drawn once and for all.
    """

    def __init__(
        self, name: str, origin: str, classes: tuple[str, ...], shards: tuple[range, ...]
    ) -> None:
        """Make a source.

        Args:
          name: of the data set.
          origin: where it came from, such as "data folder".
          classes: names, in the order of their labels.
          shards: the indices of each shard; all of them, in order.

        Raises:
          ValueError: no classes, or one.
        """
        if len(classes) < 2:
            raise ValueError(
                f"Expected at least two classes of images in {name}, got "
                f"{', '.join(classes) or 'none'}. Give each class a folder of its images."
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
        """Name an example, without reading it."""

    @functools.cached_property
    @abc.abstractmethod
    def sha256(self) -> str:
        """Checksum of the examples, or of what stands for them where they are too many to read."""

    def describe(self) -> dict[str, str | int]:
        """Tell what a run was trained on."""
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
        """Make a source of arrays.

        Args:
          name, origin, classes: of `ImageSource`.
          images: in an order that is random by class.
          labels: 0 to K - 1.
          shard_examples: at most so many are a shard.

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
        """Name an example by its index."""
        return f"{self.name}/{index}"

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of all images and labels."""
        digest = hashlib.sha256(self._images.tobytes())
        digest.update(self._labels.tobytes())
        return digest.hexdigest()


def even_shards(examples: int, most: int) -> tuple[range, ...]:
    """Cut indices into as few shards of at most `most` as there can be, sizes one apart at most.

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
            f"Expected at least {batch_size:,} images in {source.name}, the batch of all hosts, "
            f"got {len(source):,}. Take a smaller batch, or more images."
        )
