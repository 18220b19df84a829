"""Checks of what a config asks of its data: the data set exists and is large enough.

Standard library only, so that errors are reported before anything slow is imported.
"""

import unicodedata
from pathlib import Path

from experiments.checks import did_you_mean

NAMES = ("mnist", "fashion_mnist", "digits")
NAME_BYTES = 200  # For the user's own data: run files, of at most 255 bytes, are named after it.


def check_dataset(dataset: str) -> None:
    """Refuse anything but the name of a data set or a path to the user's own data.

    Args:
      dataset: one of `NAMES`, a `.npz` file or a folder, see `experiments.tasks.own`.

    Raises:
      ValueError: neither of them; or a path that a report cannot show or that files of a run cannot
        be named after.

    Example:
      >>> from experiments.datasets import check_dataset
      >>> check_dataset("mnist")
      >>> check_dataset("mnits")
      Traceback (most recent call last):
      ValueError: Expected mnist, fashion_mnist, digits, a .npz file or a folder, got 'mnits'. ...
    """
    if dataset in NAMES:
        return
    path = Path(dataset)
    is_own = path.is_dir() or (path.suffix == ".npz" and path.is_file())
    if not dataset or not is_own:
        raise ValueError(
            f"Expected {', '.join(NAMES)}, a .npz file or a folder, got {dataset!r}."
            + did_you_mean(dataset, NAMES)
        )
    whole = str(path.resolve())
    name = Path(whole).stem
    # Control characters, line separators, and surrogates, by which Python represents non-UTF-8.
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in dataset + name):
        raise ValueError(
            "Expected a file or folder name in UTF-8, without control characters, got "
            f"{whole!r}. Rename it."
        )
    size = len(name.encode())
    if size > NAME_BYTES:
        raise ValueError(
            f"Expected a file or folder name of at most {NAME_BYTES} bytes, as files of a run are "
            f"named after it, got {size}: {whole!r}. Rename it."
        )


def check_sizes(images: int, **sizes: int) -> None:
    """Refuse options that use more images than there are to train on.

    Args:
      images: number of images to train on.
      sizes: option -> number of images it uses at once, such as a batch size.

    Raises:
      ValueError: a size exceeds `images`.

    Example:
      >>> from experiments.datasets import check_sizes
      >>> check_sizes(1000, batch_size=60)
      >>> check_sizes(1000, batch_size=2000)
      Traceback (most recent call last):
      ValueError: Expected `batch_size` of at most 1,000, the number of training images, got 2,000.
    """
    for name, size in sizes.items():
        if size > images:
            raise ValueError(
                f"Expected `{name}` of at most {images:,}, the number of training images, got "
                f"{size:,}."
            )
