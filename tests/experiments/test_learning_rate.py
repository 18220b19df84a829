"""Learning rate: measured quantities against cases worked by hand; training at a setting."""

import functools

import jax
import numpy as np
import optax
import pytest

from experiments import sampling
from experiments.studies.learning_rate import measure as learning_rate
from experiments.studies.learning_rate import training
from experiments.studies.learning_rate.config import Config
from experiments.studies.learning_rate.training import Setting
from experiments.tasks import data
from jbn.models import MLP


def test_evaluations_end_at_the_last_step():
    assert learning_rate.evaluation_steps(200, 50).tolist() == [50, 100, 150, 200]


def test_the_largest_rate_is_that_of_each_seed():
    rates = (0.1, 0.3, 1.0)
    accuracy = np.array([[0.95, 0.1, 0.91], [0.9, 0.5, 0.1], [0.1, 0.1, 0.1]])
    found = learning_rate.largest_rate(accuracy, rates)
    np.testing.assert_allclose(found, [1.0, 0.1, 0.1**2 / 0.3])


def test_likeness_sees_one_unit_that_differs_and_the_rank():
    column = np.arange(1.0, 5.0)[:, None]
    params = {
        "dense_0": {"kernel": np.tile(column, 3), "bias": np.ones(3)},
        "output": {"kernel": np.tile([[1.0, 2.0]], (3, 1)), "bias": np.zeros(2)},
    }
    assert learning_rate.likeness(params) == (0, 1)
    params["output"]["kernel"][2, 1] += 0.5
    assert learning_rate.likeness(params) == (0.5, 2)


def test_likeness_takes_layers_in_their_order():
    """By name, dense_10 would come before dense_2, with kernels that do not fit."""
    widths = (5, *range(2, 14), 3)
    params = {
        name: {"kernel": np.ones((widths[i], widths[i + 1])), "bias": np.zeros(widths[i + 1])}
        for i, name in enumerate([*(f"dense_{i}" for i in range(12)), "output"])
    }
    params["dense_11"]["kernel"][0, 1] = 3
    assert learning_rate.likeness(params) == (2, 2)


def test_a_grid_without_the_rate_that_a_claim_names_is_refused():
    with pytest.raises(ValueError, match="rates"):
        Config(rates=(0.1, 1.0))


@pytest.fixture(scope="module")
def examples():
    return training.sample_examples(data.load_digits(), validation=100, population_batches=2)


def test_statistics_are_of_images_that_are_trained_on(examples):
    trained = {image.tobytes() for image in examples.split.train[0]}
    assert examples.population.shape == (2, training.BATCH_SIZE, 784)
    assert all(image.tobytes() in trained for image in examples.population.reshape(-1, 784))


def test_settings_side_by_side_train_as_plain_descent_does(examples):
    settings, steps, seeds = [Setting(0.1, 0.1), Setting(0.5, 0.3, 2.0)], 4, 2
    found = training.train(
        examples, "sigmoid", "none", settings, steps, seeds=seeds, hidden=(8,), every=2
    )
    assert found["test"].shape == (len(settings), seeds, 2)

    images, labels = examples.split.train
    batches = sampling.batch_indices(1, 0, steps, training.BATCH_SIZE, len(labels))
    model = MLP((8,), kernel_init=jax.nn.initializers.normal(0.3))
    x, labels = np.asarray(images, np.float32), np.asarray(labels)
    init = jax.jit(functools.partial(model.init, training=False))
    params = init(sampling.keys([1], "weights")[0], x[:1])["params"]

    @jax.jit
    def descend(params, x, labels, rate):
        def loss(params):
            outputs = model.apply({"params": params}, x, training=True)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

        return jax.tree.map(lambda w, dw: w - rate * dw, params, jax.grad(loss)(params))

    for i, rows in enumerate(batches):
        # The rate is halved every two steps.
        params = descend(params, x[rows], labels[rows], 0.5 * 0.5 ** (i / 2))
    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours[1, 1], plain, rtol=1e-4, atol=1e-6),
        found["params"],
        dict(params),
    )


def test_evaluations_change_neither_training_nor_what_bn_reaches(examples):
    train = {"settings": [Setting(0.3, 0.1)], "steps": 4, "seeds": 1, "hidden": (8,)}
    once = training.train(examples, "relu", "batch", **train)
    often = training.train(examples, "relu", "batch", **train, every=2)
    assert often["test"].shape == (1, 1, 2)
    np.testing.assert_allclose(once["test"][..., -1], often["test"][..., -1], atol=0.01)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        once["params"],
        often["params"],
    )
