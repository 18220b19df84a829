"""A study's data are checked against its needs before a run directory is made."""

import contextlib
import importlib
import re
import socket

import numpy as np
import pooch
import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.cli import session
from experiments.datasets import check_dataset
from experiments.studies.batches.config import Config as Batches
from experiments.studies.batches.measure import sample_batches, sample_sorted_epoch
from experiments.study import load, load_all
from experiments.tasks import cifar, data
from experiments.training.signals import GracefulExit


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Without network and without earlier downloads."""

    def refuse(*arguments, **options):
        raise ConnectionRefusedError("no network")

    monkeypatch.delenv("JBN_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def prepare(tmp_path):
    """Return a function that does everything before measuring, or raises."""

    def prepare(name, *words):
        made = session.prepare(name, [*words, "--runs", str(tmp_path / "runs")], GracefulExit())
        with made.run:
            assert (made.run.path / "config.json").exists()

    return prepare


# ---- Without a network ---------------------------------------------------------------------------

NO_DATA = "identities", "recurrent"
ON_DIGITS = "mnist_mlp", "learning_rate", "inference", "whitening"
FILES = {
    "titanic": "titanic/titanic.csv",
    "inception": "cifar10/cifar-10-python.tar.gz",
    "compare": "mnist/train-images-idx3-ubyte.gz",
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_a_network_a_study_takes_the_digits_or_says_what_to_do(
    prepare, tmp_path, capsys, name
):
    if name in NO_DATA + ON_DIGITS:
        prepare(name, "--preset", "quick")
        told = capsys.readouterr().err
        assert told.count("\n") == (name in ON_DIGITS)
        assert ("using the 1,797 small digits" in told) == (name in ON_DIGITS)
        return
    with pytest.raises(FileNotFoundError) as refused:
        prepare(name, "--preset", "quick")
    message = str(refused.value)
    dataset = "fashion_mnist" if name == "placement" else "mnist"
    file = FILES.get(name, f"{dataset}/train-images-idx3-ubyte.gz")
    assert f"DIR/{file}" in message
    assert "--data-dir DIR" in message
    assert "--preset smoke" in message
    assert "\n" not in message
    assert "object at 0x" not in message
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["mnist", "digits"])
def test_the_digits_are_not_both_source_and_target(prepare, tmp_path, capsys, source):
    few = ["--validation", "300", "--statistics", "300", "--race-images", "300"]
    with pytest.raises(
        FileNotFoundError, match=r"cannot stand in for one of several .* --data-dir"
    ):
        prepare("transfer", "--source", source, *few)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("words", [(), ("--data-dir", "DIR")])
def test_who_needs_two_data_sets_is_told_of_both_at_once(prepare, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as refused:
        prepare("transfer", *words)
    message = str(refused.value)
    for name in ("mnist", "fashion_mnist"):
        assert all(message.count(f"DIR/{name}/{file}") == 1 for file in data.ROLES.values())
    assert message.count("Expected") == message.count("--data-dir") == 1
    assert "\n" not in message
    with pytest.raises(FileNotFoundError) as refused:
        prepare("placement", *words)  # Needs one data set.
    assert "DIR/mnist/" not in str(refused.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("folder", [None, "DIR"])
def test_an_archive_is_missing_as_files_are(tmp_path, folder):
    needs = dict.fromkeys(("mnist", "fashion_mnist", "cifar10"), (100, 100))
    with pytest.raises(FileNotFoundError) as refused:
        load_all(needs, folder and tmp_path / folder)
    message = str(refused.value)
    assert message.count(f"DIR/cifar10/{cifar.OFFICIAL}") == 1
    assert message.count("Expected") == message.count("--data-dir") == 1
    begins = {None: "Expected mnist, fashion_mnist and cifar10, which could not be downloaded"}
    assert message.startswith(begins.get(folder, f"Expected the data files {tmp_path}/DIR/mnist/"))


@pytest.mark.usefixtures("offline")
def test_what_the_digits_stand_in_for_is_described_as_digits(tmp_path):
    (found,) = load_all({"mnist": (100, 10)}, None).values()
    assert found.describe()["name"] == "digits"


# ---- Needs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_needs_no_more_than_its_data_have(name, preset):
    has = {
        "mnist": (60_000, 10_000),
        "fashion_mnist": (60_000, 10_000),
        "digits": (1438, 359),
        "cifar10": (50_000, 10_000),
        "titanic": (891, 0),
    }
    config = importlib.import_module(f"experiments.studies.{name}.config").PRESETS[preset]
    assert hasattr(config, "needs") == (name not in NO_DATA)
    for dataset, needed in config.needs().items() if hasattr(config, "needs") else ():
        assert np.all(np.array(needed) <= has[dataset])


TOO_LARGE = {
    "mnist_mlp": (("--batch-size", "2000"), "at least 2,000 training and 1 test .* got 1,438"),
    "placement": (("--validation", "1400"), "at least 1,460 training and 1 test"),
    "saturation": (("--batch-size", "1200"), "at least 1,500 training"),
    "learning_rate": (("--validation", "1400"), "at least 1,460 training and 1 test"),
    "inference": (("--batch-size", "200"), "and 400 test images, .* and 359 in digits"),
    "batch_size": (("--huge", "4", "200"), "`huge` of at most 128, .* got 200"),
    "gradients": (("--batch-size", "700"), "`batch_size` of at most 600, .* got 700"),
    "shift": (("--batch-size", "100"), "`batch_size` of at most 60, .* got 100"),
    "batches": (("--batch-size", "120"), "`batch_size` of at most 60, .* got 120"),
    "titanic": (("--batch-size", "700"), "`batch_size` of at most 594, .* got 700"),
    "whitening": (("--examples", "1500"), "at least 1,500 training and 0 test"),
    "regularization": (("--test", "400"), "and 400 test images"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_batches_larger_than_the_data_are_refused(prepare, tmp_path, name):
    words, message = TOO_LARGE[name]
    with pytest.raises(ValueError, match=message) as refused:
        prepare(name, "--preset", "smoke", *words)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_only_the_files_of_cifar10_that_are_needed_are_read(monkeypatch):
    asked = []

    def read(*, train_batches, data_dir):
        asked.append(train_batches)
        return data.load_digits()

    monkeypatch.setattr("experiments.tasks.cifar.load", read)
    for needed in (1, 10_000, 10_001, 60_000):
        with (
            pytest.raises(ValueError, match="Expected at least")
            if needed > 1438
            else contextlib.nullcontext()
        ):
            load("cifar10", None, needed=(needed, 1))
    assert asked == [1, 1, 2, 5]


# ---- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnits", " Did you mean mnist?"),
        ("Fashion", " Did you mean fashion_mnist?"),
        ("mine.npz", ""),
        ("", ""),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    wanted = f"Expected mnist, fashion_mnist, digits, a .npz file or a folder, got {name!r}.{hint}"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        check_dataset(name)


@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if name not in (*NO_DATA, *FILES, "transfer")]
)
def test_every_study_of_images_refuses_a_wrong_name_and_takes_a_folder(tmp_path, name):
    config = importlib.import_module(f"experiments.studies.{name}.config").Config
    with pytest.raises(ValueError, match=r"got 'mnits'\. Did you mean mnist\?"):
        config(dataset="mnits")
    assert str(tmp_path) in config(dataset=str(tmp_path)).needs()


# ---- Classes -------------------------------------------------------------------------------------


def test_of_an_odd_number_of_classes_one_is_left_out_of_sorted_batches():
    labels = np.repeat(np.arange(3), 20)
    made = sample_sorted_epoch(np.arange(60), labels, 10, np.random.default_rng(0))
    assert made.shape == (4, 10)
    assert all(len(np.unique(labels[rows])) == 2 for rows in made)


def test_sorted_batches_that_would_never_come_are_refused():
    labels = np.repeat(np.arange(2), (590, 10)).astype(np.uint8)
    with pytest.raises(data.WrongData, match=r"30 images of each of two classes .* got 10"):
        sample_batches(Batches(examples=600), labels, 0)
