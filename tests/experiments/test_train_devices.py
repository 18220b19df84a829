"""The trainer has the same metrics on eight devices as on one, from the same seed and order."""

import dataclasses

import jax
import numpy as np
import pytest
from environments import programs_on_disk

from experiments import run_dir
from experiments.studies.mnist_mlp import fig1
from experiments.studies.mnist_mlp import measure as mnist_mlp
from experiments.studies.mnist_mlp.config import PRESETS
from experiments.study import Study
from experiments.tasks import data
from experiments.training.devices import WAYS, BatchShard, Devices
from experiments.training.loop import Execution
from experiments.training.signals import GracefulExit, Stopped

# Batches of 60 on 8 devices: shards of 8, the last one with four examples and four of padding.
CONFIG = dataclasses.replace(
    PRESETS["smoke"], hidden=(30, 20), steps=60, evaluate_every=15, population_batches=2
)
# Batches of 6: two of eight devices have only padding; one seed, so no vmap. With batches of three,
# the network itself would amplify rounding errors tenfold in every step.
TINY = dataclasses.replace(CONFIG, batch_size=6, seeds=1, steps=15)
# Percentiles of size 1 are written with four decimals; after 60 steps, rounding errors are 1e-6.
PERCENTILE = 1.01e-4


@pytest.fixture(scope="module", autouse=True)
def shorter():
    """Cache compiled programs on disk, since each run recompiles its own, and draw no figures."""
    with programs_on_disk(), pytest.MonkeyPatch.context() as patch:
        # Figures only show the metrics, which are compared; test_mnist_mlp.py checks figures.
        patch.setattr(fig1, "report", lambda config, study: None)
        yield


@pytest.fixture(scope="module")
def digits():
    """The smallest data set."""
    return data.load("digits", data_dir=None)


def run_on(devices, config, dataset, root, graceful_exit=None):
    with run_dir.create(root, "mnist_mlp", config) as run:
        return carry_on(run, devices, config, dataset, graceful_exit)


def carry_on(run, devices, config, dataset, graceful_exit=None):
    execution = Execution(devices, 10, graceful_exit or GracefulExit())
    study = Study("mnist_mlp", run, execution=execution)
    study.add_dataset(config.dataset, dataset)
    mnist_mlp.measure(config, study)
    return rows(run.path)


def rows(path):
    return list(run_dir.read_rows(path / "metrics.jsonl"))


def assert_same(got, want):
    assert [row["step"] for row in got] == [row["step"] for row in want]
    for a, b in zip(got, want, strict=True):
        assert a["accuracy"] == b["accuracy"]
        for name in b["percentiles"]:
            np.testing.assert_allclose(
                a["percentiles"][name], b["percentiles"][name], rtol=0, atol=PERCENTILE
            )


@pytest.fixture(scope="module")
def one(digits, tmp_path_factory):
    """The metrics of one device."""
    return run_on(Devices(), CONFIG, digits, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def tiny(digits, tmp_path_factory):
    """The metrics of one device with batches of six."""
    return run_on(Devices(), TINY, digits, tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_have_the_metrics_of_one(way, one, digits, tmp_path):
    assert_same(run_on(Devices(8, way), CONFIG, digits, tmp_path), one)


@pytest.mark.parametrize("way", WAYS)
def test_more_devices_than_examples(way, tiny, digits, tmp_path):
    assert_same(run_on(Devices(8, way), TINY, digits, tmp_path), tiny)


def test_a_run_goes_on_with_other_devices(one, digits, tmp_path):
    """From 8 to 1 to 4 to 8 devices, with one chunk of the run each."""
    with run_dir.create(tmp_path, "mnist_mlp", CONFIG) as run:
        path, stopped = run.path, GracefulExit()
    stopped.received = 15
    steps = [0]
    for devices in (Devices(8), Devices(), Devices(4, "pmap")):
        with run_dir.open_run(path) as run, pytest.raises(Stopped):
            carry_on(run, devices, CONFIG, digits, stopped)
        steps.append(steps[-1] + CONFIG.evaluate_every)
        assert [row["step"] for row in rows(path)] == steps
    with run_dir.open_run(path) as run:
        assert_same(carry_on(run, Devices(8, "pmap"), CONFIG, digits), one)


def test_batch_without_padding_has_no_mask():
    seen = []

    def step(state, batch, share):
        seen.append(share.mask)
        return state

    for batch_size, masked in ((16, False), (15, True)):
        chunk = Devices(8).compile(step, batch_size)
        zeros, examples = np.zeros(1, np.float32), np.arange(50, dtype=np.float32)
        chunk(zeros, examples, np.zeros((2, 1, batch_size), np.int32))
        assert (seen[-1] is not None) == masked


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [1, 7, 8, 13])
def test_shares_of_mean_and_gradient_add_up(way, batch_size):
    """Compare the mean of x and the gradient of mean((w x)^2) with one device."""
    x = np.random.default_rng(0).normal(size=50).astype(np.float32)
    rows = np.random.default_rng(1).integers(0, 50, (1, 1, batch_size)).astype(np.int32)

    def step(state, batch, share):
        def loss(w):
            return share.mean((w * batch) ** 2), None

        gradient, _ = share.gradient(loss, state["w"])
        return {"w": state["w"] - gradient}

    devices = Devices(8, way)
    state = devices.replicate({"w": np.ones(1, np.float32)})
    chunk = devices.compile(step, batch_size)
    got = devices.one(chunk(state, devices.replicate(x), rows))
    np.testing.assert_allclose(np.asarray(got["w"])[0], 1 - 2 * np.mean(x[rows] ** 2), rtol=1e-5)


def test_mean_without_mask_is_the_mean():
    values = np.arange(5, dtype=np.float32)
    assert float(BatchShard(5).mean(values)) == 2.0
    assert float(BatchShard(5, mask=np.arange(5) < 3).mean(values)) == pytest.approx(3 / 5)


def test_devices_that_there_are_not():
    with pytest.raises(ValueError, match=r"--devices of 1 to 8.*got 9"):
        Devices(9)
    with pytest.raises(ValueError, match="shard_map, jit, pmap"):
        Devices(2, "xmap")
    assert str(Devices(8)) == "8 devices, shard_map"
    assert str(Devices()) == "1 device"


@pytest.mark.parametrize("way", WAYS)
def test_state_on_devices_is_replicated(way):
    devices = Devices(8, way)
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int32(4)}
    placed = devices.replicate(tree)
    assert all(len(leaf.addressable_shards) == 8 for leaf in jax.tree.leaves(placed))
    for name, leaf in devices.one(placed).items():
        np.testing.assert_array_equal(leaf, tree[name])
