"""The user's own images: a .npz file, or a folder with one folder of image files per class.

A file has the arrays x_train and x_test, uint8 gray levels (N, H, W), and y_train and y_test,
integers 0 to K - 1. The folders of classes, sorted by name, are labels 0 to K - 1; a fixed random
fifth of their images is for testing.
"""

import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from experiments import sampling
from experiments.tasks.data import SHA256, Dataset, WrongData

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
CLASSES = 10  # Number of outputs of the networks.
SMALLEST = 4  # Minimum side in pixels: the study `whitening` averages four by four.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
MODES = ("1", "L", "P", "RGB")  # Pillow modes that lose nothing but color as 8 bits of gray.
UNREADABLE = 100  # One in this many images may be unreadable.
MOST_BYTES = 4 * 2**30  # Limit for a file's arrays, which compressed may be a millionth of that.
OTHERS = {  # First bytes of files that are not .npz files.
    b"\x93NUMPY": "a .npy file, which holds one array",
    b"PK": "a truncated one",
    b"\x80": "a pickle, which is never opened",
}
TAKEN = (*SHA256, "digits", "cifar10", "titanic")  # Names that the user's own data may not have.


def load(path: Path) -> Dataset:
    """Load the user's own images, named after the file or folder.

    Args:
      path: a `.npz` file, or a folder with one folder of images per class, which are converted to
        gray and resized to the first one's size if necessary.

    Returns:
      Dataset. Images left out or resized are reported on stderr.

    Raises:
      FileNotFoundError: there is neither a file nor a folder.
      WrongData: the content is invalid; the message says how.

    Example:
      >>> np.savez("mine.npz", x_train=..., y_train=..., x_test=..., y_test=...)  # doctest: +SKIP
      >>> load(Path("mine.npz")).name  # doctest: +SKIP
      'mine'
    """
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_npz(path)
    raise FileNotFoundError(f"Expected a .npz file or a folder of images in {path}, found neither.")


def name_of(path: Path) -> str:
    """Name a data set after its file or folder, but never like a built-in one."""
    name = path.resolve().stem
    return f"own {name}" if name in TAKEN else name


# ---- A file --------------------------------------------------------------------------------------


def read_npz(path: Path) -> Dataset:
    """Read the four arrays of a `.npz` file, never unpickling anything.

    Raises:
      WrongData: it is not such a file, or an array is missing or invalid.
    """
    mend = f"Write {', '.join(ARRAYS)} with np.savez."
    if not zipfile.is_zipfile(path):
        raise WrongData(f"Expected {path} to be a complete .npz file, got {_kind(path)}. {mend}")
    part, arrays = "", []
    try:
        _check_members(path)
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise WrongData(
                    f"Expected {', '.join(ARRAYS)} in {path}, got {', '.join(file) or 'none'}: "
                    f"{', '.join(missing)} missing. {mend}"
                )
            for name in ARRAYS:
                part = f" in {name}"
                arrays.append(file[name])
                if not isinstance(arrays[-1], np.ndarray):  # NumPy returns other members as bytes.
                    raise ValueError("not an array")
    except WrongData:
        raise
    except Exception as error:  # zipfile, its codecs and NumPy raise a dozen different types.
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise WrongData(
            f"Expected plain arrays in {path}, got an error{part}: {reason}. {mend}"
        ) from error
    x_train, y_train, x_test, y_test = arrays
    for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        _check_images(f"x_{part} in {path}", images)
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise WrongData(
                f"Expected y_{part} in {path} with an integer for each of the {len(images):,} "
                f"images of x_{part}, got {labels.dtype} of shape {labels.shape}. "
                f"{_mend_labels(labels, len(images))}"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise WrongData(
            f"Expected x_train and x_test of the same size in {path}, got {x_train.shape[1:]} and "
            f"{x_test.shape[1:]} pixels. Resize one to match the other."
        )
    return _make(path, "own file", x_train, y_train, x_test, y_test)


def _kind(path: Path) -> str:
    """Say what a file that is not an .npz file is, judging by its first bytes."""
    with path.open("rb") as file:
        begin = file.read(8)
    if not begin:
        return "an empty one"
    return next(
        (kind for start, kind in OTHERS.items() if begin.startswith(start)), "something else"
    )


def _check_members(path: Path) -> None:
    """Refuse duplicate arrays, and too many bytes, before any array is read.

    Raises:
      WrongData: an array is there twice, or the arrays exceed `MOST_BYTES`.
      zipfile.BadZipFile: the file has no list of its members.
    """
    with zipfile.ZipFile(path) as file:
        members = [(info.filename.removesuffix(".npy"), info.file_size) for info in file.infolist()]
    counts = Counter(name for name, _ in members)
    twice = [name for name in ARRAYS if counts[name] > 1]
    if twice:
        raise WrongData(
            f"Expected each array once in {path}, got {', '.join(twice)} more than once. Write it "
            "again with np.savez."
        )
    # The declared sizes can be trusted: no more than that is unpacked of a member.
    size = sum(size for name, size in members if name in ARRAYS)
    if size > MOST_BYTES:
        raise WrongData(
            f"Expected arrays of at most {MOST_BYTES / 2**30:g} GiB in {path}, as they are read "
            f"whole, got {size / 2**30:,.1f} GiB. Use fewer or smaller images."
        )


def _check_images(what: str, images: np.ndarray) -> None:
    if images.dtype == np.uint8 and images.ndim == 3 and len(images):
        return
    span = ""
    if images.size and images.dtype.kind in "iuf":
        is_finite = np.isfinite(images).all()
        span = f", {images.min():g} to {images.max():g}" if is_finite else ", not all finite"
    raise WrongData(
        f"Expected {what} of uint8 gray levels, 0 to 255, and of shape (images, height, width), "
        f"got {images.dtype} of shape {images.shape}{span}. {_mend_images(images)}"
    )


def _mend_images(images: np.ndarray) -> str:
    if not images.size:
        return "Add images."
    if images.ndim == 4:
        return "If the last axis is colors, use x.mean(-1).round().astype(np.uint8)."
    if images.ndim != 3:
        return "Give each image its rows with x.reshape(-1, height, width)."
    if images.dtype.kind in "iu":
        if images.min() >= 0 and images.max() <= 255:
            return "Use x.astype(np.uint8)."
        return "If values range to 65,535, use (x / 257).round().astype(np.uint8)."
    return "If values range from 0 to 1, use (255 * x).round().astype(np.uint8)."


def _mend_labels(labels: np.ndarray, images: int) -> str:
    if labels.ndim == 2 and len(labels) == images and labels.shape[1] > 1:
        return "If y has a column for each class, use y.argmax(1)."
    if labels.shape != (images,):
        return f"Give it the shape ({images},)."
    if labels.dtype.kind in "USO":
        return "Number names from 0 with np.unique(y, return_inverse=True)[1]."
    return "Convert whole numbers with y.astype(int)."


# ---- A folder ------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Dataset:
    """Read the images of all classes, and draw those for testing.

    Raises:
      WrongData: no classes or too many, a class without images, or too many unreadable images.
    """
    classes = sorted(path for path in _visible(folder) if path.is_dir())
    if not classes:
        raise WrongData(
            f"Expected a folder of images for each class in {folder}, got none. For mnist and the "
            "like, use --data-dir."
        )
    _check_count(str(folder), len(classes))
    of_class = [
        sorted(path for path in _visible(each) if path.suffix.lower() in SUFFIXES)
        for each in classes
    ]
    empty = [each.name for each, files in zip(classes, of_class, strict=True) if not files]
    if empty:
        raise WrongData(
            f"Expected images ({', '.join(SUFFIXES)}) in every folder of {folder}, got none in "
            f"{_first(empty)}. Add some, or remove the folder."
        )
    files = [(label, path) for label, paths in enumerate(of_class) for path in paths]
    images, labels = read_images(folder, files)
    # Not by class, so that the draw depends only on the number of images.
    order = sampling.rng(0, "test images of a folder").permutation(len(labels))
    test, train = np.split(order, [len(labels) // 5])
    return _make(folder, "own folder", images[train], labels[train], images[test], labels[test])


def read_images(
    folder: Path, files: list[tuple[int, Path]]
) -> tuple[UInt8[np.ndarray, "N H W"], Int[np.ndarray, "N"]]:
    """Read images with their labels, resized to the first one's size; a few may be unreadable."""
    images, labels, failed, resized = [], [], [], 0
    for label, path in files:
        try:
            image = read_image(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())  # One line.
            failed.append(f"{path.relative_to(folder)} ({reason})")
            continue
        size = images[0].shape if images else (image.height, image.width)
        if (image.height, image.width) != size:
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            resized += 1
        images.append(np.asarray(image))
        labels.append(label)
    if len(failed) * UNREADABLE > len(files):
        raise WrongData(
            f"Expected at most 1 in {UNREADABLE} images in {folder} to be unreadable, got "
            f"{len(failed)} of {len(files):,}: {_first(failed)}. Fix or remove them."
        )
    if failed:
        print(
            f"{folder}: left out {len(failed)} of {len(files):,} images, which cannot be read: "
            f"{_first(failed)}",
            file=sys.stderr,
        )
    if resized:
        height, width = images[0].shape
        print(
            f"{folder}: resized {resized:,} of {len(files):,} images to the first one's {width} x "
            f"{height} pixels",
            file=sys.stderr,
        )
    return np.stack(images), np.array(labels)


def read_image(path: Path) -> Image.Image:
    """Read an image as 8-bit gray levels.

    Raises:
      OSError, SyntaxError, ValueError, Image.DecompressionBombError: it cannot be read.
    """
    if not path.is_file():  # Opening a pipe would block forever, and a device may do anything.
        raise OSError("not a regular file")
    with Image.open(path, formats=FORMATS) as image:
        if image.mode not in MODES or "transparency" in image.info:
            mode = f"mode {image.mode}" if image.mode not in MODES else "transparency"
            raise ValueError(f"{mode}, not 8-bit gray or RGB")
        return image.convert("L")


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# ---- Both ----------------------------------------------------------------------------------------


def _make(
    path: Path,
    source: str,
    x_train: UInt8[np.ndarray, "N H W"],
    y_train: Shaped[np.ndarray, "N"],
    x_test: UInt8[np.ndarray, "M H W"],
    y_test: Shaped[np.ndarray, "M"],
) -> Dataset:
    """Check the arrays from a file or folder, and make the data set."""
    if min(x_train.shape[1:]) < SMALLEST:
        raise WrongData(
            f"Expected images of at least {SMALLEST} x {SMALLEST} pixels in {path}, got "
            f"{x_train.shape[2]} x {x_train.shape[1]}."
        )
    if x_train.max() <= 127:  # `data.binary` would turn all of it into background.
        raise WrongData(
            f"Expected gray levels from 0 to 255 in {path}, got {x_train.min()} to {x_train.max()} "
            "in the training images. Rescale them."
        )
    classes = np.unique(np.concatenate([y_train, y_test]))
    _check_count(str(path), len(classes))
    if not np.array_equal(np.unique(y_train), np.arange(len(classes))):
        raise WrongData(
            f"Expected labels 0 to {len(classes) - 1} in {path}, each with training images, got "
            f"{', '.join(map(str, np.unique(y_train)))} there and {', '.join(map(str, classes))} "
            "in all. Number the classes from 0, and give each more images."
        )
    labels = (labels.astype(np.uint8) for labels in (y_train, y_test))
    y_train, y_test = labels
    return Dataset(name_of(path), source, x_train, y_train, x_test, y_test)


def _check_count(where: str, classes: int) -> None:
    if not 2 <= classes <= CLASSES:
        raise WrongData(
            f"Expected 2 to {CLASSES} classes in {where}, as the networks have at most {CLASSES} "
            f"outputs, got {classes}."
        )
