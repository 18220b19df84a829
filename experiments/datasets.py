"""What a config may ask of its data: a data set that there is, and sizes that it has.

Standard library alone: what is wrong is told before anything slow is imported.
"""

import unicodedata
from pathlib import Path

from experiments.checks import did_you_mean

NAMES = ("mnist", "fashion_mnist", "digits")
NAME_BYTES = 200  # Of one's own: files of a run are named after it, in at most 255.


def check_dataset(dataset: str) -> None:
    """Refuse what is neither the name of a data set nor a path to one's own.

    Args:
      dataset: one of `NAMES`, a `.npz` file or a folder, see `experiments.tasks.own`.

    Raises:
      ValueError: neither; or a path that a report cannot show, or that no file of a run can be
        named after.

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
    # Control characters and line ends; parts of a letter, by which Python writes what is not UTF-8.
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in dataset + name):
        raise ValueError(
            f"Expected one's own data under a name in UTF-8, without control characters, got "
            f"{whole!r}. Rename it."
        )
    size = len(name.encode())
    if size > NAME_BYTES:
        raise ValueError(
            f"Expected one's own data under a name of at most {NAME_BYTES} bytes, for files of a "
            f"run are named after it, got {size}: {whole!r}. Rename it."
        )


def check_sizes(images: int, **sizes: int) -> None:
    """Refuse options that take more images than there are to train on.

    Args:
      images: how many there are to train on.
      sizes: option -> how many images it takes at once, such as a batch.

    Raises:
      ValueError: more than `images`.

    Example:
      >>> from experiments.datasets import check_sizes
      >>> check_sizes(1000, batch_size=60)
      >>> check_sizes(1000, batch_size=2000)
      Traceback (most recent call last):
      ValueError: Expected `batch_size` of at most 1,000, the images to train on, got 2,000.
    """
    for name, size in sizes.items():
        if size > images:
            raise ValueError(
                f"Expected `{name}` of at most {images:,}, the images to train on, got {size:,}."
            )
