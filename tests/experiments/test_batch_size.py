"""The functions `experiments.studies.batch_size` measures with, against exact values and NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.batch_size import measure as batch_size
from experiments.studies.batch_size.config import PRESETS, Config
from experiments.studies.batch_size.degenerate_batches import degenerate_batches
from experiments.studies.batch_size.measure import examples_until, make_model, sample_images
from experiments.tasks.data import load_digits
from experiments.training import sweep

CONFIG = PRESETS["smoke"]


def test_one_and_two():
    found = degenerate_batches()
    assert found["one_output"].max() == 0
    assert found["one_gradient"].max() < 1e-10  # Float64 rounding times 1 / sqrt(epsilon).
    np.testing.assert_allclose(found["two"], 1, atol=1e-6)


def test_examples_until_the_target_is_reached():
    losses = np.array([[3.0, 1.0, 0.2, 0.4], [3.0, 2.0, 1.0, 0.9], [3.0, np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(examples_until(losses, 0.5, 10), [20, 30, 30])


@pytest.mark.parametrize(("share", "r", "d"), [(0, 1, 0), (5 / 160, 1, 0), (0.25, 3, 5), (1, 3, 5)])
def test_renorm_is_bn_first_and_relaxed_as_published(share, r, d):
    limits = make_model(CONFIG, "renorm", 1000).norm.keywords
    count = jnp.asarray(1000 * share)
    np.testing.assert_allclose(limits["r_max"](count), r, rtol=1e-6)
    np.testing.assert_allclose(limits["d_max"](count), d, atol=1e-6)


def test_population_is_that_of_algorithm_2():
    model = make_model(CONFIG, "batch")
    images, _ = sample_images(CONFIG, load_digits()).train
    network = sweep.start(model, 2, images[0].astype(np.float32))
    batches = images[:, :40].reshape(2, 5, 8, -1)
    found = batch_size.with_population(model, network, batches).batch_stats["norm_0"]
    kernel = np.asarray(network.params["dense_0"]["kernel"], np.float64)
    inputs = np.einsum("sknf,sfu->sknu", np.asarray(batches, np.float64), kernel)
    np.testing.assert_allclose(found["mean"], inputs.mean((1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["var"], inputs.var(2, ddof=1).mean(1), rtol=1e-4)


def test_rates_are_not_chosen_on_training_images():
    config = Config(seeds=2, train=1000, validation=200)
    dataset = load_digits()
    (images, _), (validation, labels), (test, _) = sample_images(config, dataset)
    assert images.shape[:2] == (2, 1000)
    assert images.dtype == np.uint8
    assert labels.shape == (2, 200)
    assert len(test) == len(dataset.test_labels)
    for seed in range(2):  # Only few binary digits are duplicates.
        seen = {row.tobytes() for row in np.asarray(images[seed])}
        assert sum(row.tobytes() in seen for row in np.asarray(validation[seed])) < 10


def test_seeds_start_from_other_weights():
    starts = sweep.start(make_model(CONFIG, "none"), 2, jnp.zeros((1, 64)))
    weights = starts.params["dense_0"]["kernel"]
    assert not np.any(np.asarray(weights[0]) == np.asarray(weights[1]))
