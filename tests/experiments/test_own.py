"""The user's own images: files and folders, and the error messages for invalid ones."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.studies.whitening.measure import pixels
from experiments.study import Study, load
from experiments.tasks import own

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (60, 9, 11), np.uint8), np.arange(60) % 3
GOOD = {"x_train": X[:45], "y_train": Y[:45], "x_test": X[45:], "y_test": Y[45:]}


def npz(path, **arrays):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def png(path, image, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(image)
    (made.convert(mode) if mode else made).save(path)


@pytest.fixture
def folder(tmp_path):
    """A folder of classes a, b, c with 50, 40 and 30 images."""
    for label, (name, count) in enumerate({"a": 50, "b": 40, "c": 30}.items()):
        for i in range(count):
            image = np.full((6, 8), 100 + 50 * label, np.uint8)
            image[0, 0] = i
            png(tmp_path / "mine" / name / f"{i:03}.png", image)
    return tmp_path / "mine"


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_file_is_read_as_it_was_written(tmp_path, dtype):
    arrays = {**GOOD, "y_train": GOOD["y_train"].astype(dtype)}
    dataset = load(str(npz(tmp_path / "mine.npz", **arrays)), None, needed=(45, 15))
    np.testing.assert_array_equal(dataset.train_images, X[:45], strict=True)
    np.testing.assert_array_equal(dataset.test_labels, Y[45:].astype(np.uint8), strict=True)
    described = dataset.describe()
    assert (described["name"], described["source"]) == ("mine", "own file")
    other = npz(tmp_path / "other.npz", **{**GOOD, "x_test": X[44:59]})
    assert own.load(other).describe()["sha256"] != described["sha256"]


BAD = {
    "no array": ({"y_test": None}, "x_train, y_train, x_test: y_test missing"),
    "floats": ({"x_train": X[:45] / 255}, r"uint8 .* got float64 of shape \(45, 9, 11\), 0 to 1"),
    "colors": ({"x_test": X[45:, ..., None]}, r"x_test .* got uint8 of shape \(15, 9, 11, 1\)"),
    "no images": ({"x_test": X[:0], "y_test": Y[:0]}, r"got uint8 of shape \(0, 9, 11\)"),
    "other size": ({"x_test": X[45:, 1:]}, r"of the same size in .*, got \(9, 11\) and \(8, 11\)"),
    "tiny": ({"x_train": X[:45, :3], "x_test": X[45:, :3]}, "at least 4 x 4 pixels .* got 11 x 3"),
    "dark": ({"x_train": X[:45] // 16}, "from 0 to 255 .* got 0 to 15 .* Rescale them"),
    "float labels": ({"y_train": Y[:45] / 1}, "y_train .* integer for each .* got float64"),
    "few labels": ({"y_test": Y[46:]}, r"each of the 15 images of x_test, got int64 .* \(14,\)"),
    "pickled": ({"y_test": np.array([None] * 15)}, "plain arrays in .* in y_test: Object arrays"),
    "from 1": ({"y_train": Y[:45] + 1, "y_test": Y[45:] + 1}, "labels 0 to 2 .* got 1, 2, 3 there"),
    "negative": ({"y_train": Y[:45] - 1}, "labels 0 to 3 .* got -1, 0, 1 there and -1, 0, 1, 2 in"),
    "only tested": ({"y_test": Y[45:] + 1}, "0 to 3 .* got 0, 1, 2 there and 0, 1, 2, 3 in all"),
    "many": ({"y_train": np.arange(45) % 11}, "2 to 10 classes .* got 11"),
    "one": ({"y_train": 0 * Y[:45], "y_test": 0 * Y[45:]}, "2 to 10 classes .* got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_array_is_refused_by_name(tmp_path, case):
    arrays, message = BAD[case]
    path = npz(tmp_path / "mine.npz", **{**GOOD, **arrays})
    with pytest.raises(own.WrongData, match=message) as refused:
        own.load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


class Opened:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("case", ["text", "pickle", "pickle inside", "cut", "damaged"])
def test_another_file_is_refused_and_never_unpickled(tmp_path, case):
    path = npz(tmp_path / "mine.npz", **GOOD)
    content = path.read_bytes()
    if case == "pickle inside":
        path = npz(tmp_path / "mine.npz", **{**GOOD, "x_test": None})
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("x_test.npy", pickle.dumps(Opened()))
    else:
        damaged = content[:900] + bytes(99) + content[999:]
        others = {"text": b"x", "pickle": pickle.dumps(Opened()), "cut": content[:-99]}
        path.write_bytes({**others, "damaged": damaged}[case])
    with pytest.raises(own.WrongData, match=r"with np\.savez") as refused:
        own.load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_fewer_images_than_needed_are_refused(tmp_path):
    path = npz(tmp_path / "mine.npz", **GOOD)
    with pytest.raises(ValueError, match=r"at least 60 training and 1 test .* got 45 and 15 in"):
        load(str(path), None, needed=(60, 1))
    with pytest.raises(FileNotFoundError, match="found neither"):
        own.load(tmp_path / "nothing")


# ---- Folders -------------------------------------------------------------------------------------


def test_a_folder_is_split_once_and_for_all(folder, capsys):
    dataset = own.load(folder)
    assert dataset.train_images.shape == (96, 6, 8)
    assert dataset.test_images.shape == (24, 6, 8)
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 1, 1], 100 + 50 * labels)  # Labels match images.
    assert len({(label, i) for label, i in zip(labels, images[:, 0, 0], strict=True)}) == 120
    np.testing.assert_array_equal(np.bincount(labels), [50, 40, 30])
    assert dataset.describe() == own.load(folder).describe()
    assert (dataset.name, dataset.source) == ("mine", "own folder")
    assert capsys.readouterr().err == ""


def test_other_files_are_no_images(folder):
    before = own.load(folder).describe()
    (folder / "README.txt").write_text("a file, not a class")
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / ".hidden.png").write_bytes(b"no image")
    (folder / ".git").mkdir()
    assert own.load(folder).describe() == before


def test_colors_become_gray_and_sizes_those_of_the_first(folder, capsys):
    png(folder / "a" / "z.jpg", np.full((6, 8, 3), 90, np.uint8))
    png(folder / "b" / "z.png", np.full((12, 16), 90, np.uint8))
    dataset = own.load(folder)
    images = np.concatenate([dataset.train_images, dataset.test_images])
    assert images.shape == (122, 6, 8)
    assert (images == 90).all((1, 2)).sum() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "resized 1 of 122 images to the first one's 8 x 6 pixels" in line


UNREADABLE = {
    "text": (lambda path: path.write_bytes(b"no image"), "cannot identify"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:50]), ""),
    "16 bits": (lambda path: png(path, np.full((6, 8), 999, np.uint16)), "mode I;16"),
    "alpha": (lambda path: png(path, np.zeros((6, 8, 4), np.uint8)), "mode RGBA"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_few_unreadable_images_are_left_out_by_name_and_many_refused(folder, capsys, case):
    damage, reason = UNREADABLE[case]
    damage(folder / "b" / "003.png")
    dataset = own.load(folder)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 119
    (line,) = capsys.readouterr().err.splitlines()
    assert f"left out 1 of 120 images, which cannot be read: b/003.png ({reason}" in line
    damage(folder / "c" / "007.png")
    with pytest.raises(own.WrongData, match=r"1 in 100 .* got 2 of 120: b/003.png .*, c/007.png"):
        own.load(folder)


def test_classes_without_images_too_many_and_none_are_refused(folder, tmp_path):
    (folder / "d").mkdir()
    with pytest.raises(own.WrongData, match=r"in every folder of .*, got none in d"):
        own.load(folder)
    for i in range(9):
        (folder / f"e{i}").mkdir()
    with pytest.raises(own.WrongData, match=r"2 to 10 classes .* got 13"):
        own.load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(own.WrongData, match=r"a folder of images for each class in .*, got none"):
        own.load(tmp_path / "empty")


# ---- In a study ----------------------------------------------------------------------------------


def test_own_data_do_not_pass_for_others_of_their_name(tmp_path, monkeypatch):
    assert own.load(npz(tmp_path / "mnist.npz", **GOOD)).name == "own mnist"
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path / "digits")
    assert own.name_of(Path(".")) == "own digits"


def test_a_study_keeps_what_they_are_under_their_name(tmp_path):
    from experiments import run_dir
    from experiments.studies.whitening.config import Config

    path = str(npz(tmp_path / "mine.npz", **GOOD))
    with run_dir.create(tmp_path / "runs", "whitening", Config(dataset=path)) as run:
        dataset = Study("whitening", run).dataset(path)
        assert run.read("data_mine.json") == dataset.describe()
        assert Study("whitening", run).dataset(path).describe() == dataset.describe()


def test_pixels_that_fill_no_square_are_left_out():
    images = np.repeat(np.repeat(X[:, :2, :3], 4, 1), 4, 2)
    np.testing.assert_array_equal(pixels(images), pixels(np.pad(images, ((0, 0), (0, 3), (0, 1)))))
    np.testing.assert_allclose(pixels(images), X[:, :2, :3].reshape(60, 6) / 255, rtol=1e-6)
