"""The command line: what it refuses, system errors, and how to resume."""

import contextlib
import errno
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import environment, options, run_dir
from experiments.__main__ import EXPERIMENTS, carry_out, main
from experiments.cli import run_all, session
from experiments.studies.identities import config as identities
from experiments.studies.mnist_mlp import config as mnist_mlp
from experiments.study import Study
from experiments.training.signals import GracefulExit, Stopped

ROOT = Path(__file__).parents[2]


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mnist_mpl", "got 'mnist_mpl'. Did you mean mnist_mlp?"),
        ("all --only titanci", "got 'titanci'. Did you mean titanic?"),
        ("mnist_mlp --momentum 1.5", "Expected `momentum` in [0, 1], got 1.5"),
        ("titanic --momentum 1.5", "Expected `momentum` in [0, 1), got 1.5"),
        ("mnist_mlp --learning-rate nan", "positive and finite, got nan"),
        ("recurrent --data-dir x", "Expected no --data-dir, as recurrent reads no data files"),
        ("mnist_mlp --preset smoke --data-dir x", "Expected no --data-dir"),
        ("all --preset smoke --data-dir x", "Expected no --data-dir, as none of the experiments"),
        ("mnist_mlp --stpes 3", "mnist_mlp, got '--stpes'. Did you mean --steps?"),
        ("mnist_mlp --evaluate_evry=3", "got '--evaluate_evry'. Did you mean --evaluate-every?"),
        ("mnist_mlp --checkpoint-evrey 3", "Did you mean --checkpoint-every?"),
        ("mnist_mlp --presett smoke", "Did you mean --preset?"),
        ("mnist_mlp --preset smok", "smoke, quick, paper, got smok. Did you mean smoke?"),
        ("mnist_mlp --preset", "Expected --preset to be one of smoke, quick, paper, got none."),
        ("mnist_mlp --steps x", "Expected --steps to be a whole number, got 'x'."),
        ("mnist_mlp --steps", "Expected --steps with a whole number, got none. Type one"),
        ("mnist_mlp --parallel pmpa", "or pmap, got 'pmpa'. Did you mean pmap?"),
        ("mnist_mlp x", "got 'x'. See: python -m experiments mnist_mlp --help"),
        ("mnist_mlp --resume a x", "got 'x'"),
        ("all --ony titanic", "Expected options of all, got '--ony'. Did you mean --only?"),
        ("all --preset smok", "smoke, quick or paper, got 'smok'. Did you mean smoke?"),
        ("titanic --source x", "Expected --source to be titanic or synthetic, got 'x'."),
        ("all x", "Expected options of all, got 'x'"),
        ("all --resume=x", "Expected nothing after --resume"),
        ("report --rusn x", "Expected options of report, got '--rusn'. Did you mean --runs?"),
        ("report x", "Expected options of report, got 'x'"),
        ("list x", "Expected nothing after list, got 'x'. Leave it out."),
        ("--help x", "Expected nothing after --help, got 'x'. Leave it out."),
    ],
)
def test_wrong_words_are_told_in_one_line(words, message, capsys):
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("terminal", ["ascii", "colors", "narrow"])
def test_wrong_values_are_told_in_one_line_on_any_terminal(terminal, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "45" if terminal == "narrow" else "120")
    if terminal == "ascii":
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal == "colors")
    assert main(["titanic", "--source", "x"]) == 2
    assert capsys.readouterr().err == (
        "titanic: Expected --source to be titanic or synthetic, got 'x'.\n"
    )


def test_wrong_options_are_refused_before_anything_slow_is_imported():
    script = (
        "import sys; from experiments.__main__ import main; status = main(sys.argv[1:]); "
        "sys.exit(9 if {'jax', 'matplotlib', 'numpy'} & set(sys.modules) else status)"
    )
    command = [sys.executable, "-c", script, "mnist_mlp", "--momentum", "1.5"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2


def test_all_gives_the_data_folder_to_those_that_read_it(tmp_path):
    asked = {}

    def one(name, words):
        asked[name] = words
        return 0

    arguments = ["--runs", str(tmp_path), "--data-dir", "x", "--only", "identities", "gradients"]
    assert run_all.carry_out(EXPERIMENTS, arguments, one) == 0
    assert "--data-dir" in asked["gradients"]
    assert "--data-dir" not in asked["identities"]


def test_all_ends_with_a_signal(tmp_path):
    arguments, asked = ["--runs", str(tmp_path)], []

    def one(name, words):
        asked.append(name)
        return 130

    assert run_all.carry_out(("identities", "gradients"), arguments, one) == 130
    assert asked == ["identities"]


def test_all_passes_over_a_damaged_run(tmp_path, capsys):
    config = identities.PRESETS["smoke"]
    with run_dir.create(tmp_path, "identities", config) as run:
        run_dir.keep_environment(run, environment.describe())
        Study("identities", run).finish()
    with run_dir.create(tmp_path, "identities", config) as bad:
        bad.write("summary.json", {})
        (bad.path / "config.json").write_bytes(b"")
    with run_dir.create(tmp_path, "identities", config) as worse:
        (worse.path / "config.json").write_bytes(b"[" * 100_000)
    arguments = ["--preset", "smoke", "--runs", str(tmp_path), "--resume"]
    assert run_all.carry_out(("identities",), arguments, lambda *_: 1) == 0
    told = capsys.readouterr().err
    assert f"finished in {run.path}" in told
    assert f"{bad.path} is skipped" in told


# ---- The system ----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for runs in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["identities", "--preset", "smoke", "--runs", str(runs)]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"identities: {tmp_path / 'file'}")
        assert "Not a directory" in line


def test_a_full_disk_is_told_in_one_line_with_how_to_go_on(tmp_path, capsys, monkeypatch):
    runs = str(tmp_path)
    prepare = session.prepare

    def prepared(*arguments):
        made = prepare(*arguments)

        def work():
            monkeypatch.setattr(os, "fsync", full)
            made.run.append("timing.jsonl", {})

        return made._replace(work=work)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(session, "prepare", prepared)
    with GracefulExit() as graceful_exit:
        status = carry_out("identities", ["--preset", "smoke", "--runs", runs], graceful_exit)
    assert status == 1
    (path,) = (tmp_path / "identities").iterdir()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"identities: {path / 'timing.jsonl'}: No space left on device.")
    assert line.endswith(f"resume with: python -m experiments identities --resume {path}")


def test_a_locale_without_plus_minus_survives(monkeypatch):
    for encoding in ("ascii", "latin-1"):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        assert main(["list"]) == 0
        for stream in streams:
            print("0.5 ± 0.1, σ", file=stream, flush=True)
            shown = stream.buffer.getvalue().decode(encoding)
            assert shown.endswith(
                {"ascii": "0.5 ? 0.1, ?\n", "latin-1": "0.5 ± 0.1, ?\n"}[encoding]
            )


# ---- How to resume -------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["runs", "my runs; rm *", "-runs", "/absolute", "é"])
def test_the_command_to_go_on_works_as_typed(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "absolute" if runs == "/absolute" else Path(runs)
    config = mnist_mlp.PRESETS["paper"]
    with run_dir.create(folder, "mnist_mlp", config) as run:
        pass
    how = options.ExecutionOptions(
        data_dir=Path("the data"), runs=folder, checkpoint_every=3, devices=4, parallel="pmap"
    )
    python, *words = shlex.split(options.to_go_on("mnist_mlp", str(run.path), how))
    assert [python, *words[:3]] == ["python", "-m", "experiments", "mnist_mlp"]
    again = options.parse("mnist_mlp", mnist_mlp, words[3:])
    assert again.config == config
    assert again.execution.run.resolve() == run.path.resolve()
    for name in ("data_dir", "checkpoint_every", "devices", "parallel"):
        assert getattr(again.execution, name) == getattr(how, name)
    with contextlib.closing(run_dir.open_run(again.execution.run).lock):
        pass


def test_all_that_is_stopped_names_the_command_that_goes_on_with_all(tmp_path, capsys, monkeypatch):
    prepare = session.prepare

    def stop():
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(session, "prepare", lambda *words: prepare(*words)._replace(work=stop))
    words = ["--preset", "smoke", "--runs", str(tmp_path / "my runs"), "--only", "identities"]
    assert main(["all", *words]) == 128 + signal.SIGINT
    told = capsys.readouterr().err.splitlines()[-1].removeprefix("stopped; resume with: ")
    python, *again = shlex.split(told)
    assert [python, *again] == ["python", "-m", "experiments", "all", *words, "--resume"]
    asked = []
    one = lambda name, words: asked.append((name, words)) or 0  # noqa: E731
    assert run_all.carry_out(EXPERIMENTS, again[3:], one) == 0
    ((name, words),) = asked
    assert (name, words[-1]) == ("identities", "--resume")
    assert run_all.to_go_on(again[3:]) == told
