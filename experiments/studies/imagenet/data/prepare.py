"""Turns a folder of images into shards, which are read many times faster than single files.

A shard has the images of one part of `folder.list_images`, whose order is random, so it is a random
sample. The notes of a finished shard are kept in a file beside it, so that an interrupted call can
be resumed and gives byte-identical shards. The index is written last, and makes the shards a
source.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from experiments.run_dir import read_json, replacing
from experiments.studies.imagenet.data.crops import open_image, to_rgb
from experiments.studies.imagenet.data.folder import Listing, Split, list_images
from experiments.studies.imagenet.data.image_source import even_shards
from experiments.studies.imagenet.data.shards import INDEX, VERSION, encode_record, sha256_of
from experiments.studies.imagenet.data.unreadable import LOG, UnreadableImages
from experiments.tasks.data import WrongData

# Images per shard: for ImageNet half a gigabyte each, and 257 training files. A reader keeps all of
# them open, and many systems limit a process to 1,024 open files.
EXAMPLES = 5_000
# Names of files that an interrupted call may have left.
OWN = re.compile(
    rf"lock|{LOG}|{INDEX}\.partial|(train|validation)-\d+-of-\d+\.(array_record|json)(\.partial)?"
)
SPLITS: tuple[Split, ...] = ("train", "validation")
OPTIONS = "group_size:1,uncompressed"  # One record per group; images are already compressed.


class Task(NamedTuple):
    """A shard to make."""

    split: Split
    path: Path
    names: list[str]
    """paths of its images within the folder"""
    labels: list[int]
    plan: str
    """checksum of everything that determines its content"""


class _Stopped(Exception):
    """Raised to stop a shard after another one has failed."""


def prepare(
    folder: Path, output: Path, *, shards: int | None = None, workers: int = 1, limit: int = 100
) -> dict[str, Any]:
    """Turn a folder of images into shards.

    Every image is decoded once to check it. Those that cannot be decoded are logged in
    `unreadable.jsonl` and left out. After an interruption, call this again with the same arguments:
    finished shards are kept.

    Args:
      folder: folder of images, see `folder.list_images`.
      output: new or empty folder, or what an interrupted call left.
      shards: number of training shards; validation shards are of about the same size. None puts
        about 5,000 images in each.
      workers: threads that read, decode and write.
      limit: number of images that may be unreadable.

    Returns:
      The index.

    Raises:
      ValueError: options out of range; an invalid folder, or one with too many unreadable images;
        an `output` that is already finished, or in use by another process.
      OSError: for example a full disk; finished shards stay, and no partial ones are left.
    """
    _check(folder, output, shards, workers, limit)
    listings = {split: list_images(folder, split) for split in SPLITS}
    classes = listings["train"].classes
    output.mkdir(parents=True, exist_ok=True)
    with _hold(output):
        log = output / LOG
        log.unlink(missing_ok=True)  # Images repaired since then must not count.
        unreadable = UnreadableImages(log, limit)
        tasks = _plan(folder, output, listings, shards)
        planned = {path for task in tasks for path in (task.path, _notes_of(task))}
        for path in {*output.glob("*-of-*.array_record*"), *output.glob("*-of-*.json")} - planned:
            path.unlink()  # From a call with other arguments, or incomplete.
        made = _make_all(folder, tasks, unreadable, workers)
        index = _index(classes, tasks, made)
        empty = [
            name for i, name in enumerate(classes) if not index["splits"]["train"]["counts"][i]
        ]
        if empty:
            raise WrongData(
                f"Expected readable training images of every class in {folder}, got none of "
                f"{empty[0]}. Add some, or remove its folder."
            )
        if not index["splits"]["validation"]["examples"]:
            raise WrongData(f"Expected readable validation images in {folder}, got none. Add some.")
        with replacing(output / INDEX) as partial:
            partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        for task in tasks:
            _notes_of(task).unlink()
    (output / "lock").unlink(missing_ok=True)
    return index


def _check(folder: Path, output: Path, shards: int | None, workers: int, limit: int) -> None:
    if (shards is not None and shards < 1) or workers < 1 or limit < 0:
        raise ValueError(
            "Expected `shards` and `workers` of at least 1, and `unreadable` of at least 0, got "
            f"{shards}, {workers} and {limit}."
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of images, got {folder}, which is not a folder."
        )
    inner, outer = output.resolve(), folder.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise ValueError(
            f"Expected an output outside the folder of images, got {output} and {folder}. Choose "
            "one beside it."
        )
    if (output / INDEX).exists():
        raise ValueError(
            f"Expected a new or empty output, got {output}, which has an {INDEX}: it is finished. "
            "Use it, or remove it to start over."
        )
    if output.exists() and not output.is_dir():
        raise ValueError(
            f"Expected a folder as output, got the file {output}. Choose another name."
        )
    others = sorted(path.name for path in output.glob("[!.]*") if not OWN.fullmatch(path.name))
    if others:
        raise ValueError(
            f"Expected a new or empty output, got {output}, which has {others[0]}. Choose "
            "another one, such as a folder in it."
        )


@contextlib.contextmanager
def _hold(output: Path) -> Generator[None]:
    """Lock the output against other processes."""
    with (output / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Expected an idle output, but another process is using {output}. Wait for it, or "
                "choose another output."
            ) from None
        yield


def _plan(
    folder: Path, output: Path, listings: dict[Split, Listing], shards: int | None
) -> list[Task]:
    """Divide the images of both splits into shards."""
    train = len(listings["train"].names)
    most = EXAMPLES if shards is None else -(-train // min(shards, train))
    tasks = []
    for split, listing in listings.items():
        parts = even_shards(len(listing.names), most)
        for i, part in enumerate(parts):
            names = listing.names[part.start : part.stop]
            labels = listing.labels[part.start : part.stop].tolist()
            digest = hashlib.sha256(json.dumps([VERSION, OPTIONS, listing.classes]).encode())
            for name, label in zip(names, labels, strict=True):
                size = (folder / name).stat().st_size
                digest.update(os.fsencode(f"{label} {size} {name}\n"))
            path = output / f"{split}-{i:05}-of-{len(parts):05}.array_record"
            tasks.append(Task(split, path, names, labels, digest.hexdigest()))
    return tasks


def _make_all(
    folder: Path, tasks: list[Task], unreadable: UnreadableImages, workers: int
) -> list[dict[str, Any]]:
    """Make all shards in threads; the first error stops all of them."""
    stop = threading.Event()
    total = sum(len(task.names) for task in tasks)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc="preparing", unit=" images", delay=2, disable=None) as progress,
    ):
        futures = {pool.submit(_make, folder, task, unreadable, stop): task for task in tasks}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except _Stopped:  # Because of an error that another future raises.
                    continue
                progress.update(len(futures[future].names))
        except BaseException:  # Including Ctrl-C.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _make(
    folder: Path, task: Task, unreadable: UnreadableImages, stop: threading.Event
) -> dict[str, Any]:
    """Make a shard, unless it is already finished, and return its notes."""
    notes = _read_notes(task)
    if notes is not None:
        for row in notes["unreadable"]:
            unreadable.add(**row)
        return notes
    bad, counts = [], Counter[int]()

    def records() -> Generator[bytes]:
        for name, label in zip(task.names, task.labels, strict=True):
            if stop.is_set():
                raise _Stopped
            try:
                image = _read(folder / name)
            except ValueError as error:
                bad.append({"name": name, "why": str(error)})
                unreadable.add(**bad[-1])
                continue
            counts[label] += 1
            yield encode_record(label, name, image)

    try:
        _write(task.path, records())
    except BaseException:
        stop.set()  # Before this thread starts the next shard.
        raise
    notes = {
        "plan": task.plan,
        "sha256": sha256_of(task.path),
        "examples": counts.total(),
        "counts": sorted(counts.items()),
        "unreadable": bad,
    }
    with replacing(_notes_of(task)) as partial:
        partial.write_text(json.dumps(notes), encoding="utf-8")
    return json.loads(json.dumps(notes))


def _read(path: Path) -> bytes:
    """Read an image file, and check that it can be decoded.

    Raises:
      ValueError: it cannot be read or decoded.
    """
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        image = path.read_bytes()
        to_rgb(open_image(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged files.
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    return image


def _write(path: Path, records: Iterable[bytes]) -> None:
    """Write a file of records atomically.

    Raises:
      OSError: for example a full disk.
    """
    with replacing(path) as partial:
        try:
            writer = ArrayRecordWriter(str(partial), OPTIONS)
            try:
                for record in records:
                    writer.write(record)
            finally:
                writer.close()
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if type(error) is RuntimeError:  # The writer's type for system errors.
                raise _os_error(error, path) from None
            raise


def _os_error(error: RuntimeError, path: Path) -> OSError:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
    code = next((each for each in codes if os.strerror(each) in str(error)), errno.EIO)
    return OSError(code, os.strerror(code), str(path))


def _notes_of(task: Task) -> Path:
    return task.path.with_suffix(".json")


def _read_notes(task: Task) -> dict[str, Any] | None:
    """Read the notes of a finished shard; None if there is none that follows this plan."""
    try:
        notes = read_json(_notes_of(task))
    except (FileNotFoundError, ValueError):
        return None
    is_finished = notes.get("plan") == task.plan and notes.get("sha256") == sha256_of(task.path)
    return notes if is_finished else None


def _index(
    classes: tuple[str, ...], tasks: list[Task], made: list[dict[str, Any]]
) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        counts, shards = [0] * len(classes), []
        for task, notes in zip(tasks, made, strict=True):
            if task.split == split:
                for label, count in notes["counts"]:
                    counts[label] += count
                shards.append({
                    "file": task.path.name,
                    "examples": notes["examples"],
                    "sha256": notes["sha256"],
                })  # fmt: skip
        splits[split] = {"examples": sum(counts), "counts": counts, "shards": shards}
    unreadable = [row["name"] for notes in made for row in notes["unreadable"]]
    return {
        "version": VERSION,
        "classes": list(classes),
        "splits": splits,
        "unreadable": unreadable,
    }
