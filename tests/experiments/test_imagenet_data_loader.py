"""Batches of images depend on seed and position only, not on who reads them or how often."""

import json
import multiprocessing
from collections import Counter

import numpy as np
import pytest
from imagenet_folders import make_folder
from PIL import Image

from experiments.studies.imagenet.data import crops
from experiments.studies.imagenet.data.image_source import ArraySource
from experiments.studies.imagenet.data.loader import evaluation_batches, train_batches
from experiments.studies.imagenet.data.order import Epochs, epoch_order
from experiments.studies.imagenet.data.rate import measure_rate
from experiments.studies.imagenet.data.source import open_source
from experiments.studies.imagenet.data.unreadable import UnreadableImages
from experiments.tasks.data import WrongData

OPTIONS = {"size": 8, "seed": 3, "strength": 0.5, "min_area": 0.08, "order": "within_shards"}


def source_of(count, shard_examples=5):
    """Make images of one color, whose color and label are their index."""
    images = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 6, 6, 3))
    classes = tuple(map(str, range(count)))
    return ArraySource(
        "colors",
        "",
        classes,
        images.astype(np.uint8),
        np.arange(count),
        shard_examples=shard_examples,
    )


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], strict=True)


# ---- Order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["shuffled", "within_shards", "fixed"])
def test_every_epoch_has_every_example_once(order):
    shards = source_of(23).shards
    epochs = Epochs(order, 0, shards)
    drawn = [[epochs[23 * epoch + i] for i in range(23)] for epoch in range(4)]
    assert all(sorted(each) == list(range(23)) for each in drawn)
    assert drawn[0] != list(range(23))
    assert len(set(map(tuple, drawn))) == (1 if order == "fixed" else 4)
    assert drawn[0] != epoch_order(order, 1, 0, shards).tolist()
    if order != "shuffled":
        assert drawn[0] == epoch_order("within_shards", 0, 0, shards).tolist()
        met = [[k for i in each for k in range(len(shards)) if i in shards[k]] for each in drawn]
        # Shard by shard, with a different order of shards in each epoch.
        orders = {tuple(dict.fromkeys(each)) for each in met}
        assert all(np.count_nonzero(np.diff(each)) == len(shards) - 1 for each in met)
        assert len(orders) == (1 if order == "fixed" else 4)


def test_within_shards_no_batch_is_met_again_and_fixed_meets_all_again():
    source = source_of(80, shard_examples=20)
    for order, distinct in (("within_shards", 5 * 16), ("shuffled", 5 * 16), ("fixed", 16)):
        batches = take(train_batches(source, batch_size=5, **{**OPTIONS, "order": order}), 5 * 16)
        members = Counter(frozenset(each) for each in labels(batches))
        assert len(members) == distinct
        assert set(members.values()) == {5 * 16 // distinct}


# ---- Training batches ----------------------------------------------------------------------------


def test_a_batch_is_random_windows_of_images_in_order():
    source = open_source("digits", "train", None)
    batch = take(train_batches(source, batch_size=4, **OPTIONS), 1)[0]
    assert batch["image"].shape == (4, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    rows = epoch_order("within_shards", 3, 0, source.shards)[:4]
    assert batch["label"].tolist() == [source[i]["label"] for i in rows]
    again, other = (
        take(train_batches(source, batch_size=4, **{**OPTIONS, **changed}), 1)[0]
        for changed in ({}, {"strength": 0})
    )
    assert_equal([batch], [again])
    assert not np.array_equal(batch["image"], other["image"])
    # With nothing to sample, each image is used whole, as it is or mirrored.
    whole = take(
        train_batches(source, batch_size=1, **{**OPTIONS, "strength": 0, "min_area": 1}), 1
    )[0]["image"][0]
    image = Image.fromarray(source[rows[0]]["image"])
    small = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    assert any(np.array_equal(whole, each) for each in (small, small[:, ::-1]))


def test_a_batch_of_several_hosts_is_that_of_one_in_parts():
    source = source_of(26)
    whole = take(train_batches(source, batch_size=4, **OPTIONS), 13)
    parts = [
        take(train_batches(source, batch_size=2, host=i, hosts=2, **OPTIONS), 13) for i in (0, 1)
    ]
    put_together = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*parts, strict=True)
    ]
    assert_equal(put_together, whole)
    epoch, next_one = np.array(labels(whole)).reshape(2, 26)
    assert sorted(epoch) == sorted(next_one) == list(range(26))


def test_from_a_state_it_goes_on_to_the_very_next_example():
    source = source_of(23)
    undisturbed = take(train_batches(source, batch_size=4, **OPTIONS), 12)
    batches = train_batches(source, batch_size=4, **OPTIONS)
    first = [next(batches) for _ in range(7)]
    state = json.loads(json.dumps(batches.get_state()))
    ahead = [next(batches) for _ in range(2)]
    batches.set_state(state)
    assert batches.get_state() == state
    rest = take(batches, 5)
    assert_equal([*first, *rest], undisturbed)
    assert_equal(ahead, rest[:2])
    # Two hosts resume where one left off.
    host = train_batches(source, batch_size=2, host=1, hosts=2, **OPTIONS)
    host.set_state(state)
    assert labels(take(host, 1)) == [undisturbed[7]["label"][2:].tolist()]


def test_processes_read_the_same_as_threads(tmp_path):
    """They also resume from a state, name unreadable images, and leave no process behind."""
    folder = make_folder(tmp_path / "mine")
    (folder / "train" / "bee" / "2.JPEG").write_bytes(b"")
    source, log = open_source(str(folder), "train", None), tmp_path / "log.jsonl"
    undisturbed = take(train_batches(source, batch_size=4, **OPTIONS), 10)
    with train_batches(source, batch_size=4, workers=1, log=log, **OPTIONS) as batches:
        other = train_batches(source, batch_size=4, **OPTIONS)
        take(other, 5)
        batches.set_state(other.get_state())
        assert_equal([next(batches) for _ in range(5)], undisturbed[5:])
        assert batches.get_state()["position"] == 40
        # SIGTERM to all processes of a job is for the main one, so workers continue for a while.
        # A worker that is killed, for example when memory runs out, is an error.
        (process,) = multiprocessing.active_children()
        process.terminate()
        assert len([next(batches) for _ in range(8)]) == 8
        process.kill()
        with pytest.raises(OSError, match=r"ended with exit code -9, .*: 'a process that reads"):
            list(batches)
    assert [json.loads(line)["name"] for line in log.read_text().splitlines()] == [
        "train/bee/2.JPEG"
    ]
    assert not multiprocessing.active_children()


def test_a_state_of_other_batches_is_refused():
    batches = train_batches(source_of(23), batch_size=4, **OPTIONS)
    state = batches.get_state()
    for changed in ({"seed": 4}, {"order": "fixed"}, {"examples": 22}, {"more": 1}):
        with pytest.raises(ValueError, match="Resume with the same data and options"):
            batches.set_state({**state, **changed})
    for position in (2, -4, None, 4.0):
        with pytest.raises(ValueError, match=f"a multiple of 4 examples, .* got one at {position}"):
            batches.set_state({**state, "position": position})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 24}, "at least 24 images in colors, one batch of all hosts, got 23"),
        ({"hosts": 6}, "at least 24 images in colors"),
        ({"host": 1}, "`host` from 0 to 0, as `hosts` is 1, got 1"),
        ({"batch_size": 0}, "`batch_size` of at least 1 and `workers` of at least 0, got 0 and 0"),
        ({"workers": -1}, "got 4 and -1"),
        ({"order": "random"}, "`order` to be one of shuffled, within_shards, fixed, got 'random'"),
        ({"min_area": 0}, r"`min_area` in \(0, 1\], `strength` in \[0, 2\] and .* got 0, 0.5 and"),
        ({"strength": 3}, "got 0.08, 3 and"),
    ],
)
def test_wrong_options_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        train_batches(source_of(23), **{"batch_size": 4, **OPTIONS, **changed})


# ---- Images that cannot be read ------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """A folder in which three of 24 training images cannot be read."""
    folder = make_folder(tmp_path / "mine")
    (folder / "train" / "ant" / "1.JPEG").write_bytes(b"no image")
    whole = (folder / "train" / "bee" / "2.JPEG").read_bytes()
    (folder / "train" / "bee" / "2.JPEG").write_bytes(whole[: len(whole) // 2])
    source = open_source(str(folder), "train", None)
    (folder / "train" / "cat" / "3.JPEG").unlink()
    return source, {"train/ant/1.JPEG", "train/bee/2.JPEG", "train/cat/3.JPEG"}


def test_the_next_example_takes_the_place_of_one_that_cannot_be_read(damaged, tmp_path):
    source, bad = damaged
    log = tmp_path / "runs" / "unreadable.jsonl"
    batches = take(train_batches(source, batch_size=4, log=log, limit=3, **OPTIONS), 12)
    epochs, expected = Epochs("within_shards", 3, source.shards), []
    for position in range(48):
        while source.name_of(epochs[position]) in bad:
            position += 1
        expected.append(source[epochs[position]]["label"])
    assert np.ravel(labels(batches)).tolist() == expected
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(bad)  # Each only once in two epochs.
    assert all(row["why"] and "\n" not in row["why"] for row in rows)


def test_too_many_that_cannot_be_read_are_an_error(damaged, tmp_path):
    source, _ = damaged
    log = tmp_path / "unreadable.jsonl"
    with pytest.raises(
        WrongData, match=rf"most 2 unreadable images, got 3, listed in {log}, the l"
    ):
        take(train_batches(source, batch_size=4, log=log, limit=2, **OPTIONS), 12)
    # Threads that read at the same time may each find one.
    with pytest.raises(WrongData, match=r"most 0 .* got [123], the last one train/\w+/\d.JPEG"):
        take(train_batches(source, batch_size=4, limit=0, **OPTIONS), 12)


def test_if_none_can_be_read_it_says_so(tmp_path):
    folder = make_folder(tmp_path / "mine", [("train", 1), ("validation", 1)])
    for path in (folder / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    source = open_source(str(folder), "train", None)
    with pytest.raises(WrongData, match="readable images in mine, got none"):
        take(train_batches(source, batch_size=1, **OPTIONS), 1)


def test_names_are_counted_over_processes_and_a_line_cut_short_is_no_name(tmp_path):
    log = tmp_path / "log.jsonl"
    one, other = UnreadableImages(log, 3), UnreadableImages(log, 3)
    assert [one.add("a", "x"), other.add("a", "y"), other.add("b", "y")] == [1, 1, 2]
    assert one.add("b", "x") == 2
    log.write_bytes(log.read_bytes() + b'{"name": "c", "wh')
    assert UnreadableImages(log, 3).add("d", "") == 3
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {"name": "a", "why": "x"},
        {"name": "b", "why": "y"},
        {"name": "d", "why": ""},
    ]
    with pytest.raises(WrongData, match="got 4"):
        one.add("e", "")


# ---- Evaluation batches --------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", [1, 3])
def test_evaluation_has_every_example_once_over_all_hosts(hosts):
    source, met = source_of(23), []
    for host in range(hosts):
        batches = list(
            evaluation_batches(source, batch_size=4, size=4, crops=1, host=host, hosts=hosts)
        )
        assert len(batches) == -(-23 // (4 * hosts))
        for batch in batches:
            assert batch["image"].shape == (4, 4, 4, 3)
            assert batch["mask"].dtype == bool
            real = batch["mask"]
            met += batch["label"][real].tolist()
            np.testing.assert_array_equal(batch["image"][real, 0, 0, 0], batch["label"][real])
            assert not batch["image"][~real].any()
            assert not batch["label"][~real].any()
    assert sorted(met) == list(range(23))


def test_evaluation_of_144_crops_and_of_what_cannot_be_read(damaged, tmp_path):
    source, bad = damaged
    log = tmp_path / "log.jsonl"
    batches = list(evaluation_batches(source, batch_size=5, size=7, crops=144, log=log))
    assert [batch["image"].shape for batch in batches] == [(5, 144, 7, 7, 3)] * 5
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert masks.tolist() == [source.name_of(i) not in bad for i in range(24)] + [False]
    first = int(np.argmax(masks))
    image = crops.open_image(source[first]["image"])
    np.testing.assert_array_equal(batches[0]["image"][first], crops.crops_144(image, 7))
    assert {json.loads(line)["name"] for line in log.read_text().splitlines()} == bad
    with pytest.raises(ValueError, match="`crops` to be 1 or 144, got 10"):
        evaluation_batches(source, batch_size=5, size=7, crops=10)


def test_the_rate_is_images_over_time():
    ticks = iter(range(100))
    # One tick at the start, one before each image, one at the end.
    rate = measure_rate(source_of(23), size=4, seconds=10, clock=lambda: next(ticks))
    assert rate == 9 / 11
