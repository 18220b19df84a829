"""What a config may ask of its data: a data set that there is, and sizes that it has.

Standard library alone: what is wrong is told before anything slow is imported.
"""

from pathlib import Path

from experiments.checks import did_you_mean

NAMES = ("mnist", "fashion_mnist", "digits")


def check_dataset(dataset: str) -> None:
    """Refuse what is neither the name of a data set nor a path to one's own.

    Args:
      dataset: one of `NAMES`, a `.npz` file or a folder, see `experiments.tasks.own`.

    Raises:
      ValueError: neither.

    Example:
      >>> from experiments.datasets import check_dataset
      >>> check_dataset("mnist")
      >>> check_dataset("mnits")
      Traceback (most recent call last):
      ValueError: Expected mnist, fashion_mnist, digits, a .npz file or a folder, got 'mnits'. ...
    """
    path = Path(dataset)
    is_own = path.is_dir() or (path.suffix == ".npz" and path.is_file())
    if dataset in NAMES or (dataset and is_own):
        return
    raise ValueError(
        f"Expected {', '.join(NAMES)}, a .npz file or a folder, got {dataset!r}."
        + did_you_mean(dataset, NAMES)
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
