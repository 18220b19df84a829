"""ImageNet: problems with a run, its files or its images are reported in one line."""

import json
import shutil
from pathlib import Path

import jax
import pytest
from imagenet_folders import make_folder

from experiments import run_dir
from experiments.__main__ import main
from experiments.studies.imagenet import ensemble
from experiments.studies.imagenet.config import PRESETS, Config
from experiments.studies.imagenet.data.source import open_source
from experiments.studies.imagenet.evaluate import Evaluator
from experiments.studies.imagenet.measure import check_devices, read_result
from experiments.studies.imagenet.network import make_mesh, make_model
from experiments.studies.imagenet.variants import VARIANTS
from experiments.tasks.data import WrongData

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
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def told(capsys, *options):
    """Run a command that must be refused; return its message."""
    capsys.readouterr()
    assert main(["imagenet", *map(str, options)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_goes_on_with_as_many_devices_as_it_began_with(run, images, capsys):
    (run / "summary.json").unlink()
    options = ("--resume", run, "--data-dir", images, "--devices")
    assert f"Expected --devices 1, with which {run} was started, got 2" in told(capsys, *options, 2)


def test_a_damaged_number_of_devices_is_not_taken_for_another(run):
    """With another number of devices, the run would end with other results."""
    (run / "devices.json").write_text("")
    with run_dir.open_run(run) as held:
        with pytest.raises(run_dir.Damaged, match=r'Write \{"devices": 1\} into it'):
            check_devices(held, 2)
        held.write("devices.json", {"devices": 1})
        check_devices(held, 1)


def test_other_options_of_a_run_that_goes_on_are_named(run, images, capsys):
    line = told(capsys, "--resume", run, "--data-dir", images, "--workers", 2, "--seed", 1)
    assert "itself, got others: --seed, --workers. Leave them out" in line


@pytest.mark.parametrize("option", ["--prepare", "--ensemble", "--compile"])
def test_what_does_something_else_has_a_help_of_its_own(option, monkeypatch, capsys):
    monkeypatch.setattr("experiments.training.machines.look_for_no_device", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main(["imagenet", option, "--help"])
    assert ended.value.code == 0
    assert f"{option} " in capsys.readouterr().out


def test_images_of_ones_own_need_their_option(images, tmp_path, capsys):
    line = told(capsys, "--variant", "bn_x5", "--data-dir", images, "--runs", tmp_path)
    assert "For your own images, pass --dataset folder." in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", '{"moving_top_1": null}', "numbers are missing"),
        ("metrics.jsonl", "", "rows are missing"),
        ("metrics.jsonl", "{}\n", "rows are missing"),
        ("metrics.jsonl", '{"step":1,"loss":1.0,"top_1":0.5,"top_5":1.0}\n', "rows are missing"),
        ("metrics.jsonl", "{", "line 1 is not a complete row"),
    ],
)
def test_damaged_results_do_not_count(run, name, content, message, capsys):
    values = json.loads((run / "config.json").read_text())
    values.pop("experiment")
    config = run_dir.to_config(type(PRESETS["smoke"]), values)
    with run_dir.open_run(run / "bn_x5_0") as network:
        assert read_result(config, network) is not None
        (network.path / name).write_text(content)
        assert read_result(config, network) is None
    assert f"{name} is damaged: {message}" in capsys.readouterr().err


# ---- Images that cannot be read ------------------------------------------------------------------


def test_images_to_validate_by_that_cannot_be_read_are_named(tmp_path):
    folder = make_folder(tmp_path / "mine")
    bad = list(folder.glob("validation/*/*"))
    for path in bad:
        path.write_bytes(b"no image")
    source = open_source(str(folder), "validation", None)
    mesh, log = make_mesh(jax.devices()[:1], "device"), tmp_path / "unreadable.jsonl"
    config = PRESETS["smoke"]
    model = make_model(config, VARIANTS["bn_x5"], 3)
    evaluator = Evaluator(config, model, source, mesh, log)
    with pytest.raises(WrongData, match=r"validation images in mine, got none among 12"):
        evaluator.accuracies([lambda image: image.mean((1, 2, 3))], source, 1)
    names = {row["name"] for row in run_dir.read_rows(log)}
    assert names == {str(path.relative_to(folder)) for path in bad}


# ---- Ensembles -----------------------------------------------------------------------------------


def test_an_ensemble_of_one_has_the_numbers_of_its_run(run, images, tmp_path, capsys):
    output = tmp_path / "errors.json"
    options = ["--ensemble", run, "--data-dir", images, "--output", output]
    assert main(["imagenet", *map(str, options)]) == 0
    written = json.loads(output.read_text())
    assert list(written["networks"].values()) == ["bn_x5, seed 0"]
    (error,) = written["errors"].values()
    result = json.loads((run / "bn_x5_0" / "result.json").read_text())
    assert error["top_1"] == 1 - result["population_top_1"]
    assert error["top_5"] == 1 - result["population_top_5"]
    assert "bn_x5, seed 0" in capsys.readouterr().out


def test_a_member_is_described_by_its_changes():
    config = Config(variant="bn_x30", dropped=0.05, init_scale=1.4)
    member = ensemble.Member(Path("run"), config, "bn_x30", 3)
    assert member.describe() == "bn_x30, dropped 0.05, init_scale 1.4, seed 3"


def test_an_ensemble_of_other_images_is_refused_and_damages_nothing(run, tmp_path, capsys):
    other = make_folder(tmp_path / "other", classes=("ant", "bee"))
    line = told(capsys, "--ensemble", run, "--data-dir", other)
    assert f"Expected the train images of {run / 'bn_x5_0'}, mine, got other" in line
    assert (run / "bn_x5_0" / "checkpoints" / "2").is_dir()


def test_an_ensemble_of_wrong_runs_is_one_line(run, tmp_path, capsys):
    assert "got none. Pass folders" in told(capsys, "--ensemble")
    assert "which has no trained network" in told(capsys, "--ensemble", tmp_path)
    line = told(capsys, "--ensemble", run, run / "bn_x5_0")
    assert f"Expected each network once, got {(run / 'bn_x5_0').resolve()} 2 times" in line
    line = told(capsys, "--ensemble", run, "--output", tmp_path / "no" / "x.json")
    assert "Expected --output in an existing folder" in line
    (member,) = ensemble.find_members([run])
    shutil.rmtree(run / "bn_x5_0" / "checkpoints")
    with pytest.raises(run_dir.Damaged, match=r"Remove .*result\.json, which marks it as finished"):
        ensemble.restore(member, 3)
    (run / "bn_x5_0" / "result.json").unlink()
    with pytest.raises(ValueError, match="no trained network"):
        ensemble.find_members([run])
