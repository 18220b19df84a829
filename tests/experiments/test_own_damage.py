"""The user's own images, damaged or with unexpected content: each is reported in one line."""

import io
import os
import socket
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import plotting
from experiments.datasets import check_dataset
from experiments.run_dir import create
from experiments.studies.mnist_mlp.fig1 import CURVES
from experiments.studies.mnist_mlp.figures import plot_accuracy
from experiments.studies.whitening.config import Config
from experiments.study import Study
from experiments.tasks import own

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (60, 9, 11), np.uint8), np.arange(60) % 3
GOOD = {"x_train": X[:45], "y_train": Y[:45], "x_test": X[45:], "y_test": Y[45:]}


class Opened:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def member(array):
    """Write an array like a member of an .npz file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(shape):
    """Write the header of an array without its data."""
    file = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def packed(**members):
    """Write an .npz file with the given bytes as additional or replaced members."""
    file = io.BytesIO()
    content = {name: member(array) for name, array in GOOD.items()} | members
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def doubled():
    """Write an .npz file in which one name occurs twice."""
    file = io.BytesIO(packed())
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x_test.npy", member(X[45:]))
    return file.getvalue()


def bomb():
    """Write an .npz file whose central directory says that one member unpacks to 64 GiB."""
    content = bytearray(packed())
    entry = content.index(b"PK\x01\x02")
    # The unpacked size, in the 64-bit extra field.
    extra = struct.pack("<HHQ", 1, 8, 64 * 2**30)
    name_length = struct.unpack_from("<H", content, entry + 28)[0]
    struct.pack_into("<I", content, entry + 24, 0xFFFFFFFF)
    struct.pack_into("<H", content, entry + 30, len(extra))
    content[entry + 46 + name_length : entry + 46 + name_length] = extra
    end = content.rindex(b"PK\x05\x06")
    size = struct.unpack_from("<I", content, end + 12)[0]
    struct.pack_into("<I", content, end + 12, size + len(extra))
    return bytes(content)


OBJECTS = np.array([Opened()] * 15, object)
FILES = {
    "empty": (b"", "complete .npz file, got an empty one"),
    "cut": (packed()[:-70], "complete .npz file, got a truncated one"),
    "cut early": (packed()[:900], "complete .npz file, got a truncated one"),
    "one array": (member(X), "complete .npz file, got a .npy file, which holds one array"),
    "pickle": (b"\x80\x04N.", "complete .npz file, got a pickle, which is never opened"),
    "twice": (doubled(), "each array once in .*, got x_test more than once. Write it again"),
    "bomb": (bomb(), r"at most 4 GiB in .*, got 64\.0 GiB\. Use fewer"),
    "no data": (packed(x_test=header((10**6,))), "plain arrays in .*, got an error in x_test: EOF"),
    "endless": (
        packed(x_test=header((10**18,))),
        "plain arrays in .*, got an error in x_test: .+ Write",
    ),
    "no header": (packed(y_test=b"x" * 99), "plain arrays in .*, got an error in y_test: .+ Write"),
    "long header": (
        packed(y_test=b"\x93NUMPY\x02\x00" + struct.pack("<I", 99_999) + b" " * 99_999),
        "plain arrays in .*, got an error in y_test: Header info length .+ Write",
    ),
    "objects": (
        packed(y_test=member(OBJECTS)),
        "got an error in y_test: Object arrays cannot be loaded",
    ),
    "record of objects": (
        packed(x_test=member(np.zeros(3, [("a", object)]))),
        "got an error in x_test: Object arrays cannot be loaded",
    ),
}
IMAGES = {
    "one row": (X[:, 0, 0], r"got uint8 of shape \(45,\), .* x\.reshape\(-1, height, width\)"),
    "five axes": (X[..., None, None], r"got uint8 of shape \(45, 9, 11, 1, 1\), .* x\.reshape"),
    "colors": (np.stack([X] * 3, -1), r"uint8 of shape \(45, 9, 11, 3\), .* x\.mean\(-1\)"),
    "16 bits": (X.astype(np.uint16) * 257, r"got uint16 of .*, \d+ to 65535\. If .* \(x / 257\)"),
    "whole numbers": (X.astype(int), r"got int64 of .*, 0 to 255\. Use x\.astype\(np\.uint8\)"),
    "complex": (X / 255 + 0j, r"got complex128 of shape \(45, 9, 11\)\. .* \(255 \* x\)"),
    "NaN": (
        np.where(X > 200, np.nan, X / 255),
        r"got float64 of .*, not all finite\. If .* \(255 \* x\)",
    ),
    "text": (X.astype("U3"), r"got <U3 of shape \(45, 9, 11\)\."),
    "truth": (X > 127, r"got bool of shape \(45, 9, 11\)\. .* \(255 \* x\)"),
    "none": (X[:0], r"got uint8 of shape \(0, 9, 11\)\. Add images\."),
    "no pixels": (X[:, :0], r"of the same size in .*, got \(0, 11\) and"),
}
LABELS = {
    "floats": (
        Y + 0.5,
        r"45 images of x_train, got float64 of shape \(45,\)\. .* y\.astype\(int\)",
    ),
    "strings": (
        Y.astype(str),
        r"got <U21 of shape \(45,\)\. .* np\.unique\(y, return_inverse=True\)",
    ),
    "bytes": (Y.astype("S1"), r"got \|S1 of shape \(45,\)\. .* np\.unique"),
    "negative": (Y - 1, r"Expected labels 0 to 3 .*, got -1, 0, 1 there .* Number the classes"),
    "large": (Y.astype(np.uint64) + np.uint64(2**63), "Expected labels 0 to .* Number the classes"),
    "a column each": (np.eye(3, dtype=int)[Y], r"got int64 of shape \(45, 3\)\. .* y\.argmax\(1\)"),
    "one column": (Y[:, None], r"got int64 of shape \(45, 1\)\. Give it the shape \(45,\)\."),
    "one for all": (np.array(1), r"got int64 of shape \(\)\. Give it the shape \(45,\)\."),
}


def refused(path, message):
    with pytest.raises(own.WrongData, match=message) as error:
        own.load(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file_is_refused_in_one_line_and_never_unpickled(tmp_path, case):
    content, message = FILES[case]
    (tmp_path / "mine.npz").write_bytes(content)
    refused(tmp_path / "mine.npz", message)


@pytest.mark.parametrize("case", [*IMAGES, *LABELS])
def test_an_array_of_another_kind_is_refused_with_what_makes_it_right(tmp_path, case):
    name, (array, message) = "x_train" if case in IMAGES else "y_train", (IMAGES | LABELS)[case]
    np.savez(tmp_path / "mine.npz", **{**GOOD, name: array[:45] if array.ndim else array})
    refused(tmp_path / "mine.npz", message)


def test_other_colors_in_training_and_test_are_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", **{**GOOD, "x_test": np.stack([X[45:]] * 3, -1)})
    refused(tmp_path / "mine.npz", r"x_test in .*, got uint8 of shape \(15, 9, 11, 3\)")


# ---- Not a regular file --------------------------------------------------------------------------


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NO_FILES = {
    "pipe": os.mkfifo,
    "socket": socket_at,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": os.mkdir,
    "lost link": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)  # A socket's path is limited to about 100 bytes.
    for label in "ab":
        os.makedirs(f"mine/{label}")
        for i in range(60):
            Image.fromarray(X[i]).save(f"mine/{label}/{i:02}.png")
    NO_FILES[case](tmp_path.__class__("mine/b/7.png"))
    opened, read = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, **options: opened.append(path) or read(path, **options)
    )
    dataset = own.load(tmp_path.__class__("mine"))
    assert len(dataset.train_labels) + len(dataset.test_labels) == 120
    assert all(path.is_file() for path in opened)
    (line,) = capsys.readouterr().err.splitlines()
    assert "left out 1 of 121 images, which cannot be read: b/7.png (not a regular file)" in line


# ---- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (os.fsdecode(b"caf\xe9"), "folder name in UTF-8, without control characters, got"),
        ("two\nlines", "folder name in UTF-8, without control characters, got"),
        ("\x1b[31mred", "folder name in UTF-8, without control characters, got"),
        ("n" * 245, "at most 200 bytes, as files of a run are named after it, got 245: '.*n'"),
        ("가" * 80, "at most 200 bytes, as files of a run are named after it, got 240: '.*가'"),
    ],
    ids=["bytes", "line end", "escape", "long", "long in bytes"],
)
def test_a_name_that_no_report_or_file_can_have_is_refused_at_once(
    tmp_path, monkeypatch, name, message
):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for dataset in (str(tmp_path / name), "."):  # "." stands for the same folder.
        with pytest.raises(ValueError, match=message) as error:
            check_dataset(dataset)
        assert str(error.value).endswith("Rename it.")
        str(error.value).encode()
        assert len(str(error.value).splitlines()) == 1


def test_files_are_named_after_the_longest_name(tmp_path):
    path = tmp_path / f"{'n' * 200}.npz"
    np.savez(path, **GOOD)
    check_dataset(str(path))
    with create(tmp_path / "runs", "whitening", Config(dataset=str(path))) as run:
        Study("whitening", run).dataset(str(path))
        assert (run.path / f"data_{'n' * 200}.json").is_file()


def test_the_data_of_a_study_may_have_a_name_in_any_language(tmp_path):
    path = tmp_path / "손글씨 $\\nothing_$.npz"
    np.savez(path, **GOOD)
    check_dataset(str(path))
    name = own.load(path).name
    assert name == path.stem
    curves = {name: np.linspace(0, 0.9, 6).reshape(3, 2) for name in CURVES}
    fig = plotting.figure()
    plot_accuracy(fig.axes[0], np.array([0, 10, 20]), curves, name)
    plotting.save(fig, tmp_path / "fig")  # A missing glyph would warn.
    assert name not in (tmp_path / "fig.svg").read_text(encoding="utf-8")
