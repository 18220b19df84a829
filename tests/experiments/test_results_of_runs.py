"""What the ledger uses of a run: its preset according to its options, and intact figures."""

import dataclasses
import errno
import json
import os
import shlex
import shutil

import pytest
from report_pages import finished, inside

from experiments import environment, options, run_dir
from experiments.__main__ import main
from experiments.cli import run_all
from experiments.ledger import collect as ledger
from experiments.ledger import page as report
from experiments.studies.identities import config as identities
from experiments.studies.titanic import config as titanic
from experiments.study import Study

PNG = b"\x89PNG\r\n\x1a\n"


# ---- Preset --------------------------------------------------------------------------------------


def result(folder, said, config, name="titanic"):
    """Make a finished run of this config that claims to be of the preset `said`."""
    with run_dir.create(folder, name, config) as run:
        run_dir.keep_environment(run, environment.describe())
        Study(name, run, preset=said).finish()
    return ledger.result_of(run.path, name)


def changed(**values):
    return dataclasses.replace(titanic.PRESETS["quick"], **values)


@pytest.mark.parametrize(
    ("said", "config", "preset", "basis"),
    [
        ("quick", changed(), "quick", "preset quick"),
        ("paper", changed(), "quick", "preset quick"),
        ("own options", changed(), "quick", "preset quick"),
        ("quick", changed(seeds=2), "quick, changed: seeds=2", "preset quick, changed: seeds=2"),
        ("own options", changed(seeds=2), "own options", "own options"),
        ("no such preset", changed(seeds=2), "own options", "own options"),
        (
            "paper",
            changed(seeds=2, folds=3, hidden=(8, 8), momentum=0.5),
            "paper, changed: seeds=2, folds=3, momentum=0.5, 1 more",
            "preset paper, changed: seeds=2, folds=3, momentum=0.5, 1 more",
        ),
    ],
)
def test_a_run_is_of_the_preset_that_its_options_are(tmp_path, said, config, preset, basis):
    found = result(tmp_path, said, config)
    assert (found.preset, found.basis) == (preset, basis)


def test_a_changed_preset_ranks_as_own_options_and_a_changed_smoke_run_gives_no_verdict(tmp_path):
    quick, other = result(tmp_path, "quick", changed()), result(tmp_path, "quick", changed(seeds=9))
    own = result(tmp_path, "own options", changed(seeds=9))
    assert quick.rank > other.rank == own.rank
    smoke = dataclasses.replace(titanic.PRESETS["smoke"], source="titanic")
    assert result(tmp_path, "smoke", smoke).flaw == "a smoke run"
    assert not other.flaw


def test_an_option_that_another_version_had_is_a_change(tmp_path):
    found = result(tmp_path, "quick", changed())
    del found.summary["config"]["folds"]
    found.summary["config"]["wings"] = 2
    assert found.preset == "quick, changed: folds=unknown, wings=2"
    assert report.command("titanic", found) == "python -m experiments titanic --preset quick"


@pytest.mark.parametrize("said", ["quick", "paper", "own options"])
def test_the_command_in_the_report_asks_for_the_same_options(tmp_path, said):
    config = changed(seeds=2, hidden=(8, 8), learning_rate=0.5)
    words = shlex.split(report.command("titanic", result(tmp_path, said, config)))
    assert words[:4] == ["python", "-m", "experiments", "titanic"]
    assert options.parse("titanic", titanic, words[4:]).config == config


def test_a_summary_of_other_options_than_the_run_was_begun_with_is_left_out(tmp_path):
    path = result(tmp_path, "quick", changed(seeds=2)).path
    summary = json.loads((path / "summary.json").read_text())
    summary["config"]["seeds"] = 10
    (path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ledger.BadRun, match=r"options in summary.json to match config.json"):
        ledger.result_of(path, "titanic")


# ---- Figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["text", "svg", "start", "cut", "flipped", "empty", "jpeg"])
def test_a_figure_that_is_no_png_is_named_and_its_run_left_out(tmp_path, damage):
    good = finished(tmp_path, "identities", inside)
    bad, said = finished(tmp_path, "identities", inside), []
    file = bad / "errors.png"
    content = file.read_bytes()
    middle = len(content) // 2
    damaged = {
        "text": b"<script>alert(1)</script>",
        "svg": (bad / "errors.svg").read_bytes(),
        "start": PNG,
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "jpeg": b"\xff\xd8\xff\xe0" + content,
    }
    file.write_bytes(damaged[damage])
    (result,) = ledger.collect([tmp_path], kept=tmp_path, say=said.append).values()
    assert result.path == good
    (line,) = said
    assert line.startswith(
        f"identities: left out {bad}: expected the figure errors.png to be a complete PNG. Resume"
    )


def test_all_makes_the_figures_of_a_finished_run_again_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(identities.PRESETS, "smoke", identities.PRESETS["quick"])
    path, asked = finished(tmp_path, "identities", inside), []
    (path / "errors.png").write_bytes(PNG)
    arguments = ["--preset", "smoke", "--runs", str(tmp_path), "--resume"]
    one = lambda name, words: asked.append(words) or 0  # noqa: E731
    assert run_all.carry_out(("identities",), arguments, one) == 0
    assert f"--resume={path}" in asked[0]


# ---- Folders -------------------------------------------------------------------------------------


def test_a_report_of_a_file_is_refused_in_one_line(tmp_path, capsys):
    file = tmp_path / "summary.json"
    file.write_text("{}")
    assert main(["report", "--runs", str(file), "--to", str(tmp_path / "to")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"report: Expected --runs with folders, got {file}, which is a file. Pass the folder of a "
        "run, or of all runs."
    )
    assert not (tmp_path / "to").exists()


def test_a_folder_without_a_finished_run_is_said(tmp_path, capsys, monkeypatch):
    """For example, the folder of one experiment instead of the folder of all."""
    monkeypatch.setattr(report, "write", lambda *_: None)
    path = finished(tmp_path / "runs", "identities", inside)
    assert main(["report", "--runs", str(path.parent)]) == 0
    assert capsys.readouterr().err == (
        f"{path.parent} has no finished runs: shown is what the project keeps\n"
    )
    assert main(["report", "--runs", str(path.parents[1]), str(tmp_path / "none")]) == 0
    assert f"{tmp_path / 'none'} has no runs\n" in capsys.readouterr().err


# ---- Other trouble -------------------------------------------------------------------------------


def test_of_equal_runs_the_one_that_lacks_no_number_is_taken(tmp_path, capsys, monkeypatch):
    """Runs measured before a claim was added lack its numbers."""
    monkeypatch.setattr(report, "write", lambda *_: None)
    whole, path = (finished(tmp_path / "runs", "identities", inside) for _ in range(2))
    summary = json.loads((path / "summary.json").read_text())
    del summary["metrics"]["bias_effect"]
    (path / "summary.json").write_text(json.dumps(summary))
    (taken,) = ledger.collect([tmp_path / "runs"], kept=tmp_path).values()
    assert taken.path == whole
    assert main(["report", "--runs", str(path)]) == 0  # A named run is taken.
    assert f"identities: {path} lacks bias_effect: not measured\n" in capsys.readouterr().err


def test_what_is_kept_stays_where_its_successor_cannot_be_copied(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    path, kept = finished(tmp_path, "identities", inside), tmp_path / "kept"
    result = ledger.result_of(path, "identities")
    report.keep({"identities": result}, kept)
    before = sorted(each.name for each in (kept / "identities").iterdir())
    assert before == ["bessel.png", "errors.png", "summary.json"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy", full)
        with pytest.raises(OSError, match="No space left"):
            report.keep({"identities": result}, kept)
    assert sorted(each.name for each in (kept / "identities").iterdir()) == before
    report.keep({"identities": result}, kept)
    assert [each.name for each in kept.iterdir()] == ["identities"]


def test_a_run_that_another_process_is_at_is_named(tmp_path, capsys):
    config = identities.PRESETS["smoke"]
    with run_dir.create(tmp_path, "identities", config) as run:
        words = ["identities", "--preset", "smoke", "--runs", str(tmp_path), "--resume"]
        assert main(words) == 2
    line, _ = capsys.readouterr().err.splitlines()
    assert line == f"{run.path} is skipped: another process is using it"
