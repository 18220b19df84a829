"""Splits: parts of the data set that share no image, drawn at random."""

import numpy as np
import pytest

from experiments.tasks import data
from experiments.tasks.split import Split, sample_split, sample_splits, spread

DIGITS = data.load_digits()


def rows(images):
    return [image.tobytes() for image in np.ascontiguousarray(images)]


def test_parts_share_no_image_and_keep_their_labels():
    made = sample_split(DIGITS, lambda x: x, validation=300, dtype=np.uint8)
    assert [len(labels) for _, labels in made] == [len(DIGITS.train_labels) - 300, 300, 359]
    known = dict(zip(rows(DIGITS.train_images), DIGITS.train_labels, strict=True))
    given = [*rows(made.train[0]), *rows(made.validation[0])]
    assert sorted(given) == sorted(known)  # Every image exactly once.
    labels = [*made.train[1], *made.validation[1]]
    assert [known[image] for image in given] == labels
    np.testing.assert_array_equal(made.test[0], DIGITS.test_images)


def test_images_to_choose_on_are_drawn_from_all_over():
    """MNIST's last images are easier."""
    numbered = data.Dataset(
        "numbers", "test", np.arange(200)[:, None, None], np.zeros(200), *[np.arange(9)] * 2
    )
    made = sample_split(numbered, lambda x: x, validation=100)
    assert 80 < made.validation[0].mean() < 120
    assert made.train[0].dtype == np.float32
    assert made.train[1].dtype == np.int32
    others = sample_split(numbered, lambda x: x, validation=100, seed=1)
    assert set(others.validation[0].ravel()) != set(made.validation[0].ravel())


def test_splits_of_seeds_are_stacked_over_the_same_test_images():
    made = sample_splits(DIGITS, data.binary, range(2), validation=30, train=50, test=40)
    assert [x.shape[:-1] for x, _ in made] == [(2, 50), (2, 30), (40,)]
    one = sample_split(DIGITS, data.binary, validation=30, train=50, test=40, seed=1)
    np.testing.assert_array_equal(made.train[0][1], one.train[0])
    assert isinstance(made, Split)


def test_too_few_images_are_refused():
    with pytest.raises(
        ValueError, match="at least 2001 training images, some for training and 2000"
    ):
        sample_split(DIGITS, data.binary, validation=2000)
    with pytest.raises(ValueError, match="at least 1500 training images, 1400"):
        sample_split(DIGITS, data.binary, validation=100, train=1400)


def test_some_are_spread_over_all():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 5).tolist() == [0, 1, 2]
