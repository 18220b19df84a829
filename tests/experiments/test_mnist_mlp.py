"""Fig. 1: the networks, the measurements, the command line, and a run that is killed."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from environments import programs_on_disk

from experiments import run_dir
from experiments.__main__ import main
from experiments.options import parse
from experiments.stats.drift import PERCENTILES
from experiments.studies.mnist_mlp import config as settings
from experiments.studies.mnist_mlp import fig1
from experiments.studies.mnist_mlp import measure as mnist_mlp
from experiments.studies.mnist_mlp.config import PRESETS, Config
from experiments.study import Study
from experiments.tasks import data
from jbn.linen import BatchNorm
from jbn.models import MLP

CONFIG = PRESETS["smoke"]
FIGURES = {
    f"{name}.{kind}" for name in ("fig1", "fig1a", "fig1b", "fig1c") for kind in ("png", "svg")
}
ROOT = Path(__file__).parents[2]


# ---- The network ---------------------------------------------------------------------------------


def test_bias_goes_where_batch_norm_comes():
    x = np.ones((4, 5), np.float32)
    for norm, hidden in ((None, {"kernel", "bias"}), (BatchNorm, {"kernel"})):
        model = MLP(hidden=(3, 2), outputs=6, norm=norm)
        init = functools.partial(model.init, training=False)
        params = jax.eval_shape(init, jax.random.key(0), x)["params"]
        assert set(params["dense_0"]) == set(params["dense_1"]) == hidden
        assert set(params["output"]) == {"kernel", "bias"}
        assert params["output"]["kernel"].shape == (2, 6)


@pytest.mark.parametrize("norm", [None, BatchNorm])
def test_sown_values_enter_the_nonlinearity(norm):
    x = jax.device_put(np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32))
    model = MLP(hidden=(3, 4), outputs=2, norm=norm)
    variables = jax.jit(functools.partial(model.init, training=False))(jax.random.key(0), x)
    y, sown = model.apply(variables, x, training=True, mutable=["intermediates", "batch_stats"])
    (last,) = sown["intermediates"]["activation_input_1"]
    output = variables["params"]["output"]
    np.testing.assert_allclose(
        y, nn.sigmoid(last) @ output["kernel"] + output["bias"][None], rtol=1e-5
    )
    if norm:
        np.testing.assert_allclose(last.mean(0), 0, atol=1e-5)
    assert set(model.apply(variables, x, training=True, mutable=["batch_stats"])[1]) == (
        {"batch_stats"} if norm else set()
    )


def test_networks_start_from_the_same_weights():
    state = jax.device_get(jax.jit(lambda key: mnist_mlp.init(CONFIG, key, 784))(jax.random.key(0)))
    without, with_bn = state["without"].params, state["with"].params
    for name, layer in without.items():
        chex.assert_trees_all_equal(layer["kernel"], with_bn[name]["kernel"])
        assert not layer["bias"].any()
    assert abs(float(without["dense_0"]["kernel"].std()) - CONFIG.sigma) < 0.002


# ---- What is measured ----------------------------------------------------------------------------


def test_percentiles_are_numpys_by_nearest_rank():
    values = np.random.default_rng(0).normal(size=(2, 77, 3)).astype(np.float32)
    expected = np.percentile(values, PERCENTILES, axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(mnist_mlp.percentiles(values), np.moveaxis(expected, 0, 1))


def test_evaluation_by_hand():
    """Compare accuracies with Algorithm 2 and with running averages in plain NumPy."""
    config = Config(seeds=1, hidden=(6, 5), sigma=1.0)
    rng = np.random.default_rng(0)
    population, images = (
        rng.integers(0, 2, shape).astype(np.uint8) for shape in ((4, 10, 8), (50, 8))
    )
    state = jax.jit(lambda key: mnist_mlp.init(config, key, 8))(jax.random.key(0))
    params = jax.tree.map(np.float64, state["with"].params)

    def forward(x, moments):
        for i, (mean, var) in enumerate(moments):
            x = (x @ params[f"dense_{i}"]["kernel"] - mean) / np.sqrt(var + 1e-5)
            x = 1 / (1 + np.exp(-x))
        return x

    moments = []
    for i in range(2):  # For a layer's statistics, layers below normalize by each batch's own.
        u = []
        for x in population:
            h = x
            for below in range(i):
                z = h @ params[f"dense_{below}"]["kernel"]
                h = 1 / (1 + np.exp(-(z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)))
            u.append(h @ params[f"dense_{i}"]["kernel"])
        moments.append((np.mean(u, (0, 1)), np.var(u, 1, ddof=1).mean(0)))
    output = params["output"]
    labels = (forward(images, moments) @ output["kernel"] + output["bias"]).argmax(-1)
    plain = [(0.0, 1.0)] * 2
    as_begun = (forward(images, plain) @ output["kernel"] + output["bias"]).argmax(-1)

    test = images, labels.astype(np.uint8)
    evaluate = mnist_mlp.make_evaluate(config, *jax.device_put((population, test)))
    row = evaluate(jax.tree.map(lambda leaf: np.asarray(leaf)[None], state))
    assert row["accuracy"]["with_population"] == [1.0]
    assert row["accuracy"]["with_exponential"] == [round((as_begun == labels).mean(), 6)]
    last = forward(images, moments[:1]) @ params["dense_1"]["kernel"]
    last = (last - moments[1][0]) / np.sqrt(moments[1][1] + 1e-5)
    expected = np.percentile(last, PERCENTILES, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(row["percentiles"]["with"], expected[None], atol=1e-3)
    assert json.loads(json.dumps(row)) == row


def test_drift_and_spread_by_hand():
    steps = np.array([0, 500, 1000, 1500, 2000])
    medians = np.array([[9, 9], [9, 9], [0.0, 1.0], [0.3, 1.5], [-0.1, 0.8]])
    spreads = np.array([[9, 9], [0.1, 0.1], [1.0, 2.0], [2.0, 2.0], [4.0, 3.0]])
    three = np.stack([medians - spreads / 2, medians, medians + spreads / 2], 1)[:, None]
    accuracy = dict.fromkeys(fig1.CURVES, steps[:, None] / 2000)
    found = fig1.Metrics(steps, accuracy, {"without": three, "with": three})
    made = fig1.estimate(found)
    assert made["drift_with"].value == pytest.approx((0.3 + 0.5) / 2)
    assert made["range_with"].value == pytest.approx((0.4 + 0.7) / 2)
    assert made["spread_with"].value == pytest.approx((4 + 1.5) / 2)
    assert [name for name in made if name.startswith("accuracy_without")] == [
        "accuracy_without_1000",
        "accuracy_without_2000",
    ]
    text = fig1.table(Config(steps=2000, seeds=1), "digits", made)
    assert "1,000" in text
    assert "±" not in text  # One seed gives no interval.


def test_typical_unit_is_in_the_middle_of_both():
    moved = {"without": [0.1, 0.5, 0.9], "with": [3.0, 2.0, 1.0]}
    inputs = {name: np.zeros((3, 1, 3, 3)) for name in moved}
    for name, drift in moved.items():
        inputs[name][2, 0, 1] = drift
    assert fig1.typical_unit(fig1.Metrics(np.array([0, 1000, 2000]), {}, inputs)) == 1


@pytest.mark.parametrize(
    "options",
    [{"seeds": 0}, {"batch_size": 1}, {"sigma": -1.0}, {"learning_rate": 0.0}, {"hidden": ()}],
)
def test_config_that_cannot_be_trained(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)


# ---- The run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted smoke run in this process."""
    root = tmp_path_factory.mktemp("runs")
    with programs_on_disk():
        assert main(["mnist_mlp", "--preset", "smoke", "--runs", str(root)]) == 0
    (path,) = (root / "mnist_mlp").iterdir()
    return path


def test_run_leaves_all_that_was_promised(finished):
    assert FIGURES | {
        "config.json",
        "env.json",
        "metrics.jsonl",
        "timing.jsonl",
        "summary.json",
        "data_digits.json",
        "checkpoints",
        "lock",
    } == {path.name for path in finished.iterdir()}
    assert run_dir.read_json(finished / "summary.json")["data"]["digits"]["name"] == "digits"
    for name in FIGURES:
        assert (finished / name).stat().st_size > 10_000


def test_batch_norm_learns_where_the_plain_network_does_not_yet(finished):
    metrics = run_dir.read_json(finished / "summary.json")["metrics"]
    at = {name: metrics[f"accuracy_{name}_300"]["value"] for name in fig1.CURVES}
    assert at["without"] < 0.3
    assert at["with_population"] > 0.85
    assert at["with_exponential"] > 0.85


def test_figures_need_only_the_files_of_the_run(finished, tmp_path):
    for name in ("config.json", "env.json", "metrics.jsonl", "timing.jsonl"):
        shutil.copy(finished / name, tmp_path)
    with run_dir.open_run(tmp_path) as run:
        study = Study("mnist_mlp", run, preset="smoke")
        study.add_dataset("digits", data.load("digits"))
        fig1.report(CONFIG, study)
        study.finish()
    assert run.read("summary.json") == run_dir.read_json(finished / "summary.json")
    for name in FIGURES:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_killed_and_interrupted_run_ends_with_the_same_metrics(finished, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments", "mnist_mlp", "--preset", "smoke"]

    def start(*options):
        return subprocess.Popen(
            [*command, "--runs", str(tmp_path), *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def await_progress(process):
        for line in process.stderr:
            if line.startswith("step"):
                return
        pytest.fail("ended before it could be stopped")

    with start() as process:
        await_progress(process)
        process.send_signal(signal.SIGKILL)
    (path,) = (tmp_path / "mnist_mlp").iterdir()
    assert not (path / "summary.json").exists()

    with start("--resume") as process:
        await_progress(process)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode == 130
    assert told.splitlines()[-1].endswith(f"--resume {path}")
    assert "Traceback" not in told
    assert not (path / "summary.json").exists()
    with programs_on_disk():
        assert main(["mnist_mlp", "--resume", str(path)]) == 0
    for name in ("config.json", "metrics.jsonl", "fig1.svg"):
        assert (path / name).read_bytes() == (finished / name).read_bytes()


# ---- The command line ----------------------------------------------------------------------------

options = functools.partial(parse, "mnist_mlp", settings)


def test_preset_sets_defaults_and_options_overrule_them():
    assert options([]).config == PRESETS["quick"]
    paper = options(["--preset=paper", "--seeds", "2", "--sigma", ".05", "--hidden", "30", "20"])
    assert paper.config == Config(
        seeds=2, steps=50_000, evaluate_every=250, sigma=0.05, hidden=(30, 20)
    )
    assert options(["--resume", "--seeds", "2"]).execution.resume == "newest"
    assert options(["--data-dir", "x"]).execution.data_dir == Path("x")


def test_resumed_run_has_its_own_options(finished):
    assert options(["--resume", str(finished)]).config == CONFIG
    assert options(["--resume", str(finished), "--preset", "smoke"]).config == CONFIG
    for contradiction in (["--seeds", "7"], ["--preset", "quick"]):
        with pytest.raises(ValueError, match="options it was started with"):
            options(["--resume", str(finished), *contradiction])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "mnist_mlp"),
        (["mnist_mlp", "--preset", "huge"], "smoke"),
        (["mnist_mlp", "--seed", "3"], "--seeds"),
        (["mnist_mlp", "--seeds", "none"], "--seeds"),
        (["mnist_mlp", "--seeds", "0"], "at least 1"),
        (["mnist_mlp", "--data-dir", "/nowhere"], "/nowhere/mnist/train-images"),
        (["mnist_mlp", "--resume", "/nowhere"], "config.json"),
        (["mnist_mlp", "--resume", "--preset", "smoke"], "unfinished run"),
    ],
)
def test_wrong_use_is_explained_and_leaves_nothing(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    told = capsys.readouterr()
    assert status == 2
    assert message in told.err + told.out
    assert not list(tmp_path.iterdir())


def test_list_and_help(capsys):
    for arguments in ([], ["--help"], ["list"]):
        assert main(arguments) == 0
        assert "mnist_mlp" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main(["mnist_mlp", "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert "--learning-rate" in shown
    assert "Fig. 1 of the paper" in shown  # The study's docstring.


def test_every_preset_has_data_it_can_name():
    for config in PRESETS.values():
        assert config.dataset in (*data.SHA256, "digits")
