"""The comparison of all norms: what it trains, selects and compares, against NumPy and optax."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from experiments.ledger import collect
from experiments.run_dir import to_config, to_json
from experiments.stats import estimates
from experiments.studies.compare import training
from experiments.studies.compare.comparisons import Results, report, table
from experiments.studies.compare.config import PRESETS, Config, applies
from experiments.studies.compare.figures import plot_last
from experiments.studies.compare.models import make_model
from experiments.tasks import data

SMOKE = PRESETS["smoke"]
MLP = "mlp"


@pytest.fixture(scope="module")
def trained():
    """An MLP, with the digits as its inputs."""
    split = training.sample_images(SMOKE, data.load_digits())
    return training.Trained(SMOKE, MLP, 32, {"digits": training.for_model(MLP, split)})


# ---- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choosing": 4}, "`choosing` of at most 3"),
        ({"batch_sizes": (128, 8)}, "`batch_sizes` in ascending order"),
        ({"shrink": 3}, "`shrink` to be 1, 2 or 4"),
        ({"examples": 12_801}, "`examples` to be a multiple of 80"),
        ({"groups": 5}, "`groups` to divide all widths"),
        ({"norms": ("bath",)}, "`norms` of type"),
        ({"models": ("mlp", "mlp")}, "each of `models` once"),
        ({"norms": ("none", "none")}, "each of `norms` once"),
        ({"datasets": ("digits", "digits")}, "each of `datasets` once"),
        ({"models": ("cnn", "mlp"), "norms": ("instance",)}, "in mlp with batches of 8"),
        ({"models": ("cnn",), "norms": ("ghost",)}, "in cnn with batches of 8"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(), **change)


def test_batches_of_more_images_than_there_are_are_refused():
    with pytest.raises(ValueError, match="`batch_sizes` of at most 100"):
        dataclasses.replace(Config(), train=100).needs()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_config_is_read_as_it_was_written(preset):
    assert to_config(Config, to_json(preset)) == preset


def test_what_would_be_no_norm_of_its_own_is_left_out():
    config = PRESETS["quick"]
    assert not applies(config, MLP, "instance", 128)
    assert applies(config, "cnn", "instance", 8)
    assert not applies(config, "cnn", "ghost", 8)
    assert applies(config, "cnn", "ghost", 128)


# ---- Images --------------------------------------------------------------------------------------


def test_gray_images_and_colored_ones_get_one_shape():
    random = np.random.default_rng(0)
    gray = random.integers(256, size=(2, 28, 28), dtype=np.uint8)
    made = training.colors(gray, 4)
    assert made.shape == training.colors(np.zeros((2, 32, 32, 3), np.uint8), 4).shape
    expected = gray[1, 2:6, 6:10].mean()  # Padded by two: rows 4 to 7, columns 8 to 11.
    np.testing.assert_allclose(made[1, 1, 2], [expected] * 3)
    np.testing.assert_allclose(made.sum(), 3 * gray.sum() / 16)


def test_images_are_standardized_by_those_to_train_on(trained):
    images, labels = trained.splits["digits"].train
    assert images.shape == (SMOKE.train, 8 * 8 * 3)
    assert labels.shape == (SMOKE.train,)
    np.testing.assert_allclose([np.mean(images), np.std(images)], [0, 1], atol=1e-4)


# ---- Networks ------------------------------------------------------------------------------------


def test_a_network_is_made_once_and_resnet20_has_20_layers():
    paper = PRESETS["paper"]
    model = make_model(paper, "resnet20", "batch", 128)
    assert model is make_model(paper, "resnet20", "batch", 128)
    x = np.ones((1, 32, 32, 3), np.float32)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False))
    kernels = [leaf for leaf in jax.tree.leaves(made["params"]) if leaf.ndim > 1]
    assert len(kernels) == 20
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == 269_722  # As in He et al.


def test_bfloat16_is_of_the_arithmetic_alone():
    model = make_model(SMOKE, "cnn", "batch_bfloat16", 32)
    x = np.ones((2, 8, 8, 3), np.float32)

    def hidden():
        variables = model.init(jax.random.key(0), x, training=False)
        _, seen = model.apply(variables, x, training=True, mutable=["intermediates", "batch_stats"])
        return variables, seen

    variables, seen = jax.eval_shape(hidden)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables["params"])} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(seen["intermediates"])} == {"bfloat16"}


def test_the_rate_falls_by_a_cosine_to_nothing():
    schedule = optax.cosine_decay_schedule(0.3, 50)
    np.testing.assert_allclose(training.decay(0.3, 50), schedule(np.arange(50)), atol=1e-7)


def test_steps_of_one_program_are_those_of_many(trained):
    network = trained.start("batch")[0]
    examples = trained.splits["digits"].train
    batches = np.arange(96, dtype=np.int32).reshape(3, 32)
    rates = np.array([0.1, 0.05, 0.02], np.float32)
    model = trained.model("batch")
    together = training.advance(model, network, batches, rates, examples)
    for i in range(3):
        network = training.advance(model, network, batches[i : i + 1], rates[i : i + 1], examples)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, network
    )


def test_the_rate_is_chosen_by_validation_and_every_seed_tested_at_it(trained, monkeypatch):
    """Rates are compared on the first seed only, and its run at the best rate is not repeated."""
    config = dataclasses.replace(SMOKE, rates=(1e-6, 0.1))
    trained = trained._replace(config=config)
    asked, train = [], training.Trained.train

    def watch(self, norm, network, seed, rate, examples):
        asked.append((seed, round(rate, 9)))
        return train(self, norm, network, seed, rate, examples)

    monkeypatch.setattr(training.Trained, "train", watch)
    found = training.at_best_rate(trained, "batch")
    slow, fast = (round(rate, 9) for rate in trained.rates)
    assert sorted(asked) == sorted([(0, slow), (0, fast), (1, fast)])
    assert found["digits_rate"] == trained.rates[1]
    assert found["digits_validation"].shape == (2, 1)
    assert found["digits_validation"][1] > found["digits_validation"][0]
    assert found["digits_test"].shape == (2, config.evaluations)


# ---- Comparisons ---------------------------------------------------------------------------------

CONFIG = dataclasses.replace(
    SMOKE, models=("cnn",), norms=("none", "batch", "group"), batch_sizes=(8, 32)
)


def made_up():
    """Accuracies of batch, no and group norm: two data sets, three evaluations, two seeds."""
    last = {"none": (0.6, 0.7), "batch": (0.8, 0.9), "group": (0.7, 0.8)}
    tests = {}
    for dataset, more in (("mnist", 0.0), ("cifar10", -0.1)):
        tests[dataset] = {
            ("cnn", norm, size): np.array([[0.1, end - 0.15, end] for end in ends])
            + more
            + 0.2 * (norm == "group" and size == 8)
            for norm, ends in last.items()
            for size in (8, 32)
        }
    keys = list(tests["mnist"])
    seconds = {key: 3.0 if key[1] == "batch" else 1.0 for key in keys}
    return Results(tests, {name: dict.fromkeys(keys, 0.1) for name in tests}, seconds)


def test_differences_are_paired_by_seed_and_averaged_over_data_sets():
    told = {}
    report(CONFIG, made_up(), told.__setitem__)
    np.testing.assert_allclose(told["batch_gain_cnn"].values, [0.2, 0.2])
    np.testing.assert_allclose(told["group_gain_small_cnn"].values, [0.1, 0.1])
    np.testing.assert_allclose(told["group_gain_excess_cnn"].values, [0.2, 0.2])
    # 0.65 and 0.75 at the second of three evaluations exceed 0.6 and 0.7 at the last.
    np.testing.assert_allclose(told["batch_steps_cnn"].values, [2 / 3, 2 / 3])
    np.testing.assert_allclose(told["batch_seconds_cnn"].values, [2, 2])
    expected = estimates.mean([0.8, 0.9])
    assert told["accuracy_cnn_batch_32_mnist"].value == pytest.approx(expected.value)
    assert "layer_gain_cnn" not in told  # Not trained.


def test_the_table_has_a_line_for_every_norm_and_a_column_for_every_data_set():
    lines = table(CONFIG, made_up()).splitlines()
    head, *rows = lines[:4]
    assert head.split("  ")[0] == "CNN, batches of 32"
    assert "MNIST" in head
    assert "CIFAR-10" in head
    assert [row.split("  ")[1] for row in rows] == ["no norm", "batch norm", "group norm"]
    assert "0.850 ± 0.635 at 0.1" in rows[1]
    assert rows[1].endswith("3000.00")


def test_every_panel_shows_all_of_its_points():
    """All panels share one scale, though the networks' accuracies are far apart."""
    config = dataclasses.replace(CONFIG, models=("mlp", "cnn"))
    last = {
        (model, norm, size): np.array([low, low + 0.1])
        for model, low in (("mlp", 0.8), ("cnn", 0.1))
        for norm in config.norms
        for size in config.batch_sizes
    }
    for axes in plot_last(config, {"digits": last}).axes:
        low, high = axes.get_ylim()
        assert low < 0.1
        assert high > 0.9


def test_other_batches_than_the_claims_name_give_no_verdict():
    kept = collect.result_of(collect.KEPT / "compare", "compare")
    assert kept.flaw == ""
    config = {**kept.summary["config"], "batch_sizes": [32]}
    other = kept._replace(summary={**kept.summary, "config": config})
    assert other.flaw == "measured with batch_sizes [32], not [8, 128]"
