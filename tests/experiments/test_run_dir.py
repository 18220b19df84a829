"""Run directories: unique, locked by one process, and readable after any crash."""

import dataclasses
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments import environment, run_dir


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
        ) as older:  # The newest is locked.
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
        pytest.raises(ValueError, match="another process is using"),
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


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"{",
        b'{"step":NaN}',
        b'{"step":"10"}',
        b"\xff",
        b"[" * 100_000,
        b'{"step":0}',
        b"",
    ],
)
def test_a_damaged_row_is_left_out_and_said(run, capsys, line):
    path = run.path / "metrics.jsonl"
    path.write_bytes(b'{"step":0}\n' + line + b'\n{"step":20}\n')
    run.rewind("metrics.jsonl", 20)
    assert path.read_bytes() == b'{"step":0}\n{"step":20}\n'
    assert capsys.readouterr().err == f"{path} has damaged rows: left out 1\n"


@pytest.mark.parametrize("line", [b"[1, 2]\n", b'{"loss":NaN}\n', b'{"step":10}', b"\xff\n"])
def test_a_damaged_row_is_not_read(tmp_path, line):
    (tmp_path / "rows").write_bytes(b'{"step":0}\n' + line)
    with pytest.raises(run_dir.Damaged, match="rows is damaged: line 2 "):
        list(run_dir.read_rows(tmp_path / "rows"))


def test_a_row_takes_the_place_of_one_that_was_cut_short(run):
    (run.path / "timing.jsonl").write_text('{"part":"a"}\n{"part":"b","se')
    run.append("timing.jsonl", {"part": "b"})
    assert (run.path / "timing.jsonl").read_text() == '{"part":"a"}\n{"part":"b"}\n'
    with pytest.raises(ValueError, match="JSON"):
        run.append("timing.jsonl", {"part": float("nan")})


# ---- Damage --------------------------------------------------------------------------------------

DAMAGES = {
    "empty": b"",
    "cut": b'{"experiment": "demo", "ste',
    "a list": b'["demo"]',
    "of wrong type": b'{"experiment": "demo", "steps": "ten", "hidden": [3, 4]}',
    "a truth value": b'{"experiment": "demo", "steps": true, "hidden": [3, 4]}',
    "no list": b'{"experiment": "demo", "steps": 10, "hidden": 3}',
    "unknown": b'{"experiment": "demo", "speed": 10}',
    "deep": b"[" * 100_000,
    "deep inside": b'{"experiment": "demo", "steps": ' + b"[" * 800 + b"]" * 800 + b"}",
    "not UTF-8": b'{"experiment": "d\xe9mo"}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_next_to_it_does_not_keep_a_run_from_going_on(tmp_path, capsys, damage):
    with run_dir.create(tmp_path, "demo", Config()) as good:
        pass
    with run_dir.create(tmp_path, "demo", Config()) as bad:
        (bad.path / "config.json").write_bytes(DAMAGES[damage])
    with run_dir.newest_unfinished(tmp_path, "demo", Config()) as found:
        assert found.path == good.path
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{bad.path} is skipped: {bad.path / 'config.json'} is damaged")
    for each in (good, bad):
        each.write("summary.json", {})
    assert run_dir.newest_finished(tmp_path, "demo", Config()) == good.path
    assert str(bad.path) in capsys.readouterr().err
    with pytest.raises(run_dir.Damaged, match=r"config\.json is damaged"):
        run_dir.read_config(bad.path, "demo", Config)


def test_a_run_with_a_damaged_summary_has_not_finished(tmp_path, capsys):
    with run_dir.create(tmp_path, "demo", Config()) as run:
        (run.path / "summary.json").write_text('{"metrics": {')
    assert run_dir.newest_finished(tmp_path, "demo", Config()) is None
    assert f"{run.path} counts as unfinished" in capsys.readouterr().err
    with run_dir.newest_unfinished(tmp_path, "demo", Config()) as found:
        assert found.path == run.path


@pytest.mark.parametrize("content", [b"", b"[]", b'{"versions": ', b"\xff"])
def test_a_damaged_environment_is_said_and_written_anew(run, capsys, content):
    (run.path / "env.json").write_bytes(content)
    run_dir.keep_environment(run, ENVIRONMENT)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.path / 'env.json'} is damaged: ")
    assert run.read("env.json") == ENVIRONMENT


# ---- A disk that is full or read-only ------------------------------------------------------------


def test_a_full_disk_leaves_what_was_whole(run, monkeypatch):
    run.append("metrics.jsonl", {"step": 0})
    run.write("env.json", ENVIRONMENT)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(Path, "replace", full)
        for name, write in (
            ("metrics.jsonl", lambda: run.append("metrics.jsonl", {"step": 10})),
            ("env.json", lambda: run.write("env.json", {})),
        ):
            with pytest.raises(OSError, match="No space left on device") as raised:
                write()
            assert raised.value.filename == str(run.path / name)
    assert (run.path / "metrics.jsonl").read_text() == '{"step":0}\n'
    assert run.read("env.json") == ENVIRONMENT
    assert not list(run.path.glob("*.partial"))


def test_a_run_that_cannot_be_begun_leaves_none(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        run_dir.create(tmp_path, "demo", Config())
    assert not list((tmp_path / "demo").iterdir())


def test_another_version_is_said_on_resume(run, capsys):
    run_dir.keep_environment(run, ENVIRONMENT)
    run_dir.keep_environment(run, ENVIRONMENT)
    assert not capsys.readouterr().err
    run_dir.keep_environment(run, {**ENVIRONMENT, "versions": {"jax": "2"}})
    assert "versions changed" in capsys.readouterr().err
    assert run.read("env.json") == ENVIRONMENT


def test_environment_is_json_and_names_no_host():
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    assert set(described) == {"versions", "device", "machine", "commit"}
    assert set(described["machine"]) == {"cpu", "cores", "system"}
