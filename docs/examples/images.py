"""Images for the examples: CIFAR-10, or your own folder with one subfolder per class."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.tasks import cifar
from experiments.tasks.split import spread

Examples = tuple[np.ndarray, np.ndarray]


def load(data: str, size: int, test_examples: int = 2_000) -> tuple[Examples, Examples]:
    """Load training and test images, uint8 `(N, H, W, 3)`, with their labels.

    Args:
      data: "cifar10", see `experiments.tasks.cifar`; or a folder with image files in
        `train/CLASS/` and `test/CLASS/`. Classes get labels 0, 1, ... in the order of their names.
      size: pixels per side for images from a folder; CIFAR's have 32.
      test_examples: maximum number of test images, spread evenly over all.

    Raises:
      FileNotFoundError: the folder has no images.
    """
    if data == "cifar10":
        dataset = cifar.load()
        train = dataset.train_images, dataset.train_labels
        x, labels = dataset.test_images, dataset.test_labels
    else:
        classes = sorted(path.name for path in Path(data, "train").glob("*/"))
        train = read(Path(data, "train"), classes, size)
        x, labels = read(Path(data, "test"), classes, size)
    rows = spread(len(labels), test_examples)
    return train, (x[rows], labels[rows])


def prepare(images: jax.Array, size: int) -> jax.Array:
    """Standardize by ImageNet's mean and deviation, as torchvision's weights expect, and resize."""
    x = images / 255.0 - jnp.array([0.485, 0.456, 0.406])
    shape = (x.shape[0], size, size, 3)  # During export, x.shape[0] is symbolic.
    return jax.image.resize(x / jnp.array([0.229, 0.224, 0.225]), shape, "bilinear")


def read(folder: Path, classes: list[str], size: int) -> Examples:
    """Read the files of all classes, in the order of their names."""
    files = [
        (path, label) for label, name in enumerate(classes) for path in files_of(folder / name)
    ]
    if not files:
        raise FileNotFoundError(
            f"Expected image files in {folder}/CLASS/, found none. Pass 'cifar10', or make a "
            "folder with train/CLASS/ and test/CLASS/."
        )
    images = []
    for path, _ in files:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((size, size))))
    return np.stack(images), np.array([label for _, label in files])


def files_of(folder: Path) -> list[Path]:
    """List the image files of a class."""
    suffixes = Image.registered_extensions()
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)
