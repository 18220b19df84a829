"""The experiment on inference: its averages, its batches, and results that hold by definition."""

import functools

import jax
import numpy as np
import optax
import pytest

from experiments.studies.inference import averages, measure
from experiments.studies.inference.config import PRESETS, WINDOW, Config
from experiments.studies.inference.data import cut_test_batches, prepare
from experiments.tasks import data
from experiments.training import networks
from experiments.training.networks import Network
from jbn.linen import BatchNorm
from jbn.models import MLP

CONFIG = PRESETS["smoke"]
ROUNDING = 2e-6  # Float32 rounding over a hundred steps of an average.


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    return dataset, prepare(CONFIG, dataset)


@pytest.fixture(scope="module")
def untrained(digits):
    _, prepared = digits
    init = functools.partial(networks.init, averages.make_model(CONFIG), optax.sgd(0.1))
    network = jax.jit(init)(jax.random.key(0), np.asarray(prepared.test)[:1])
    batches = np.asarray(prepared.train)[prepared.population_rows[0, :5]]
    variables = measure.estimated(CONFIG, network.variables, batches)
    return {"params": variables["params"], "population": variables["batch_stats"]}


def test_averages_are_those_of_all_steps_and_of_layers():
    steps, rng = WINDOW + 7, np.random.default_rng(0)
    examples = rng.normal(size=(40, 4)).astype(np.float32), np.arange(40, dtype=np.int32) % 3
    examples = jax.device_put(examples)
    batches = rng.integers(40, size=(steps, 8))
    optimizer, key = optax.sgd(0.5), jax.random.key(0)

    def network_of(momentum):
        model = MLP((3,), norm=functools.partial(BatchNorm, momentum=momentum, unbiased=True))
        return model, networks.init(model, optimizer, key, examples[0][:1])

    @jax.jit
    def with_averages(batches):
        model, first = network_of(0.0)

        def step(state, batch, i):
            network = networks.train_step(model, optimizer, state.network, *batch)
            return averages.follow(state, network, i)

        return networks.fit(
            step,
            averages.begin(first),
            examples,
            batches,
            observe=lambda state: averages.tracked_values(state.network),
            every=1,
        )

    @jax.jit
    def of_layer(batches):
        model, first = network_of(0.99)

        def step(network, batch, i):
            return networks.train_step(model, optimizer, network, *batch)

        return networks.fit(step, first, examples, batches)[0].batch_stats

    state, seen = with_averages(batches)
    history = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), seen)

    def exponential(rows, decay):
        return functools.reduce(lambda old, new: decay * old + (1 - decay) * new, rows)

    def debiased(rows):
        weights = 0.99 ** np.arange(steps)[::-1]
        return np.average(rows[1:], axis=0, weights=weights)

    # The first row is the initial value, which only the plain exponential averages include.
    expected = {
        "exponential_0.9": lambda rows: exponential(rows, 0.9),
        "exponential_0.999": lambda rows: exponential(rows, 0.999),
        "debiased": debiased,
        "cumulative": lambda rows: rows[1:].mean(0),
    }
    close = functools.partial(np.testing.assert_allclose, rtol=ROUNDING, atol=ROUNDING)
    for name, of in expected.items():
        jax.tree.map(close, state.averages[name], jax.tree.map(of, history))
    window = jax.tree.map(lambda ring: ring.mean(0), state.ring)
    jax.tree.map(close, window, jax.tree.map(lambda r: r[-WINDOW:].mean(0), history))
    jax.tree.map(close, state.averages["exponential_0.99"]["statistics"], of_layer(batches))


def test_test_batches_are_whole_and_sorted_ones_of_one_class():
    labels = np.random.default_rng(0).integers(10, size=2000).astype(np.uint8)
    for name, rows in cut_test_batches(labels).items():
        kind, size = name.split("_")
        assert len(np.unique(rows)) == rows.size
        smallest = np.bincount(labels).min() if kind == "sorted" else len(labels)
        assert rows.shape[1] == min(int(size), smallest)
        if kind == "sorted":
            assert np.all(labels[rows] == labels[rows[:, :1]])
            assert set(labels[rows[:, 0]]) == set(range(10))


def test_an_image_alone_is_always_of_the_same_class(digits, untrained):
    dataset, prepared = digits
    without_batches = prepared._replace(test_batches={})
    found = measure.accuracies_on_test_batches(
        CONFIG, untrained, prepared.population_rows[0], without_batches
    )
    shares = np.bincount(dataset.test_labels, minlength=10) / len(dataset.test_labels)
    assert np.isclose(float(found["alone"]), shares, rtol=1e-6).any()


def test_statistics_estimated_again_undo_contrast_and_brightness(digits, untrained):
    _, prepared = digits
    found = measure.accuracies_on_shifted(CONFIG, untrained, prepared.population_rows[0], prepared)
    images = len(prepared.test[::2])
    # BN(W(ax + b)) = BN(Wx) except for epsilon, which may change the prediction of a few images.
    assert abs(found["contrast"]["estimated"] - found["unchanged"]["estimated"]) <= 2 / images


def test_population_of_one_batch_is_that_batch(untrained, digits):
    _, prepared = digits
    batch = prepared.train[:60]
    variables = {"params": untrained["params"], "batch_stats": untrained["population"]}
    stats = measure.estimated(CONFIG, variables, batch[None])["batch_stats"]["norm_0"]
    kernel = np.asarray(untrained["params"]["dense_0"]["kernel"], np.float64)
    inputs = np.asarray(batch, np.float64) @ kernel
    np.testing.assert_allclose(stats["mean"], inputs.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], inputs.var(0, ddof=1), rtol=1e-5)


def test_refuses_fewer_steps_than_the_window():
    with pytest.raises(ValueError, match="Expected `steps` of at least 100, got 50"):
        Config(steps=50)


def test_only_normalizing_layers_are_averaged(untrained):
    network = Network(untrained["params"], untrained["population"], ())
    assert averages.tracked_values(network)["affine"].keys() == {"norm_0"}
