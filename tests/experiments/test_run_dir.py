"""Run directories: unique, held by one process, and readable after any death."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments import run_dir


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of an experiment."""

    steps: int = 10
    hidden: tuple[int, ...] = (3, 4)


ENVIRONMENT = {
    "versions": {"jax": "1"},
    "device": {"platform": "cpu"},
    "machine": {"cores": 2},
    "spread": "1 device",
    "data": {"name": "mnist", "sha256": "ab"},
}


@pytest.fixture
def run(tmp_path):
    """A new run directory."""
    with run_dir.create(tmp_path, "demo", Config()) as run:
        yield run


def test_directories_made_at_once_are_all_different(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: run_dir.create(tmp_path, "demo", Config()), range(64)))
    assert len({run.path for run in runs}) == 64
    for run in runs:
        run.lock.close()
        assert run.read("config.json") == {"experiment": "demo", "steps": 10, "hidden": [3, 4]}


def test_newest_unfinished_run_of_this_config(tmp_path):
    runs = [run_dir.create(tmp_path, "demo", Config()) for _ in range(3)]
    other = run_dir.create(tmp_path, "demo", Config(steps=11))
    for run in (*runs, other):
        run.lock.close()
    runs[2].write("summary.json", {})
    with run_dir.newest_unfinished(tmp_path, "demo", Config()) as newest:
        assert newest.path == runs[1].path
        with run_dir.newest_unfinished(
            tmp_path, "demo", Config()
        ) as older:  # The other is at work.
            assert older.path == runs[0].path
            with pytest.raises(ValueError, match=f"{other.path}"):
                run_dir.newest_unfinished(tmp_path, "demo", Config())


def test_directory_that_died_at_birth_is_passed_over(tmp_path):
    with run_dir.create(tmp_path, "demo", Config()) as run:
        (tmp_path / "demo" / "9999").mkdir()
    with run_dir.newest_unfinished(tmp_path, "demo", Config()) as found:
        assert found.path == run.path


def test_a_run_is_held_by_one_process(tmp_path):
    with (
        run_dir.create(tmp_path, "demo", Config()) as run,
        pytest.raises(ValueError, match="at work"),
    ):
        run_dir.open_run(run.path)
    run_dir.open_run(run.path).lock.close()
    with pytest.raises(ValueError, match="run directory"):
        run_dir.open_run(tmp_path)


def test_rewind_drops_later_rows_and_a_cut_one(run):
    run.rewind("metrics.jsonl", 0)  # Nothing there yet.
    for step in (0, 10, 20):
        run.append("metrics.jsonl", {"step": step, "loss": 0.1})
    kept = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:2]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step":30,"lo')
    run.rewind("metrics.jsonl", 10)
    assert (run.path / "metrics.jsonl").read_bytes() == b"".join(kept)
    assert [row["step"] for row in run_dir.read_rows(run.path / "metrics.jsonl")] == [0, 10]
    run.rewind("metrics.jsonl", -1)
    assert (run.path / "metrics.jsonl").read_bytes() == b""


def test_another_version_is_said_on_resume(run, capsys):
    run_dir.keep_environment(run, ENVIRONMENT)
    run_dir.keep_environment(run, ENVIRONMENT)
    assert not capsys.readouterr().err
    run_dir.keep_environment(run, {**ENVIRONMENT, "versions": {"jax": "2"}})
    assert "versions differ" in capsys.readouterr().err
    assert run.read("env.json") == ENVIRONMENT


def test_environment_is_json_and_names_no_host():
    environment = run_dir.environment()
    assert json.loads(json.dumps(environment)) == environment
    assert set(environment) == {"versions", "device", "machine", "commit"}
    assert set(environment["machine"]) == {"cpu", "cores", "system"}
