"""`benchmarks/faults.py` finds no fault in a small run, and does find faults that are made."""

import json
import shutil

import jax
import numpy as np
import pytest

from benchmarks import faults
from experiments import run_dir
from experiments.__main__ import main
from experiments.studies.mnist_mlp import measure as mnist_mlp
from experiments.studies.mnist_mlp.config import PRESETS
from experiments.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run in this process."""
    root = tmp_path_factory.mktemp("runs")
    options = ["--preset", "smoke", "--steps", "40", "--runs", str(root)]
    assert main(["mnist_mlp", *options]) == 0
    return faults.look(root).path


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "mnist_mlp" / finished.name)


def change_digit(path):
    text = path.read_text()
    last = max(text.rindex(digit) for digit in "0123456789" if digit in text)
    path.write_text(f"{text[:last]}{(int(text[last]) + 1) % 10}{text[last + 1 :]}")


# ---- Identical or not ----------------------------------------------------------------------------


def test_a_copy_is_identical(finished, copy):
    summary = run_dir.read_json(copy / "summary.json")
    summary["seconds"]["train"] += 1
    summary["environment"]["commit"] = "another"
    (copy / "summary.json").write_text(json.dumps(summary))
    assert faults.differences(finished, copy) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "fig1.svg", "summary.json"])
def test_one_changed_digit_is_a_difference(finished, copy, name):
    change_digit(copy / name)
    assert name in faults.differences(finished, copy)


def test_one_changed_bit_of_the_state_is_a_difference(finished, copy):
    folder = copy / "checkpoints" / "40"
    config = PRESETS["smoke"]
    keys = jax.random.split(jax.random.key(0), config.seeds)
    like = jax.vmap(lambda key: mnist_mlp.init(config, key, 784))(keys)
    with run_dir.open_run(copy) as run, Checkpoints(run) as checkpoints:
        state = jax.tree.map(np.array, checkpoints.newest(like)[1])
    jax.tree.leaves(state)[0].view(np.uint32).flat[7] ^= 1
    shutil.rmtree(folder)
    with run_dir.open_run(copy) as run, Checkpoints(run) as checkpoints:
        checkpoints.save(40, state)
    assert faults.differences(finished, copy) == ["checkpoints"]


def test_what_is_missing_or_left_over_is_a_difference(finished, copy):
    (copy / "fig1a.png").unlink()
    (copy / "metrics.jsonl.partial").touch()
    (copy / "checkpoints" / "60.orbax-checkpoint-tmp").mkdir()
    shutil.rmtree(copy / "checkpoints" / "40")
    assert faults.differences(finished, copy) == [
        "fig1a.png on one side only",
        "metrics.jsonl.partial on one side only",
        "checkpoints/60.orbax-checkpoint-tmp left over",
        "checkpoints",
    ]


def test_a_run_that_began_anew_is_told_from_one_that_went_on():
    told = "run: ...\nstep {} of 1,500  27 steps/s\nstep 1,500 of 1,500  225 steps/s\n"
    assert faults.began_at(told.format("1,040"), 1500) == 1020
    assert faults.began_at(told.format("20"), 1500) == 0
    assert faults.began_at("run: ...\n", 1500) == 1500  # The last checkpoint already existed.


# ---- The state of a run --------------------------------------------------------------------------


def test_look_tells_what_a_run_was_at(tmp_path):
    run = tmp_path / "mnist_mlp" / "2026"
    run.mkdir(parents=True)
    assert faults.look(tmp_path).what == "no run yet"
    (run / "config.json").touch()
    assert faults.look(tmp_path).what == "no checkpoint"
    (run / "metrics.jsonl").write_text('{"step":0,"a":1}\n{"step":80,"a":1}\n{"step":100,"a"')

    checkpoints = run / "checkpoints"
    (checkpoints / "60.orbax-checkpoint-tmp").mkdir(parents=True)
    assert faults.look(tmp_path).what == "writing a checkpoint"
    (checkpoints / "60.orbax-checkpoint-tmp").rename(checkpoints / "60")
    assert faults.look(tmp_path).what == "no manifest yet"
    (checkpoints / "60" / "manifest.json").touch()
    assert faults.describe(faults.look(tmp_path)) == {
        "what": "a checkpoint",
        "checkpoint": 60,
        "row": 80,
        "again": 20,
    }
    (checkpoints / "0").mkdir()
    assert faults.look(tmp_path).what == "deleting the oldest"
    (run / "summary.json").touch()
    assert faults.look(tmp_path).what == "finished"


def test_moments_are_drawn_from_the_seed():
    cases = faults.plan(20, 0)
    assert cases == faults.plan(20, 0) != faults.plan(20, 1)
    assert [len(case) for case in cases] == [1, 1, 1, 2] * 5
    assert all(0 <= strike.seconds < 1 for case in cases for strike in case)
    aimed = {case[0].sight for case in cases} - {""}
    assert aimed == {"writing a checkpoint", "no manifest yet", "deleting the oldest"}


def test_a_run_that_ended_too_soon_is_killed_as_much_earlier(tmp_path, monkeypatch):
    moments = []

    def disturbed(folder, steps, strikes):
        moments.append(strikes[0].seconds)
        return {"strikes": [{"status": 0 if strikes[0].seconds > 10 else -9, "seconds": 10.0}]}

    monkeypatch.setattr(faults, "disturb", disturbed)
    faults.kill(tmp_path, 300, [faults.Strike(0.8)], 20.0)
    assert moments == [16, 8]


# ---- The benchmark -------------------------------------------------------------------------------


def test_smoke_preset_ends_identical(tmp_path):
    faults.main(faults.Options(preset="smoke", output=tmp_path))
    result = json.loads((tmp_path / "faults.json").read_text())
    assert len(result["kills"]) == 2
    assert [strike["status"] for strike in result["sigterm"]["strikes"]] == [143]
    text = (tmp_path / "faults.md").read_text()
    assert "SIGKILL: 2 of 2 identical" in text
    assert "is changed" in text


def test_a_difference_is_reported_and_ends_with_an_error(tmp_path, monkeypatch):
    def disturbed(*arguments, **options):
        return {"strikes": [STRIKE], "path": tmp_path, "differences": []}

    monkeypatch.setattr(faults, "carry_on", lambda *arguments, **options: (0, ""))
    monkeypatch.setattr(faults, "kill", disturbed)
    monkeypatch.setattr(faults, "terminate", disturbed)
    monkeypatch.setattr(faults, "DAMAGES", {})
    found = iter([[], ["metrics.jsonl"], [], []])
    monkeypatch.setattr(faults, "differences", lambda want, got: next(found))
    with pytest.raises(SystemExit, match="2 of 3"):
        faults.main(faults.Options(preset="smoke", output=tmp_path))
    assert "SIGKILL: 1 of 2 identical" in (tmp_path / "faults.md").read_text()


STRIKE = {
    "sight": "",
    "seconds": 1.0,
    "status": 143,
    "what": "no checkpoint",
    "checkpoint": 0,
    "row": 20,
    "again": 20,
}
