"""CIFAR-10 without unpickling: pixels and labels are read at fixed offsets of known files.

Each member of the archive is a Python 2 pickle, which could run arbitrary code, so none is ever
unpickled. A matching checksum fixes their bytes, and thereby the offsets of the arrays in them,
which were found with `pickletools.dis`; it runs nothing. The 30,720,000 bytes of pixels come after
139 bytes of headers, which come after the list of labels: ten times a mark, 1000 labels, each an
opcode and a byte, and an opcode that appends them.
"""

import hashlib
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from jaxtyping import UInt8

from experiments.tasks.data import DOWNLOAD_TIMEOUT, Dataset, MissingData, how_to_give

OFFICIAL = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{OFFICIAL}"
# The official archive, and a smaller one with the same members.
ARCHIVES = {
    OFFICIAL: "md5:c58f30108f718f92721af3b95e74349a",
    "cifar-10-python.tar.xz": (
        "sha256:2d13cd1a395e74eb8794dba31e995bf6842be11684d6e0ae4a6f376db8a8e63c"
    ),
}
SHA256 = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}
TEST = "test_batch"
BATCHES = len(SHA256) - 1  # Files of training images.
# Images in each member, and values of each image: red, green, blue, each row by row.
IMAGES, PIXELS = 10_000, 3 * 32 * 32
APPENDED = 1_000  # Labels that one opcode appends to the list.
LABELS_BYTES = IMAGES // APPENDED * (1 + 2 * APPENDED + 1)
HEADERS_BYTES = 139  # Between labels and pixels.


def load(*, train_batches: int = BATCHES, data_dir: Path | None = None) -> Dataset:
    """Load CIFAR-10: images (N, 32, 32, 3).

    Args:
      train_batches: how many of the five files of 10,000 training images to read. The archive is
        unpacked in memory, only as far as needed, which takes a few seconds.
      data_dir: folder that holds `cifar10/` with the archive, compressed by gzip or xz; None uses
        the environment variable JBN_DATA. Without either, the official archive is downloaded once
        to the user's cache.

    Raises:
      ValueError: a file is not the official one.
      FileNotFoundError: the given folder has no archive, or there is no network.
    """
    if not 1 <= train_batches <= BATCHES:
        raise ValueError(f"Expected `train_batches` of 1 to {BATCHES}, got {train_batches}.")
    given = data_dir or os.environ.get("JBN_DATA")
    path = _from_folder(Path(given) / "cifar10") if given else _download()
    _check(path.name, pooch.file_hash(str(path), ARCHIVES[path.name].split(":")[0]), path.name)
    train = [f"data_batch_{i}" for i in range(1, train_batches + 1)]
    read = {}
    with tarfile.open(path) as archive:  # One pass, up to the last member needed.
        for member in archive:
            name = Path(member.name).name
            file = archive.extractfile(member)
            if file is not None and name in (*train, TEST):
                content = file.read()
                _check(f"{name} of {path}", hashlib.sha256(content).hexdigest(), name)
                read[name] = parse(content, pixels_at=20217 if name == TEST else 20218)
            if len(read) == train_batches + 1:
                break
    images, labels = zip(*(read[name] for name in train), strict=True)
    return Dataset(
        "cifar10",
        "data folder" if given else "download",
        np.concatenate(images),
        np.concatenate(labels),
        *read[TEST],
    )


def parse(
    content: bytes, *, pixels_at: int
) -> tuple[UInt8[np.ndarray, "N 32 32 3"], UInt8[np.ndarray, "N"]]:
    """Extract images and labels from a member of the archive."""
    pixels = np.frombuffer(content, np.uint8, IMAGES * PIXELS, pixels_at)
    list_at = pixels_at - HEADERS_BYTES - LABELS_BYTES
    rows = np.frombuffer(content, np.uint8, LABELS_BYTES, list_at).reshape(-1, 2 * APPENDED + 2)
    labels = rows[:, 1:-1].reshape(IMAGES, 2)[:, 1]  # Without marks and opcodes.
    images = pixels.reshape(IMAGES, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _check(what: str, got: str, name: str) -> None:
    expected = {**ARCHIVES, **SHA256}[name].split(":")[-1]
    if got != expected:
        raise ValueError(
            f"Expected {what} with checksum {expected}, got {got}: it is truncated, damaged or "
            f"another file. Remove it and download {URL} again."
        )


def _from_folder(folder: Path) -> Path:
    for name in ARCHIVES:
        if (folder / name).is_file():
            return folder / name
    raise MissingData(
        f"Expected {' or '.join(ARCHIVES)} in {folder}, found neither. Download {URL} there, or "
        "set neither --data-dir nor JBN_DATA to have it downloaded.",
        name=folder.name,
        files=[str(folder / OFFICIAL)],
    )


def _download() -> Path:
    pooch.get_logger().setLevel(logging.CRITICAL)
    fetch: Any = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT)
    try:
        return Path(
            pooch.retrieve(
                URL,
                known_hash=ARCHIVES[OFFICIAL],
                fname=OFFICIAL,
                path=pooch.os_cache("jbn") / "cifar10",
                downloader=fetch,
            )
        )
    except (OSError, ValueError) as error:  # No connection, or not the official file.
        file = f"cifar10/{OFFICIAL}"
        raise MissingData(
            f"Expected to download {URL}, got {type(error).__name__}. {how_to_give(file)}",
            name="cifar10",
            files=[file],
            failure=type(error).__name__,
        ) from error
