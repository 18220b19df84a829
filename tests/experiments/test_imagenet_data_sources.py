"""Sources of images: folders, shards and arrays, and the error messages for invalid ones."""

import os
import re
from pathlib import Path

import grain
import numpy as np
import pytest
from imagenet_folders import CLASSES, change_index, jpeg, make_folder

from experiments.studies.imagenet.data import folder as folders
from experiments.studies.imagenet.data.crops import open_image
from experiments.studies.imagenet.data.image_source import ArraySource, check_enough, even_shards
from experiments.studies.imagenet.data.prepare import prepare
from experiments.studies.imagenet.data.shards import decode_record, encode_record
from experiments.studies.imagenet.data.source import open_source
from experiments.tasks.data import Dataset, WrongData, load_digits


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images") / "mine")


@pytest.fixture
def shards(images, tmp_path):
    prepare(images, tmp_path / "shards", shards=3)
    return tmp_path / "shards"


def test_the_digits_are_those_of_the_data_set():
    source, digits = open_source("digits", "train", None), load_digits()
    assert len(source) == len(digits.train_labels)
    assert source[5]["label"] == digits.train_labels[5]
    assert source.shards[0].start == 0
    assert source.shards[-1].stop == len(source)
    for channel in range(3):
        np.testing.assert_array_equal(source[5]["image"][..., channel], digits.train_images[5])
    described = source.describe()
    assert {**described, "sha256": ""} == {
        "name": "digits",
        "source": "scikit-learn",
        "examples": 1438,
        "sha256": "",
    }
    assert described["sha256"] != open_source("digits", "validation", None).describe()["sha256"]


def test_cifar10_is_read_once_for_both_splits(monkeypatch):
    images = np.arange(6 * 32 * 32 * 3).astype(np.uint8).reshape(6, 32, 32, 3)
    labels = np.arange(6, dtype=np.uint8)
    calls = []

    def load(*, data_dir):
        calls.append(data_dir)
        return Dataset("cifar10", "data folder", images[:4], labels[:4], images[4:], labels[4:])

    monkeypatch.setattr("experiments.tasks.cifar.load", load)
    folder = Path("of this test alone")
    train, test = (open_source("cifar10", split, folder) for split in ("train", "validation"))
    assert calls == [folder]
    assert len(train) == 4
    assert train.shards == (range(4),)
    assert test[1]["label"] == 5
    assert test.classes[5] == "dog"
    np.testing.assert_array_equal(test[1]["image"], images[5])


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_a_folder_has_every_image_once_with_the_label_of_its_folder(tmp_path, validation):
    folder = make_folder(tmp_path / "mine", [("train", 8), (validation, 4)])
    (folder / "train" / "ant" / ".hidden.jpg").write_bytes(b"")
    (folder / "train" / "ant" / "notes.txt").write_bytes(b"")
    for split, count, name in (("train", 8, "train"), ("validation", 4, validation)):
        source = open_source(str(folder), split, None)
        assert isinstance(source, grain.sources.RandomAccessDataSource)
        examples = [source[i] for i in range(len(source))]
        assert source.classes == CLASSES
        assert sorted(each["name"] for each in examples) == sorted(
            f"{name}/{label}/{i}.JPEG" for label in CLASSES for i in range(count)
        )
        for i, each in enumerate(examples):
            assert each["name"] == source.name_of(i)
            number = int(each["name"].split("/")[2].split(".")[0])
            assert each["image"] == jpeg(each["label"], number)


def test_images_are_held_out_of_a_folder_without_splits(tmp_path):
    folder = make_folder(tmp_path / "mine", [("", 10)])
    names = [
        {source.name_of(i) for i in range(len(source))}
        for source in (open_source(str(folder), split, None) for split in ("train", "validation"))
    ]
    assert len(names[0]) == 24
    assert len(names[1]) == 6
    assert not names[0] & names[1]
    assert {name.split("/")[0] for name in names[0]} == set(CLASSES)


def test_the_order_of_a_folder_is_random_and_not_the_file_systems(images, monkeypatch):
    source = open_source(str(images), "train", None)
    names, described = [source.name_of(i) for i in range(24)], source.describe()
    assert names != sorted(names)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(folders.os, "scandir", Backwards)
    again = open_source(str(images), "train", None)
    assert [again.name_of(i) for i in range(24)] == names
    assert again.describe() == described


def test_links_to_folders_are_followed_and_nothing_but_regular_files_is_read(tmp_path):
    folder = make_folder(tmp_path / "mine", [("train", 8), ("validation", 4)])
    (folder / "train" / "bee").rename(tmp_path / "elsewhere")
    (folder / "train" / "bee").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "elsewhere" / "pipe.jpg")
    source = open_source(str(folder), "train", None)
    assert len(source) == 24
    (folder / source.name_of(0)).unlink()
    os.mkfifo(folder / source.name_of(0))
    with pytest.raises(OSError, match="not a regular file"):
        source[0]


WRONG = {
    "no classes": ([("train", 0), ("validation", 0)], (), "at least two classes in .*, got none"),
    "one class": ([("", 5)], ("ant",), "at least two classes in .*, got ant"),
    "empty": ([("train", 0), ("validation", 1)], CLASSES, "got none in ant, bee, cat"),
    "one split": ([("train", 3)], CLASSES, "folders train and validation or val in .* got train"),
    "three": ([("train", 1), ("val", 1), ("validation", 1)], CLASSES, "train, validation, val"),
    "too few": ([("", 1)], CLASSES, "to hold out one in 5, got none to hold out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_folder_is_refused_with_what_is_wrong(tmp_path, case):
    splits, classes, message = WRONG[case]
    for split, _ in splits:
        (tmp_path / split).mkdir(exist_ok=True)
    make_folder(tmp_path, splits, classes)
    with pytest.raises(ValueError, match=message) as refused:
        open_source(str(tmp_path), "train", None)
    assert "\n" not in str(refused.value)


def test_a_class_that_is_held_out_as_a_whole_is_refused(tmp_path):
    """Many classes have one image each, and a fifth of these is held out."""
    folder = make_folder(tmp_path / "mine", [("", 1)], [f"{i:02}" for i in range(10)])
    with pytest.raises(WrongData, match=r"got no training images in \d\d, \d\d\. Add"):
        open_source(str(folder), "train", None)


def test_other_classes_in_one_split_are_refused(tmp_path):
    folder = make_folder(tmp_path / "mine")
    (folder / "validation" / "cat").rename(folder / "validation" / "cow")
    with pytest.raises(WrongData, match="got train/cat, validation/cow in only one"):
        open_source(str(folder), "train", None)


def test_no_folder_and_too_few_images_are_refused(tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"cifar10, digits or a folder of images, got .*no"):
        open_source(str(tmp_path / "none"), "train", None)
    source = open_source(str(images), "train", None)
    check_enough(source, 24)
    with pytest.raises(ValueError, match=r"at least 25 images in mine, .* got 24"):
        check_enough(source, 25)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 1, 2], "got a label 2"), ([0, 1], "got 2 labels")]
)
def test_labels_of_arrays_must_match(labels, message):
    with pytest.raises(ValueError, match=f"from 0 to 1 for each of the 3 images of x, {message}"):
        ArraySource("x", "", ("a", "b"), np.zeros((3, 2, 2, 3), np.uint8), np.array(labels))


def test_even_shards_cover_all():
    for examples, most in ((1, 5), (10, 3), (10_000, 1_250), (7, 1)):
        parts = even_shards(examples, most)
        assert [i for part in parts for i in part] == list(range(examples))
        sizes = {len(part) for part in parts}
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1
    assert even_shards(0, 5) == ()


# ---- Shards --------------------------------------------------------------------------------------


def test_shards_have_the_images_of_the_folder(images, shards):
    for split, count in (("train", 24), ("validation", 12)):
        source, files = (open_source(str(path), split, None) for path in (shards, images))
        assert source.classes == files.classes
        assert len(source) == count
        assert [source[i] for i in range(count)] == [files[i] for i in range(count)]
    assert len(source.shards) == 2
    assert [i for part in source.shards for i in part] == [*range(12)]
    assert source.name_of(6) == "validation-00001-of-00002.array_record, record 0"
    for label, name in ((300, "a/ü.jpg"), (0, "")):
        assert decode_record(encode_record(label, name, b"x")) == (label, name, b"x")


def test_a_shard_that_is_not_the_indexs_is_refused_before_it_is_parsed(shards, monkeypatch):
    path = shards / "train-00001-of-00003.array_record"
    whole = path.read_bytes()
    monkeypatch.setattr(grain.sources, "ArrayRecordDataSource", None)  # Must not be called.
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(WrongData, match=rf"{path.name} with sha256 .* as index.json says, got"):
            open_source(str(shards), "train", None)
    path.unlink()
    with pytest.raises(WrongData, match="got no such file"):
        open_source(str(shards), "train", None)


CHANGES = {
    "version": (lambda index: index.update(version=2), "expected version 1, got 2"),
    "no classes": (lambda index: index.pop("classes"), "no 'classes'"),
    "one more": (lambda index: index["classes"].append("dog"), "4 classes, but counts for 3"),
    "twice": (lambda index: index.update(classes=["ant", "bee", "ant"]), "a duplicate class"),
    "label": (lambda index: index.update(classes=["ant", 1, "cat"]), "a list of str, got"),
    "none of one": (
        lambda index: index["splits"]["train"].update(counts=[16, 0, 8]),
        "no images of bee",
    ),
    "fewer": (
        lambda index: index["splits"]["train"].update(counts=[8, 8, 7]),
        "23 images of all classes, but 24 of all shards",
    ),
    "no shards": (
        lambda index: index["splits"]["train"].update(shards=[], counts=[0] * 3),
        "no shards in train",
    ),
    "no images": (
        lambda index: index["splits"]["train"].update(
            counts=[0] * 3,
            shards=[{**row, "examples": 0} for row in index["splits"]["train"]["shards"]],
        ),
        "no images in train",
    ),
    "no split": (lambda index: index["splits"].pop("train"), "no 'train'"),
    "path": (
        lambda index: index["splits"]["train"]["shards"][0].update(file="../x"),
        "not all distinct file names",
    ),
    "text": (
        lambda index: index["splits"]["train"]["shards"][0].update(examples="8"),
        "a list of int, got",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_index_that_does_not_match_is_refused(shards, case):
    change, message = CHANGES[case]
    change_index(shards / "index.json", change)
    with pytest.raises(WrongData, match=f"{re.escape(message)}.*Prepare the folder again") as told:
        open_source(str(shards), "train", None)
    assert "\n" not in str(told.value)


def test_another_number_of_records_and_a_label_of_no_class_are_refused(shards):
    def fewer(index):
        index["splits"]["train"].update(counts=[8, 8, 7])
        index["splits"]["train"]["shards"][0]["examples"] -= 1

    change_index(shards / "index.json", fewer)
    with pytest.raises(WrongData, match=r"Expected 23 records in the shards of .* got 24"):
        open_source(str(shards), "train", None)

    def lacking(index):
        index["classes"].pop()
        index["splits"]["validation"].update(counts=[6, 6])

    change_index(shards / "index.json", lacking)
    source = open_source(str(shards), "validation", None)
    with pytest.raises(WrongData, match=r"a label from 0 to 1, .* got 2 in validation-0000\d"):
        [source[i] for i in range(12)]


def test_a_record_that_is_cut_short_is_refused():
    with pytest.raises(ValueError, match="at least 6 bytes, got 3"):
        decode_record(b"abc")
    with pytest.raises(ValueError, match="a name of 5 bytes, got 4"):
        decode_record(encode_record(1, "a.jpg", b"")[:-1])


def test_an_image_of_a_shard_is_decoded(shards):
    example = open_source(str(shards), "validation", None)[0]
    assert open_image(example["image"]).size == (40, 30)
