"""Runs on real machines: wrong paths, unreadable files, disks that cannot be written."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from environments import own_environment

from experiments import run_dir
from experiments.__main__ import carry_out, main
from experiments.cli import session
from experiments.ledger import collect, page
from experiments.studies.identities import config as identities
from experiments.studies.mnist_mlp import config as mnist_mlp
from experiments.study import Study
from experiments.training.checkpoints import check_path
from experiments.training.signals import GracefulExit

ROOT = Path(__file__).parents[2]
SMOKE = ("--preset", "smoke")


def begun(runs, name="identities", settings=identities):
    """Start a run and return its path."""
    with run_dir.create(runs, name, settings.PRESETS["smoke"]) as run:
        return run.path


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


# ---- A run to resume -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        (
            ["--resume", "nowhere"],
            "Expected a run directory, got nowhere, which has no config.json",
        ),
        (["--resume", "runs"], "Expected a run directory, got runs, which has no config.json"),
        (["--resume", "of another"], "which is of another experiment"),
        (["--resume", "held"], "Expected an idle run, but another process is using held"),
        (
            ["--resume"],
            "Expected an unfinished run of mnist_mlp with these options in runs, got none",
        ),
    ],
)
def test_a_wrong_run_is_refused_before_data_are_looked_for(
    resume, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    begun(tmp_path / "a").rename("of another")
    begun(tmp_path / "b", "mnist_mlp", mnist_mlp).rename("held")
    monkeypatch.setattr("experiments.study.load_all", lambda *_: pytest.fail("looked for data"))
    with run_dir.open_run(Path("held")):
        assert main(["mnist_mlp", *SMOKE, *resume]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mnist_mlp: Expected")
    assert message in line


def test_a_run_whose_data_are_not_there_is_let_go(tmp_path, capsys, monkeypatch):
    def missing(*_):
        raise FileNotFoundError("Expected the data files, found none.")

    path = begun(tmp_path, "mnist_mlp", mnist_mlp)
    monkeypatch.setattr("experiments.study.load_all", missing)
    assert main(["mnist_mlp", "--resume", str(path)]) == 2
    assert last_line(capsys) == "mnist_mlp: Expected the data files, found none."
    with run_dir.open_run(path):
        assert sorted(each.name for each in path.iterdir()) == ["config.json", "lock"]


# ---- Characters of a path ------------------------------------------------------------------------


def test_a_path_that_orbax_cannot_write_is_refused_before_anything_runs(tmp_path, capsys):
    """A path as Python decodes it in the C locale, and a path encoded as Latin-1."""
    for letter, mend in (("\udcc3\udca9", "Set PYTHONUTF8=1."), ("\udce9", "Pass another --runs.")):
        runs = tmp_path / f"r{letter}"
        assert main(["mnist_mlp", *SMOKE, "--runs", str(runs)]) == 2
        line = last_line(capsys)
        assert line.startswith("mnist_mlp: Expected a UTF-8 path for the checkpoints")
        assert line.endswith(mend)
        assert not runs.exists()
    check_path(Path("é"))


# ---- Files that cannot be read -------------------------------------------------------------------


def carry_out_with(monkeypatch, work, path):
    """Resume a run whose work is `work(run)`; return the exit status."""
    prepare = session.prepare

    def prepared(*arguments):
        ready = prepare(*arguments)
        return ready._replace(work=lambda: work(ready.run))

    monkeypatch.setattr(session, "prepare", prepared)
    with GracefulExit() as graceful_exit:
        return carry_out("identities", ["--resume", str(path)], graceful_exit)


def refused_by(number):
    """Make a system call that fails with this error number."""

    def fail(*arguments, **_):
        raise OSError(number, os.strerror(number), str(arguments[0]) if arguments else None)

    return fail


@pytest.mark.parametrize("how", ["permission", "monkeypatch"])
def test_metrics_that_cannot_be_read_are_told_in_one_line(tmp_path, capsys, monkeypatch, how):
    path = begun(tmp_path)
    metrics = path / "metrics.jsonl"
    metrics.write_text('{"step":0}\n')
    if how == "permission":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        metrics.chmod(0)

    def work(run):
        with monkeypatch.context() as patch:
            if how == "monkeypatch":
                patch.setattr(Path, "read_bytes", refused_by(errno.EACCES))
            run.rewind("metrics.jsonl", 0)

    assert carry_out_with(monkeypatch, work, path) == 1
    assert last_line(capsys) == (
        f"identities: {metrics}: Permission denied. Once that is fixed, resume with: "
        f"python -m experiments identities --resume {path}"
    )
    metrics.chmod(0o600)
    assert metrics.read_text() == '{"step":0}\n'


def test_an_environment_that_lacks_something_is_said_and_written_anew(tmp_path, capsys):
    now = {"versions": {"jax": "1"}, "device": {}, "machine": {}, "commit": None, "spread": "1"}
    with run_dir.open_run(begun(tmp_path)) as run:
        run.write("env.json", {"versions": {"jax": "0"}, "commit": None})
        run_dir.keep_environment(run, now)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{run.path / 'env.json'} is damaged: it lacks device, machine; ")
        assert run.read("env.json") == now


@pytest.mark.parametrize("key", ["data", "environment", "metrics", "preset"])
def test_a_summary_that_lacks_something_is_left_out(tmp_path, key):
    with run_dir.open_run(begun(tmp_path)) as run:
        environment = {"machine": {"cores": 1, "cpu": ""}, "versions": {"jax": "1"}}
        environment["data"] = {"name": "digits", "source": "", "sha256": ""}  # An outdated key.
        run.write("env.json", environment)
        Study("identities", run).finish()
        collect.result_of(run.path, "identities")
        summary = run.read("summary.json")
        del summary[key]
        run.write("summary.json", summary)
        with pytest.raises(collect.BadRun, match=f"got KeyError from it: '{key}'"):
            collect.result_of(run.path, "identities")


# ---- Disks that cannot be written ----------------------------------------------------------------


@pytest.fixture
def read_only(monkeypatch):
    """A context in which no file can be created or written."""
    open_file = Path.open

    def read(path, mode="r", *arguments, **options):
        if mode.startswith("r"):
            return open_file(path, mode, *arguments, **options)
        return refused_by(errno.EROFS)(path)

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", read)
            for name in ("mkdir", "rename", "replace", "write_text", "write_bytes", "unlink"):
                patch.setattr(Path, name, refused_by(errno.EROFS))
            yield

    return context


def test_no_run_is_begun_or_resumed_on_a_disk_that_is_read_only(tmp_path, capsys, read_only):
    path = begun(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    all_of_them = ["all", *SMOKE, "--only", "identities", "--runs", str(tmp_path)]
    for words, where in (
        (["identities", *SMOKE, "--runs", str(tmp_path)], tmp_path / "identities"),
        (["identities", "--resume", str(path)], path / "lock"),
        (["identities", *SMOKE, "--runs", str(tmp_path), "--resume"], path / "lock"),
        (all_of_them, tmp_path / "identities"),
        ([*all_of_them, "--resume"], path / "lock"),
    ):
        with read_only():
            assert main(words) == 1
        lines = capsys.readouterr().err.splitlines()
        assert f"identities: {where}: Read-only file system" in lines
        assert len(lines) == (1 if words[0] != "all" else 3 if where.name != "lock" else 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_becomes_read_only_takes_nothing(tmp_path, capsys, monkeypatch, read_only):
    path = begun(tmp_path)

    def work(run):
        study = Study("identities", run)
        study.part("first", lambda: {"x": 1})
        with read_only():
            study.part("second", lambda: {"x": 2})

    assert carry_out_with(monkeypatch, work, path) == 1
    assert last_line(capsys) == (
        f"identities: {path / 'parts'}: Read-only file system. Once that is fixed, resume with: "
        f"python -m experiments identities --resume {path}"
    )
    with run_dir.open_run(path) as run:
        kept = Study("identities", run).part("first", lambda: pytest.fail("measured again"))
        assert kept["x"] == 1


def test_a_report_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys, read_only):
    runs = begun(tmp_path).parent
    with read_only():
        assert main(["report", "--runs", str(runs), "--to", str(tmp_path / "to")]) == 1
    assert last_line(capsys) == f"experiments: {tmp_path / 'to'}: Read-only file system"


# ---- The report ----------------------------------------------------------------------------------


def test_a_folder_without_runs_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "write", lambda *_: None)
    (tmp_path / "empty").mkdir()
    for runs in (tmp_path / "empty", tmp_path / "nowhere"):
        assert main(["report", "--runs", str(runs)]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"{runs} has no runs: shown is what the project keeps"
    monkeypatch.setattr(collect, "collect", lambda *_, **__: {})
    assert main(["report", "--runs", str(tmp_path / "empty")]) == 2
    assert last_line(capsys).startswith(f"Expected finished runs in {tmp_path / 'empty'}")


def test_a_report_that_is_stopped_says_so_in_one_line(tmp_path):
    script = (
        "import os, sys; from experiments.__main__ import main; "
        "from experiments.ledger import page; "
        f"page.write = lambda *_: os.kill(os.getpid(), {int(signal.SIGINT)}); "
        "sys.exit(main(['report', '--runs', '.']))"
    )
    command, environment = [sys.executable, "-c", script], own_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines()[-1] == "stopped; the report is incomplete"
    assert "Traceback" not in done.stderr
