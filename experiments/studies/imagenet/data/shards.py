"""A source of shards: ArrayRecord files with many labeled images each, and their index.

A record is the label (4 bytes) and the length of the name (2 bytes), both little-endian, then the
name in UTF-8 and the image file. The index, `index.json`, has the class names and, for each split,
the number of images of each class and the file name, number of records and sha256 of each shard.
The checksums of all shards are verified before any record is read.
"""

import functools
import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grain
import numpy as np
from tqdm import tqdm

from experiments.run_dir import read_json
from experiments.studies.imagenet.data.image_source import Example, ImageSource
from experiments.tasks.data import WrongData

INDEX = "index.json"
VERSION = 1
HEADER = struct.Struct("<IH")
MEND = "Prepare the folder again."


class Shard(NamedTuple):
    """An entry of the index."""

    file: str
    examples: int
    sha256: str


class Index(NamedTuple):
    """The classes, and for one split the number of images of each class and the shards."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    shards: tuple[Shard, ...]


def encode_record(label: int, name: str, image: bytes) -> bytes:
    """Encode a record.

    Example:
      >>> from experiments.studies.imagenet.data.shards import decode_record, encode_record
      >>> decode_record(encode_record(7, "cat/1.jpg", b"..."))
      (7, 'cat/1.jpg', b'...')
    """
    encoded = os.fsencode(name)
    return HEADER.pack(label, len(encoded)) + encoded + image


def decode_record(record: bytes) -> tuple[int, str, bytes]:
    """Return the label, name and image file of a record.

    Raises:
      ValueError: the record is too short.
    """
    if len(record) < HEADER.size:
        raise ValueError(f"expected at least {HEADER.size} bytes, got {len(record)}")
    label, length = HEADER.unpack_from(record)
    end = HEADER.size + length
    if len(record) < end:
        raise ValueError(f"expected a name of {length} bytes, got {len(record) - HEADER.size}")
    return label, os.fsdecode(record[HEADER.size : end]), record[end:]


class ShardSource(ImageSource):
    """A source of records in shards."""

    def __init__(self, folder: Path, split: Literal["train", "validation"]) -> None:
        """Check the index and all shards of the split.

        Raises:
          WrongData: an invalid index, or a shard that does not match it.
        """
        self.folder = folder.resolve()
        self._index = read_index(folder / INDEX, split)
        check_shards(folder, self._index.shards)
        paths = [str(self.folder / shard.file) for shard in self._index.shards]
        self._records = grain.sources.ArrayRecordDataSource(paths)
        ends = np.cumsum([0, *(shard.examples for shard in self._index.shards)]).tolist()
        ranges = tuple(map(range, ends[:-1], ends[1:]))
        super().__init__(self.folder.name, "own shards", self._index.classes, ranges)
        if len(self._records) != len(self):
            raise WrongData(
                f"Expected {len(self):,} records in the shards of {folder}, as {INDEX} says, got "
                f"{len(self._records):,}. {MEND}"
            )

    def __getitem__(self, index: int) -> Example:
        """Read a record.

        Raises:
          OSError: the record cannot be read.
          WrongData: the record is invalid, or its label is not a class.
        """
        try:
            record = self._records[index]
        except RuntimeError as error:  # The reader's type for system errors.
            raise OSError(str(error)) from None
        try:
            label, name, image = decode_record(record)
        except ValueError as error:
            raise WrongData(f"Expected a labeled image in {self.name_of(index)}: {error}") from None
        if label >= len(self.classes):
            raise WrongData(
                f"Expected a label from 0 to {len(self.classes) - 1}, a class in {INDEX}, got "
                f"{label} in {self.name_of(index)}, {name}. {MEND}"
            )
        return {"image": image, "label": label, "name": name}

    def name_of(self, index: int) -> str:
        """Name the shard, and the record in it."""
        shard = int(np.searchsorted([each.stop for each in self.shards], index, "right"))
        record = index - self.shards[shard].start
        return f"{self._index.shards[shard].file}, record {record}"

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of the shards' checksums."""
        return hashlib.sha256(
            "".join(each.sha256 for each in self._index.shards).encode()
        ).hexdigest()


def read_index(path: Path, split: str) -> Index:
    """Read one split of an index.

    Raises:
      WrongData: the file is not what `prepare` writes.
    """
    try:
        content = read_json(path)
        if content.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION}, got {content.get('version')!r}")
        classes = _of(content["classes"], str)
        part = content["splits"][split]
        counts = _of(part["counts"], int)
        shards = tuple(
            Shard(
                *_of([row["file"]], str), *_of([row["examples"]], int), *_of([row["sha256"]], str)
            )
            for row in part["shards"]
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise WrongData(f"Expected {path} as it was prepared, got: {reason}. {MEND}") from None
    _check_index(path, split, Index(classes, counts, shards))
    return Index(classes, counts, shards)


def check_shards(folder: Path, shards: tuple[Shard, ...]) -> None:
    """Verify that the shards have the checksums of the index.

    Raises:
      WrongData: a shard differs; the message names the first one.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(sha256_of, [folder / shard.file for shard in shards])
        # Delayed, since a few files take no time.
        progress = tqdm(shards, "checking shards", delay=2, leave=False, disable=None)
        for shard, got in zip(progress, digests, strict=True):
            if got != shard.sha256:
                raise WrongData(
                    f"Expected {folder / shard.file} with sha256 {shard.sha256}, as {INDEX} says, "
                    f"got {got or 'no such file'}: it is damaged or a different file. {MEND}"
                )


def sha256_of(path: Path) -> str | None:
    """Return the checksum of a file; None if it is missing or not a regular file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(values: Any, kind: type) -> tuple[Any, ...]:
    """Return the values of a list, which must all be of one type."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"expected a list of {kind.__name__}, got {str(values)[:100]}")
    return tuple(values)


def _check_index(path: Path, split: str, index: Index) -> None:
    """Check that an index does not contradict itself."""
    classes, counts, shards = index
    empty = [name for name, count in zip(classes, counts, strict=False) if count < 1]
    names = [shard.file for shard in shards]
    examples = sum(shard.examples for shard in shards)
    problem = ""
    if not shards or not examples:
        problem = "no images" if shards else "no shards"
    elif len(counts) != len(classes):
        problem = f"{len(classes)} classes, but counts for {len(counts)}"
    elif len(set(classes)) < len(classes):
        problem = "a duplicate class"
    elif split == "train" and empty:
        problem = f"no images of {empty[0]}"
    elif sum(counts) != examples or min([*counts, 0]) < 0:
        problem = f"{sum(counts):,} images of all classes, but {examples:,} of all shards"
    elif any(Path(name).name != name for name in names) or len(set(names)) < len(names):
        problem = f"shards {', '.join(names[:3])}, which are not all distinct file names"
    if problem:
        raise WrongData(f"Expected {path} as it was prepared, got {problem} in {split}. {MEND}")
