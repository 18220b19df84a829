"""Examples by position: an image, prepared for training or evaluation, and its label."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from experiments import sampling
from experiments.studies.imagenet.data import crops
from experiments.studies.imagenet.data.image_source import ImageSource
from experiments.studies.imagenet.data.order import Epochs
from experiments.studies.imagenet.data.unreadable import UnreadableImages
from experiments.tasks.data import WrongData


class Reader:
    """Reads examples, and logs those that cannot be read."""

    def __init__(self, source: ImageSource, unreadable: UnreadableImages) -> None:
        self.source = source
        self.unreadable = unreadable

    def __call__(self, index: int, make: Callable[[Image.Image], Any]) -> tuple[Any, int] | None:
        """Return `make` of an image, and its label; None if the image is unreadable."""
        try:
            example = self.source[index]
        except OSError as error:
            self.unreadable.add(self.source.name_of(index), _reason(error))
            return None
        try:
            return make(crops.open_image(example["image"])), example["label"]
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises a dozen kinds for damaged files.
            self.unreadable.add(example["name"], _reason(error))
            return None


class TrainingExample:
    """Position -> a random crop of an image, randomly distorted."""

    def __init__(
        self,
        source: ImageSource,
        epochs: Epochs,
        unreadable: UnreadableImages,
        size: int,
        strength: float,
        lighting: float,
        min_area: float,
    ) -> None:
        self.read = Reader(source, unreadable)
        self.epochs = epochs
        self.size = size
        self.strength = strength
        self.lighting = lighting
        self.min_area = min_area

    def __call__(self, position: int) -> dict[str, Any]:
        rng = sampling.rng(self.epochs.seed, f"window of image {position}")

        def make(image: Image.Image) -> np.ndarray:
            window = crops.random_crop(rng, image, self.size, (self.min_area, 1.0))
            window = crops.flip(rng, window)
            return np.asarray(crops.distort(rng, window, self.strength, self.lighting))

        for place in range(position, position + self.epochs.examples):
            read = self.read(self.epochs[place], make)
            if read is not None:
                return {"image": read[0], "label": np.int32(read[1])}
        raise WrongData(f"Expected readable images in {self.read.source.name}, got none.")


class EvaluationExample:
    """Position -> the crops of an image, or a masked example if there is none."""

    def __init__(
        self, source: ImageSource, unreadable: UnreadableImages, size: int, count: int
    ) -> None:
        self.read = Reader(source, unreadable)
        self.size = size
        self.count = count

    def __call__(self, position: int) -> dict[str, Any]:
        read = None
        if position < len(self.read.source):
            read = self.read(position, self._make)
        if read is None:
            shape = (self.size, self.size, 3) if self.count == 1 else (144, self.size, self.size, 3)
            return {"image": np.zeros(shape, np.uint8), "label": np.int32(0), "mask": False}
        return {"image": read[0], "label": np.int32(read[1]), "mask": True}

    def _make(self, image: Image.Image) -> np.ndarray:
        if self.count == 1:
            return np.asarray(crops.center_crop(image, self.size))
        return crops.crops_144(image, self.size)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
