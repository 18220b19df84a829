"""Studies: stored parts, numbers, refusals; `all`; and a study that is killed."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from environments import UNCACHED, own_environment, programs_on_disk
from figure_flaws import flaws

from experiments import environment, run_dir
from experiments.__main__ import EXPERIMENTS, main
from experiments.cli import run_all
from experiments.ledger import collect as ledger
from experiments.ledger.claims import CLAIMS
from experiments.stats import estimates
from experiments.studies.gradients import config as gradients_config
from experiments.study import Study

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 3


@pytest.fixture
def run(tmp_path):
    with run_dir.create(tmp_path, "gradients", Config()) as made:
        run_dir.keep_environment(made, environment.describe())
        yield made


# ---- A study -------------------------------------------------------------------------------------


def test_part_is_measured_once_and_kept_exactly(run):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    calls = []

    def measure():
        calls.append(1)
        return {"x": values, "best": 7}

    for study in (Study("gradients", run), Study("gradients", run)):
        found = study.part("depth", measure)
        np.testing.assert_array_equal(found["x"], values)
        assert found["x"].dtype == np.float32
        assert int(found["best"]) == 7
    assert len(calls) == 1


def test_part_that_fails_leaves_nothing(run):
    study = Study("gradients", run)
    with pytest.raises(ZeroDivisionError):
        study.part("depth", lambda: {"x": 1 / 0})
    assert not list((run.path / "parts").glob("*.npz"))
    assert study.part("depth", lambda: {"x": 1})["x"] == 1


def test_a_number_is_reported_once(run):
    study = Study("gradients", run)
    study.report("factor", estimates.exact(1))
    with pytest.raises(ValueError, match="once, got 'factor' again"):
        study.report("factor", estimates.exact(2))


def test_summary_gives_the_estimates_back(run):
    study = Study("gradients", run, preset="smoke")
    study.part("depth", lambda: {"x": 1})
    study.report("factor", estimates.mean([1.0, 2.0, 4.0]))
    study.report("share", estimates.share([True, False, True]))
    study.finish()
    result = ledger.Result(run.path, run.read("summary.json"))
    assert result.estimates == study.estimates
    assert result.summary["preset"] == "smoke"
    assert set(result.summary["seconds"]) == {"depth"}


def test_other_examples_are_refused_when_a_study_goes_on(run):
    ours = {"name": "mnist", "source": "a test", "sha256": "a"}
    Study("gradients", run).describe_data("mnist", ours)
    Study("gradients", run).describe_data("mnist", ours)
    with pytest.raises(ValueError, match=r"Expected the examples .* Pass the same --data-dir"):
        Study("gradients", run).describe_data("mnist", {"name": "digits", "sha256": "b"})


def test_killed_study_goes_on_after_its_last_part(tmp_path):
    """Killed in the second part, it does not repeat the first, and ends with the same results."""
    command = [sys.executable, "-m", "experiments", "identities", "--preset", "smoke"]
    command += ["--runs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.rglob("layer.npz")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = (tmp_path / "identities").iterdir()
    kept = (path / "parts" / "layer.npz").stat().st_mtime_ns
    assert not (path / "summary.json").exists()
    arguments = ["identities", "--preset", "smoke", "--runs", str(tmp_path)]
    with programs_on_disk():
        assert main([*arguments, "--resume"]) == 0
        assert (path / "parts" / "layer.npz").stat().st_mtime_ns == kept
        assert main(arguments) == 0
    other, _ = run_dir.finished(tmp_path, "identities")
    one, two = (run_dir.read_json(p / "summary.json")["metrics"] for p in (path, other))
    assert one == two


# ---- The registry --------------------------------------------------------------------------------


def test_claims_are_named_once_and_have_an_experiment():
    ids = [claim.id for claim in CLAIMS]
    assert len(ids) == len(set(ids))
    assert {claim.experiment for claim in CLAIMS} == set(EXPERIMENTS)
    sources = {"000", "001", "002", "003", "004", "paper", "later"}
    for claim in CLAIMS:
        assert set() < set(claim.sources) <= sources, claim.id
        assert claim.text.endswith("."), claim.id
        assert claim.checks, claim.id
    for note in sources:
        assert any(note in claim.sources for claim in CLAIMS)


def test_every_rule_can_fail_and_can_hold():
    """Rules have a bound on at least one side, and bounds in order."""
    for claim in CLAIMS:
        for check in claim.checks:
            assert check.low < check.high, check
            assert np.isfinite([check.low, check.high]).any(), check


def test_list_shows_every_claim(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(claim.id in shown and claim.text in shown for claim in CLAIMS)


@pytest.fixture
def gradients(tmp_path):
    """Make finished runs of `gradients` with made-up results."""

    def make(preset="quick", runs=8, data="mnist", **options):
        presets = gradients_config.PRESETS
        own = dataclasses.replace(presets["quick"], seeds=9)
        config = dataclasses.replace(presets.get(preset, own), **{"dataset": "mnist", **options})
        with run_dir.create(tmp_path / "runs", "gradients", config) as run:
            run_dir.keep_environment(run, environment.describe())
            study = Study("gradients", run, preset=preset)
            described = {"name": data, "source": "a test", "train_examples": 9, "sha256": "ab"}
            study.describe_data(config.dataset, described)
            study.report("backprop_error", estimates.mean([0.0] * (runs - 1) + [1e-9]))
            study.finish()
        return run.path

    return make


def test_the_best_run_is_taken_and_the_others_are_named(tmp_path, gradients):
    def taken(*folders, kept=tmp_path):
        said = []
        found = ledger.collect(folders or [tmp_path / "runs"], kept=kept, say=said.append)
        return found["gradients"].path, said

    smoke = gradients("smoke")
    assert taken() == (smoke, [])
    path, (said,) = taken(kept=ledger.KEPT)
    assert path == ledger.KEPT / "gradients"
    assert f"not {smoke} (a smoke run)" in said
    few, quick = gradients(runs=5), gradients()
    gradients(runs=3)  # Newer, but with fewer seeds.
    gradients(data="digits", runs=20)
    gradients(dataset="fashion_mnist", data="fashion_mnist", runs=20)
    gradients("own options", runs=20)
    gradients("smoke")
    path, said = taken()
    assert path == quick
    assert len(said) == 7
    assert f"using {quick} (quick, 8 seeds), not {few} (quick, 5 seeds)" in " ".join(said)
    assert "measured on digits, not mnist" in " ".join(said)
    assert "measured on fashion_mnist, not mnist" in " ".join(said)
    assert taken(tmp_path / "runs", few) == (few, [])  # A named run is taken.
    assert taken(kept=tmp_path)[0] == quick
    again = gradients()
    assert taken()[0] == again  # The newest of equal ones.
    paper = gradients("paper", runs=4)
    assert taken()[0] == paper


def test_no_verdict_on_other_data_than_the_claims_are_about(tmp_path, gradients):
    gradients(data="digits")
    (result,) = ledger.collect([tmp_path / "runs"], kept=tmp_path).values()
    assert result.basis == "digits (9 training examples), preset quick"
    assert {row.verdict for row in ledger.rows({"gradients": result})} == {"not measured"}
    text = ledger.as_text(result)
    assert "No verdicts: measured on digits, not mnist." in text
    assert "HOLDS" not in text


def damage(path, how):
    summary = json.loads((path / "summary.json").read_text())
    metric = summary["metrics"]["backprop_error"]
    if how == "figure":
        summary["figures"] = [{"file": "../../secret.png", "title": "", "alt": ""}]
    if how == "no figure":
        summary["figures"] = [{"file": "gone.png", "title": "", "alt": ""}]
    if how == "link":
        (path / "link.png").symlink_to(path.parent / "secret.png")
        summary["figures"] = [{"file": "link.png", "title": "", "alt": ""}]
    if how == "nan":
        metric["value"] = float("nan")
    if how == "types":
        metric["runs"] = "many"
    if how == "interval":
        metric["low"] = 2.0
    if how == "preset":
        summary["preset"] = ["quick"]
    if how == "seconds":
        summary["seconds"] = {"a": "3"}
    if how == "huge":
        summary["seconds"] = {"a": 10**400}
    if how == "letters":
        summary["figures"] = [{"file": "a\0.png", "title": "\ud800", "alt": ""}]
    if how == "examples":
        summary["data"]["mnist"]["train_examples"] = "many"
    if how == "other":
        summary["config"]["experiment"] = "titanic"
    if how == "list":
        summary = [summary]
    if how == "lacks":
        del summary["environment"]
    text = json.dumps(summary)
    text = {"empty": "", "cut": text[: len(text) // 2], "deep": "[" * 100_000}.get(how, text)
    (path / "summary.json").write_text(text)


@pytest.mark.parametrize(
    "how",
    [
        *("figure", "no figure", "link", "nan", "types", "interval", "other", "list", "lacks"),
        *("empty", "cut", "deep", "preset", "seconds", "huge", "letters", "examples"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(tmp_path, gradients, how):
    (tmp_path / "runs" / "gradients").mkdir(parents=True)
    (tmp_path / "runs" / "gradients" / "secret.png").write_text("secret")
    good, bad, said = gradients(), gradients("paper"), []
    damage(bad, how)
    results = ledger.collect([tmp_path / "runs"], kept=tmp_path, say=said.append)
    assert results["gradients"].path == good
    (line,) = said
    assert line.startswith(f"gradients: left out {bad}: expected")
    assert len(line) < 400


# ---- All experiments -----------------------------------------------------------------------------


def test_all_goes_on_after_one_that_fails(tmp_path, capsys):
    asked = []

    def one(name, words):
        asked.append(name)
        if name == "titanic":
            raise RuntimeError("no such ship")
        return 0

    arguments = ["--preset", "smoke", "--runs", str(tmp_path)]
    assert run_all.carry_out(("titanic", "gradients"), arguments, one) == 1
    assert asked == ["titanic", "gradients"]
    shown = capsys.readouterr()
    assert "no such ship" in shown.err
    assert "failed: titanic" in shown.err
    assert "skipped" not in shown.err
    assert run_all.carry_out(("titanic", "gradients"), ["--only", "gradients"], one) == 0
    assert run_all.carry_out(("titanic",), ["--only", "nothing"], one) == 2


def test_all_skips_what_cannot_run_here(tmp_path, capsys):
    arguments = ["--preset", "smoke", "--runs", str(tmp_path)]
    statuses = {"titanic": 2, "gradients": 0}
    carry_out = functools.partial(run_all.carry_out, tuple(statuses))
    assert carry_out(arguments, lambda name, words: statuses[name]) == 0
    shown = capsys.readouterr()
    assert "skipped: titanic" in shown.err
    assert "1 experiment," in shown.out
    assert carry_out(arguments, lambda name, words: 2) == 2


def test_all_resumes_what_was_begun_and_skips_what_is_finished(tmp_path):
    from experiments.studies.identities.config import PRESETS

    config = PRESETS["smoke"]
    with run_dir.create(tmp_path, "identities", config):
        pass
    asked = []

    def one(name, words):
        asked.append(words)
        return 0

    arguments = ["--preset", "smoke", "--runs", str(tmp_path), "--resume"]
    run_all.carry_out(("identities",), arguments, one)
    assert "--resume" in asked[0]
    with run_dir.create(tmp_path, "identities", config) as run:
        run.write("summary.json", {})
    run_all.carry_out(("identities",), arguments, one)
    assert len(asked) == 2  # The report would not use it.
    with run_dir.create(tmp_path, "identities", config) as run:
        run_dir.keep_environment(run, environment.describe())
        Study("identities", run).finish()
    run_all.carry_out(("identities",), arguments, one)
    assert len(asked) == 2
    assert run_all.carry_out(("identities",), [*arguments, "--only"], one) == 2


def test_all_smoke_measures_every_number_that_a_claim_asks_for(tmp_path):
    """End to end: every experiment with its smallest preset, in its own process."""
    command = [sys.executable, "-W", "error::DeprecationWarning", "-m", "experiments", "all"]
    command += ["--preset", "smoke", "--runs", str(tmp_path)]
    environment = own_environment(PYTHONPATH=str(ROOT), **UNCACHED)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    results = ledger.collect([tmp_path], kept=tmp_path)
    wanted = {(claim.experiment, check.metric) for claim in CLAIMS for check in claim.checks}
    measured = {(name, metric) for name, result in results.items() for metric in result.estimates}
    assert wanted - measured == set()
    pictured = {(claim.experiment, claim.figure) for claim in CLAIMS if claim.figure}
    plotted = {
        (name, figure["file"].removesuffix(".png"))
        for name, result in results.items()
        for figure in result.summary["figures"]
    }
    assert pictured - plotted == set()
    for name, result in results.items():
        for figure in result.summary["figures"]:
            assert (result.path / figure["file"]).stat().st_size > 5_000, (name, figure)
            assert len(figure["alt"]) > 40, (name, figure)
            assert len(figure["caption"]) > 40, (name, figure)
            words = figure["title"] + figure["caption"] + figure["alt"]
            assert "_" not in words, f"{name}: a name of the code: {words}"
        for svg in result.path.glob("*.svg"):
            assert not flaws(svg), (name, svg.name, flaws(svg))
        for metric, estimate in result.estimates.items():
            json.dumps(estimate.value, allow_nan=False)
            assert estimate.low <= estimate.value <= estimate.high, (name, metric)
