"""Data sets: idx files from a folder, else downloaded once, else the digits in scikit-learn.

No file is unpacked before its checksum is verified.
"""

import gzip
import hashlib
import importlib.util
import logging
import os
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from jaxtyping import UInt8

ROLES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}

DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
SHA256 = {
    "mnist": {
        "train_images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train_labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "test_images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "test_labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion_mnist": {
        "train_images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train_labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "test_images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "test_labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}

MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
}

PUT_THERE = "Put them there, or set neither --data-dir nor JBN_DATA to download them."
DOWNLOAD_TIMEOUT = 5.0  # Seconds to connect and between bytes; short, to fail fast when offline.


class WrongData(ValueError):
    """A file is not the official one, or the examples are not those that a run began with."""


class MissingData(FileNotFoundError):
    """A data set is missing.

    Attributes:
      name: name of the data set.
      files: paths of the missing files; relative to a data folder, as `how_to_give` takes them, if
        no folder was given.
      failure: the download error, in one word; empty if a folder was given.
    """

    def __init__(self, message: str, *, name: str, files: Sequence[str], failure: str = ""):
        """Store the attributes; `message` says what was expected, what happened, and the remedy."""
        super().__init__(message)
        self.name, self.files, self.failure = name, tuple(files), failure


@dataclass(frozen=True)
class Dataset:
    """Labeled images with gray levels from 0 (background) to 255, and their origin."""

    name: str
    source: str
    train_images: UInt8[np.ndarray, "N H W"] = field(repr=False)
    train_labels: UInt8[np.ndarray, "N"] = field(repr=False)
    test_images: UInt8[np.ndarray, "N H W"] = field(repr=False)
    test_labels: UInt8[np.ndarray, "N"] = field(repr=False)

    def describe(self) -> dict[str, str | int]:
        """Describe what a run was trained on, with a checksum of the examples themselves."""
        digest = hashlib.sha256()
        for role in ROLES:
            digest.update(getattr(self, role).tobytes())
        return {
            "name": self.name,
            "source": self.source,
            "train_examples": len(self.train_labels),
            "test_examples": len(self.test_labels),
            "sha256": digest.hexdigest(),
        }


def load(
    name: str = "mnist",
    *,
    data_dir: Path | None = None,
    needed: tuple[int, int] = (0, 0),
    digits_may_do: bool = True,
) -> Dataset:
    """Load a data set from a folder, or download it, or fall back on scikit-learn's digits.

    Args:
      name: "mnist", "fashion_mnist" or "digits".
      data_dir: folder that holds `mnist/train-images-idx3-ubyte.gz` and so on; None uses the
        environment variable JBN_DATA. Without either, the files are downloaded once to the user's
        cache.
      needed: number of training and test images; the digits are no substitute if they are fewer.
      digits_may_do: whether the digits may be a substitute at all.

    Returns:
      Dataset. If the download fails, the digits, and one line on stderr saying so.

    Raises:
      ValueError: the name is unknown, or a file is not the official one.
      FileNotFoundError: the given folder lacks the files, or the download failed and the digits are
        no substitute.
    """
    if name == "digits":
        return load_digits()
    if name not in SHA256:
        raise ValueError(f"Expected one of {', '.join([*SHA256, 'digits'])}, got {name!r}.")
    given = data_dir or os.environ.get("JBN_DATA")
    if given:
        paths, source = _from_folder(Path(given) / name, SHA256[name]), "data folder"
    else:
        try:
            paths, source = download(name, pooch.os_cache("jbn") / name), "download"
        except OSError as error:
            return _stand_in(name, type(error).__name__, needed, digits_may_do)
    return Dataset(name, source, **{role: read_idx(path) for role, path in paths.items()})


def _stand_in(name: str, failure: str, needed: tuple[int, int], digits_may_do: bool) -> Dataset:
    """Return the digits in place of a data set that could not be downloaded, or raise an error."""
    digits = load_digits()
    has = len(digits.train_labels), len(digits.test_labels)
    if digits_may_do and has[0] >= needed[0] and has[1] >= needed[1]:
        print(
            f"{name} could not be downloaded ({failure}): using the 1,797 small digits inside "
            "scikit-learn instead. For the real images, pass --data-dir.",
            file=sys.stderr,
        )
        return digits
    short = "cannot stand in for one of several data sets"
    if digits_may_do:
        short = f"have {has[0]:,} training and {has[1]:,} test images of the {needed[0]:,} and "
        short += f"{needed[1]:,} that the options ask for"
    files = [f"{name}/{file}" for file in ROLES.values()]
    raise MissingData(
        f"Expected {name}, which could not be downloaded ({failure}), and the digits inside "
        f"scikit-learn {short}. {how_to_give(*files)}",
        name=name,
        files=files,
        failure=failure,
    )


def how_to_give(*files: str) -> str:
    """Say how to proceed without a network; `files` are relative to a data folder."""
    return (
        f"Fetch {', '.join(f'DIR/{file}' for file in files)} elsewhere and pass --data-dir DIR, or "
        "pass --preset smoke, which needs no files."
    )


def all_missing(missing: Sequence[MissingData]) -> FileNotFoundError:
    """Combine the errors of several data sets into one that lists all files and says what to do."""
    if len(missing) == 1:
        return missing[0]
    files = [file for error in missing for file in error.files]
    failures = sorted({error.failure for error in missing})
    if failures == [""]:
        return FileNotFoundError(
            f"Expected the data files {', '.join(files)}, found none there. {PUT_THERE}"
        )
    names = [error.name for error in missing]
    return FileNotFoundError(
        f"Expected {', '.join(names[:-1])} and {names[-1]}, which could not be downloaded "
        f"({', '.join(failures)}), and the digits inside scikit-learn cannot stand in for one of "
        f"several data sets. {how_to_give(*files)}"
    )


def check_enough(dataset: Dataset, needed: tuple[int, int]) -> None:
    """Refuse a data set with fewer training or test images than are needed.

    Raises:
      ValueError: it has fewer.
    """
    has = len(dataset.train_labels), len(dataset.test_labels)
    if has[0] < needed[0] or has[1] < needed[1]:
        raise ValueError(
            f"Expected at least {needed[0]:,} training and {needed[1]:,} test images, as the "
            f"options require, including batches and held-out images, got {has[0]:,} and "
            f"{has[1]:,} in {dataset.name}. Ask for fewer, or use another data set."
        )


def _from_folder(folder: Path, sha256: Mapping[str, str]) -> dict[str, Path]:
    paths = {role: folder / file for role, file in ROLES.items()}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise MissingData(
            f"Expected the data files {', '.join(missing)}, found none there. {PUT_THERE}",
            name=folder.name,
            files=missing,
        )
    for role, path in paths.items():
        check_sha256(path, sha256[role])
    return paths


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not byte for byte the official one."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise WrongData(
            f"Expected {path} with sha256 {expected}, got {got} ({path.stat().st_size} bytes): it "
            "is truncated, damaged or another file. Remove it and download it again."
        )


def download(name: str, folder: Path) -> dict[str, Path]:
    """Download the files of a data set that `folder` lacks, from the first mirror that has them.

    Each is written under a temporary name and renamed atomically once its checksum is verified:
    no partial file is left, and two processes cannot disturb each other.

    Raises:
      OSError: no mirror could be reached, or none had the right files.
    """
    pooch.get_logger().setLevel(logging.CRITICAL)
    fetch: Any = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT)
    failure = OSError(f"no mirror of {name}")
    for mirror in MIRRORS[name]:
        try:
            return {
                role: Path(
                    pooch.retrieve(
                        mirror + file,
                        known_hash=f"sha256:{SHA256[name][role]}",
                        fname=file,
                        path=folder,
                        downloader=fetch,
                    )
                )
                for role, file in ROLES.items()
            }
        except OSError as error:  # No connection, or the mirror lacks the file.
            failure = error
        except ValueError as error:  # Not the official file; pooch has removed it.
            failure = OSError(str(error))
    raise failure


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read a gzipped idx file of bytes: magic 0x0800 + rank, the sizes, then the values.

    Returns:
      uint8, of the shape that the file states.

    Raises:
      ValueError: not gzip, truncated, wrong magic number, more or fewer values than stated.
    """
    mend = "Remove it and download it again."
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"Expected {path} to be a complete gzip file, got: {error}. {mend}"
        ) from error
    rank = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * rank:
        raise ValueError(
            f"Expected {path} to start with an idx magic number of bytes (2049 for labels, 2051 "
            f"for images), got {int.from_bytes(content[:4], 'big')}. {mend}"
        )
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"Expected {path} to hold {shape} values as its header says, got {values.size}. {mend}"
        )
    return values.reshape(shape)


def load_digits() -> Dataset:
    """Load the 1,797 handwritten digits inside scikit-learn, scaled to the size of MNIST's.

    8x8 pixels of 0 to 16 become 28x28 pixels of 0 to 255: each pixel is tripled in width and
    height, and a margin of two pixels is added. A fixed random fifth is for testing.
    """
    pixels, digits = _read_digits()
    large = np.kron(pixels.reshape(-1, 8, 8), np.ones((1, 3, 3))) * 255 / 16
    images = np.pad(large.round().astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    labels = np.asarray(digits, np.uint8)
    # Not from `sampling`: this split is part of the definition of the data set.
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(labels) // 5])
    return Dataset(
        "digits", "scikit-learn", images[train], labels[train], images[test], labels[test]
    )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's file directly, as its import takes seconds; import it if that fails."""
    spec = importlib.util.find_spec("sklearn")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() == DIGITS_SHA256:
            text = gzip.decompress(content).decode()
            rows = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
            return rows[:, :-1], rows[:, -1]
    from sklearn.datasets import load_digits as sklearn_digits

    pixels, digits = sklearn_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(digits)


def binary(images: UInt8[np.ndarray, "N H W"]) -> UInt8[np.ndarray, "N features"]:
    """Convert gray levels to 0 and 1, with each image as one row of pixels."""
    return (images.reshape(len(images), -1) > 127).astype(np.uint8)
