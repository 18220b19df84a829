"""A source of image files: one folder per class, in folders `train` and `validation`.

Without these two, the class folders hold all images, and a fixed random fifth of them is used for
validation. Subfolders of class folders are not searched. The images are sorted by name and then put
in a fixed random order, so nothing depends on the file system.
"""

import errno
import functools
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from experiments import sampling
from experiments.studies.imagenet.data.image_source import (
    SHARD_EXAMPLES,
    Example,
    ImageSource,
    even_shards,
)
from experiments.tasks.data import WrongData

SUFFIXES = (".jpg", ".jpeg", ".png")
HELD_OUT = 5  # One image in this many is used for validation if there is no folder for it.
VALIDATION = ("validation", "val")  # Accepted names of the validation folder.
Split = Literal["train", "validation"]


class Listing(NamedTuple):
    """Image files, in the order of the source."""

    classes: tuple[str, ...]
    names: list[str]
    """paths within the folder"""
    labels: Int32[np.ndarray, "N"]


class FolderSource(ImageSource):
    """Image files, read one by one."""

    def __init__(self, folder: Path, split: Split) -> None:
        """List the files, without reading them.

        Raises:
          WrongData: invalid classes, see `list_images`.
        """
        self.folder = folder.resolve()
        self._listing = list_images(folder, split)
        classes, names, _ = self._listing
        shards = even_shards(len(names), SHARD_EXAMPLES)
        super().__init__(self.folder.name, "own folder", classes, shards)

    def __getitem__(self, index: int) -> Example:
        """Read a file, without decoding it.

        Raises:
          OSError: the file cannot be read.
        """
        path = self.folder / self._listing.names[index]
        if not path.is_file():  # Opening a pipe would block; a device could do anything.
            raise OSError(errno.ENOENT, "not a regular file", str(path))
        return {
            "image": path.read_bytes(),
            "label": int(self._listing.labels[index]),
            "name": self._listing.names[index],
        }

    def name_of(self, index: int) -> str:
        """Return the path of a file within the folder."""
        return self._listing.names[index]

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of the names and sizes of all files; their content may be too much to read."""
        digest = hashlib.sha256()
        for name in self._listing.names:
            digest.update(os.fsencode(f"{name}\n{(self.folder / name).stat().st_size}\n"))
        return digest.hexdigest()


def list_images(folder: Path, split: Split) -> Listing:
    """List the images of a split.

    Raises:
      WrongData: fewer than two classes; a class without images; a folder for only one of the
        splits; or splits with different classes.
    """
    folders = _split_folders(folder)
    if not folders:
        return _hold_out(folder, _list_classes(folder), split)
    listed = {each: _list_classes(path) for each, path in folders.items()}
    train, validation = listed["train"], listed["validation"]
    if train.keys() != validation.keys():
        alone = [f"{folders['train'].name}/{name}" for name in train if name not in validation]
        alone += [
            f"{folders['validation'].name}/{name}" for name in validation if name not in train
        ]
        raise WrongData(
            f"Expected the same classes in {folders['train']} and {folders['validation']}, got "
            f"{_first(alone)} in only one. Add a folder of images to the other, or remove it."
        )
    names, labels = _flatten(listed[split], f"{folders[split].name}/")
    order = sampling.rng(0, f"order of the images of a folder, {split}").permutation(len(names))
    return Listing(tuple(train), [names[i] for i in order], labels[order])


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of both splits, or none if neither exists."""
    train = folder / "train"
    validation = [folder / name for name in VALIDATION if (folder / name).is_dir()]
    if train.is_dir() and len(validation) == 1:
        return {"train": train, "validation": validation[0]}
    if not train.is_dir() and not validation:
        return {}
    found = [path.name for path in (train, *validation) if path.is_dir()]
    raise WrongData(
        f"Expected folders train and {' or '.join(VALIDATION)} in {folder}, or neither, got "
        f"{', '.join(found)}. Add or remove one; without them, images are held out at random."
    )


def _list_classes(folder: Path) -> dict[str, list[str]]:
    """List the names of each class's images in sorted order.

    Raises:
      WrongData: fewer than two classes, or a class without images.
    """
    with os.scandir(folder) as entries:
        classes = sorted(each.name for each in entries if _is_visible(each) and each.is_dir())
    if len(classes) < 2:
        raise WrongData(
            f"Expected a folder of images for each of at least two classes in {folder}, got "
            f"{', '.join(classes) or 'none'}. Give each class its own folder of images."
        )
    files = {}
    for name in classes:
        with os.scandir(folder / name) as entries:
            files[name] = sorted(
                each.name
                for each in entries
                if _is_visible(each) and each.name.lower().endswith(SUFFIXES) and each.is_file()
            )
    empty = [name for name in classes if not files[name]]
    if empty:
        raise WrongData(
            f"Expected images ({', '.join(SUFFIXES)}) in every folder of {folder}, got none in "
            f"{_first(empty)}. Add some, or remove the folder."
        )
    return files


def _hold_out(folder: Path, files: dict[str, list[str]], split: Split) -> Listing:
    """Split all images at random, and list those of one split."""
    names, labels = _flatten(files, "")
    order = sampling.rng(0, "images of a folder that are held out").permutation(len(names))
    validation, train = np.split(order, [len(names) // HELD_OUT])
    classes = tuple(files)
    counts = Counter(labels[train].tolist())
    lacking = [name for label, name in enumerate(classes) if not counts[label]]
    if lacking or not len(validation):
        without = f"no training images in {_first(lacking)}" if lacking else "none to hold out"
        raise WrongData(
            f"Expected enough images in {folder} to hold out one in {HELD_OUT}, got {without}. Add "
            "images, or put them in folders train and validation."
        )
    rows = train if split == "train" else validation
    return Listing(classes, [names[i] for i in rows], labels[rows])


def _flatten(files: dict[str, list[str]], prefix: str) -> tuple[list[str], np.ndarray]:
    names = [f"{prefix}{of}/{name}" for of, each in files.items() for name in each]
    labels = np.repeat(
        np.arange(len(files), dtype=np.int32), [len(each) for each in files.values()]
    )
    return names, labels


def _is_visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".")


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
