"""ImageNet: many devices give the results of one, and resumed runs those of undisturbed ones."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run_dir
from experiments.__main__ import main
from experiments.studies.imagenet import ensemble
from experiments.studies.imagenet import network as networks
from experiments.studies.imagenet.config import PRESETS, SWITCHES
from experiments.studies.imagenet.data.source import open_source
from experiments.studies.imagenet.evaluate import Evaluator, count_correct, population
from experiments.studies.imagenet.measure import open_network
from experiments.studies.imagenet.network import Batch
from experiments.studies.imagenet.results import Trained, steps_to_best_of_inception
from experiments.studies.imagenet.train import Data, train
from experiments.studies.imagenet.variants import VARIANTS, change
from experiments.training.loop import Execution
from experiments.training.signals import GracefulExit, Stopped

SMOKE = PRESETS["smoke"]
TINY = dataclasses.replace(
    SMOKE, blocks=1, size=8, batch_size=4, steps=4, evaluate_every=2, watched=12
)
X5 = VARIANTS["bn_x5"]


# ---- Variants ------------------------------------------------------------------------------------


def test_variants_take_the_changes_of_section_4_2_1():
    original, baseline, x30 = (VARIANTS[name] for name in ("inception", "bn_baseline", "bn_x30"))
    assert dataclasses.replace(original, norm=True) == baseline
    assert dataclasses.replace(X5, rate=30.0) == x30
    differing = [
        field.name
        for field in dataclasses.fields(X5)
        if getattr(X5, field.name) != getattr(baseline, field.name)
    ]
    assert differing == ["rate", "decay", "l2", "dropout", "lrn", "distortion", "order"]
    assert (X5.rate, X5.decay, X5.l2) == (5, 6, 0.2)


def test_every_change_has_a_switch():
    assert set(SWITCHES) == {field.name for field in dataclasses.fields(X5)} - {"norm", "sigmoid"}
    config = dataclasses.replace(SMOKE, variant="bn_x5", dropout=True, order="fixed", rate=2.0)
    (variant,) = config.variants().values()
    assert variant == change(X5, {"dropout": True, "order": "fixed", "rate": 2.0})


def test_a_network_is_what_its_variant_says():
    model = networks.make_model(SMOKE, VARIANTS["inception"], 10)
    assert (model.norm, model.local_response, model.dropout) == (None, True, SMOKE.drop)
    model = networks.make_model(SMOKE, X5, 10)
    assert model.norm is not None
    assert (model.local_response, model.dropout) == (False, 0.0)
    dropped = networks.make_model(SMOKE, change(X5, {"dropped": 0.05}), 10)
    assert dropped.dropout == 0.05


def test_the_rate_falls_exponentially_and_changed_ones_six_times_as_often():
    def moved(variant, steps):
        """Apply the gradient 1 to a weight without L2; return the size of the last step."""
        config = dataclasses.replace(SMOKE, momentum=0.0, weight_decay=0.0, steps=99)
        optimizer = networks.make_optimizer(config, variant, 1)
        params = {"dense": {"kernel": jnp.zeros(())}}
        state = optimizer.init(params)
        for _ in range(steps):
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return -float(updates["dense"]["kernel"])

    first = SMOKE.learning_rate
    left = SMOKE.rate_left
    assert moved(VARIANTS["inception"], 1) == pytest.approx(first)
    assert moved(VARIANTS["inception"], 51) == pytest.approx(first * left ** (50 / 99))
    assert moved(X5, 51) == pytest.approx(5 * first * left ** (6 * 50 / 99))


def test_per_activation_norm_of_the_last_blocks():
    config = dataclasses.replace(TINY, blocks=2)
    model = networks.make_model(config, change(X5, {"per_activation": True}), 10)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, training=False), jnp.ones((1, 8, 8, 3))
    )
    assert variables["params"]["block_3b_one_norm"]["scale"].shape == (8, 8, 2)
    assert variables["params"]["stem_norm"]["scale"].shape == (6,)


# ---- Devices -------------------------------------------------------------------------------------


def batch(examples, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (examples, 8, 8, 3), np.uint8)
    return Batch(image, rng.integers(0, 10, examples).astype(np.int32))


def after_two_steps(devices, way, statistics, variant=X5, **options):
    """Train on 16 images per step, spread over `devices` devices."""
    config = dataclasses.replace(TINY, batch_size=16 // devices, **options)
    mesh = networks.make_mesh(jax.devices()[:devices], statistics)
    step, sharding = networks.make_step(config, variant, 10, mesh, way)
    model = networks.make_model(config, variant, 10)
    optimizer = networks.make_optimizer(config, variant, devices)
    network = networks.init(model, optimizer, jax.random.key(0), 8)
    network = jax.device_put(
        network, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    for i in range(2):
        placed = jax.device_put(batch(16, i), sharding)
        network, loss = step(network, placed, jax.random.key(i))
    return jax.device_get((network.params, network.batch_stats, loss))


def assert_close(got, want, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def whole():
    """One device, with statistics of all 16 images."""
    return after_two_steps(1, "shard_map", "device")


@pytest.mark.parametrize("way", ["shard_map", "jit"])
def test_global_statistics_are_those_of_one_device(way, whole):
    assert_close(after_two_steps(4, way, "global"), whole)


@pytest.mark.parametrize("statistics", ["device", "2"])
def test_jit_and_shard_map_have_the_same_numbers(statistics, whole):
    by_jit = after_two_steps(4, "jit", statistics)
    assert_close(after_two_steps(4, "shard_map", statistics), by_jit)
    params, want = (jax.tree.leaves(of[0]) for of in (by_jit, whole))
    assert max(np.abs(a - b).max() for a, b in zip(params, want, strict=True)) > 1e-4


def test_rematerialized_gradients_are_the_same(whole):
    assert_close(after_two_steps(1, "jit", "device", remat=True), whole)


def test_statistics_of_groups_that_devices_do_not_make():
    with pytest.raises(ValueError, match=r"--statistics to be a number of devices that divides 4"):
        networks.make_mesh(jax.devices()[:4], "3")


def test_running_statistics_average_the_groups_as_algorithm_2_does():
    """For the first norm, compare with the mean of the groups' means and variances in NumPy."""
    model = networks.make_model(TINY, X5, 10)
    network = networks.init(model, networks.make_optimizer(TINY, X5, 1), jax.random.key(0), 8)
    forward = networks.forward_in_groups(TINY, X5, 10, 4)
    images = batch(16)
    _, moved = jax.jit(forward)(network.params, network.batch_stats, images, jax.random.key(0))
    kernel = network.params["stem"]["kernel"]
    x = jax.lax.conv_general_dilated(
        networks.inputs(images.image), kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    parts = np.asarray(x, np.float64).reshape(4, -1, x.shape[-1])
    stem = moved["stem_norm"]
    np.testing.assert_allclose(stem["mean"], 0.01 * parts.mean((0, 1)), rtol=1e-4, atol=1e-6)
    unbiased = parts.var(1, ddof=1).mean(0)
    np.testing.assert_allclose(stem["var"], 0.99 + 0.01 * unbiased, rtol=1e-5)


# ---- Training, stopped and resumed ---------------------------------------------------------------


class StopAfter(GracefulExit):
    """Reports a signal after it has been checked a number of times."""

    def __init__(self, steps):
        self.left = steps
        super().__init__()

    @property
    def received(self):
        self.left -= 1
        return 15 if self.left < 0 else 0

    @received.setter
    def received(self, number):
        pass


@pytest.fixture(scope="module")
def digits():
    return Data(*(open_source("digits", split, None) for split in ("train", "validation")))


def open_tiny(root, config=TINY):
    with run_dir.create(root, "imagenet", config) as run:
        return open_network(config, "network", run)


def rows(run):
    return list(run_dir.read_rows(run.path / "metrics.jsonl"))


def test_a_run_stopped_anywhere_ends_as_an_undisturbed_one(tmp_path, digits):
    undisturbed = open_tiny(tmp_path / "undisturbed")
    network, _ = train(TINY, X5, 0, digits, undisturbed, Execution(checkpoint_every=1))
    run = open_tiny(tmp_path / "stopped")
    for steps in (0, 1, 0):  # Stops after steps 1, 3 and 4.
        execution = Execution(checkpoint_every=1, graceful_exit=StopAfter(steps))
        with pytest.raises(Stopped):
            train(TINY, X5, 0, digits, run, execution)
    resumed, _ = train(TINY, X5, 0, digits, run, Execution(checkpoint_every=1))
    assert rows(run) == rows(undisturbed)
    assert [row["step"] for row in rows(run)] == [2, 4]
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_diverges_is_recorded_and_never_right(tmp_path, digits):
    config = dataclasses.replace(TINY, learning_rate=1e30)
    run = open_tiny(tmp_path, config)
    network, evaluator = train(config, VARIANTS["inception"], 0, digits, run, Execution())
    assert [row["loss"] for row in rows(run)] == [None, None]
    assert rows(run)[-1]["top_1"] == 0
    members = [evaluator.predictor(network.variables)]
    (accuracy,) = evaluator.accuracies(members, digits.validation, 1)
    assert accuracy == {"top_1": 0, "top_5": 0}


def test_population_statistics_are_averaged_over_batches(tmp_path, digits):
    """The same batches give the same statistics, whatever they were before."""
    config = dataclasses.replace(TINY, population_batches=3)
    model = networks.make_model(config, X5, 10)
    network = networks.init(model, networks.make_optimizer(config, X5, 1), jax.random.key(0), 8)
    mesh = networks.make_mesh(jax.devices()[:1], "device")
    averaged = population(config, X5, network, digits.train, 0, mesh)
    assert jax.tree.structure(averaged.batch_stats) == jax.tree.structure(network.batch_stats)
    again = population(config, X5, averaged, digits.train, 0, mesh)
    assert_close(again.batch_stats, averaged.batch_stats)


def test_an_ensemble_takes_the_statistics_of_a_run_on_many_devices(tmp_path, digits):
    """With two groups of two devices, there are more batches, and larger ones."""
    config = dataclasses.replace(TINY, population_batches=2, statistics="2")
    (tmp_path / "devices.json").write_text('{"devices": 4}')
    member = ensemble.Member(tmp_path / "bn_x5_0", config, X5, 0)
    model = networks.make_model(config, X5, 10)
    network = networks.init(model, networks.make_optimizer(config, X5, 1), jax.random.key(0), 8)
    one = networks.make_mesh(jax.devices()[:1], "device")
    four = networks.make_mesh(jax.devices()[:4], "2")
    want = population(config, X5, network, digits.train, 0, four)
    got = population(ensemble.as_on_one_device(member), X5, network, digits.train, 0, one)
    assert_close(got.batch_stats, want.batch_stats)


# ---- Evaluation ----------------------------------------------------------------------------------


def test_networks_are_evaluated_alone_and_together(digits):
    def member(seed):
        weights = jax.random.normal(jax.random.key(seed), (64, 10))
        return lambda image: jax.nn.softmax(image[:, 0, :, :, 0].reshape(-1, 64) / 255 @ weights)

    one, other, seen = member(0), member(1), []
    mesh = networks.make_mesh(jax.devices()[:1], "device")
    evaluator = Evaluator(TINY, networks.make_model(TINY, X5, 10), digits.validation, mesh)
    found = evaluator.accuracies([one, other], digits.validation, 1, seen.append)
    groups = (one, other, lambda image: one(image) + other(image))
    assert found == [evaluator.accuracies([of], digits.validation, 1)[0] for of in groups]
    assert len({accuracy["top_1"] for accuracy in found}) == 3
    assert sum(seen) >= len(digits.validation)


def test_the_first_and_the_first_five_are_counted():
    scores = jnp.array([[6.0, 5, 4, 3, 2, 1]] * 4 + [[jnp.nan] * 6])
    label = jnp.array([0, 4, 5, 0, 0])
    mask = jnp.array([True, True, True, False, True])
    np.testing.assert_array_equal(count_correct(scores, label, mask), [1, 2, 4])


def test_steps_are_to_the_best_of_the_original_seed_by_seed():
    def trained(*accuracy):
        return Trained(np.array([10, 20, 30]), np.array(accuracy), {})

    steps = steps_to_best_of_inception(
        {
            "inception": [trained(0.1, 0.4, 0.3), trained(0.1, 0.2, 0.3)],
            "bn_x5": [trained(0.5, 0.5, 0.5), trained(0.1, 0.3, 0.5)],
            "bn_x30": [trained(0.5, 0.5, 0.5), trained(0.1, 0.1, 0.1)],
        }
    )
    assert {name: of.tolist() for name, of in steps.items()} == {
        "inception": [20, 30],
        "bn_x5": [10, 20],
    }
    assert steps_to_best_of_inception({"bn_x5": [trained(1, 1, 1)]}) == {}


# ---- The command ---------------------------------------------------------------------------------


def test_a_smoke_run_resumes_where_a_network_was_finished(tmp_path, capsys):
    options = ["imagenet", "--preset", "smoke", "--variant", "bn_x5", "--seeds", "1"]
    options += ["--steps", "2", "--evaluate-every", "1", "--blocks", "1", "--size", "8"]
    options += ["--runs", str(tmp_path), "--tensorboard"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "BN-x5" in printed
    (path,) = (tmp_path / "imagenet").iterdir()
    assert list((path / "bn_x5_0" / "tensorboard").glob("events*"))
    metrics = json.loads((path / "summary.json").read_text())["metrics"]
    assert 0 <= metrics["bn_x5_population_top_1"]["value"] <= 1
    (path / "summary.json").unlink()
    (path / "accuracy.png").unlink()
    checkpoints = list((path / "bn_x5_0" / "checkpoints").iterdir())
    assert main(["imagenet", "--resume", str(path)]) == 0
    assert list((path / "bn_x5_0" / "checkpoints").iterdir()) == checkpoints
    assert (path / "accuracy.png").exists()
    assert json.loads((path / "summary.json").read_text())["metrics"] == metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "folder"], "Expected --data-dir FOLDER with --dataset folder, got none"),
        (["--dataset", "cifar"], "Expected cifar10, digits or folder, got 'cifar'"),
        (["--preset", "quick"], "Expected --preset to be one of smoke, cifar, imagenet, got quick"),
        (["--statistics", "half"], "device, global or a number of devices, got 'half'"),
        (["--preset", "smoke", "--statistics", "2"], "a number of devices that divides 1, got 2"),
        (["--preset", "smoke", "--data-dir", "x"], "Expected no --data-dir"),
        (["--parallel", "pmap", "--preset", "smoke"], "--parallel to be one of shard_map, jit"),
        (["--preset", "smoke", "--batch-size", "5000"], "5,000 images"),
        (["--width", "33"], "Expected `width` in [1, 32], got 33"),
        (["--per-activation", "True"], "with a variant that has BN, got inception"),
        (["--dropout", "False", "--dropped", ".1"], "`dropped` only with dropout, got 0.1 and"),
    ],
)
def test_what_cannot_be_is_one_line(options, message, tmp_path, capsys):
    assert main(["imagenet", *options, "--runs", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())
