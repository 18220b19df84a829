"""ImageNet: what is wrong with a run, its files or its images, is told in one line."""

import shutil

import pytest
from imagenet_folders import make_folder

from experiments.__main__ import main

SMALL = ("--preset", "smoke", "--variant", "bn_x5", "--dataset", "folder", "--blocks", "1",
         "--size", "8", "--batch-size", "2", "--steps", "2", "--evaluate-every", "1")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images") / "mine")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished run."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["imagenet", *SMALL, "--data-dir", str(images), "--runs", str(runs)]) == 0
    (path,) = (runs / "imagenet").iterdir()
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def told(capsys, *options):
    """Run a command that is to be refused; return what it says."""
    capsys.readouterr()
    assert main(["imagenet", *map(str, options)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_goes_on_with_as_many_devices_as_it_began_with(run, images, capsys):
    (run / "summary.json").unlink()
    options = ("--resume", run, "--data-dir", images, "--devices")
    assert f"Expected --devices 1, with which {run} began, got 2" in told(capsys, *options, 2)


def test_groups_that_devices_do_not_make_are_one_line(images, tmp_path, capsys):
    options = (*SMALL, "--statistics", "2", "--data-dir", images, "--runs", tmp_path)
    assert "a number of devices that divides 1, got 2" in told(capsys, *options)
