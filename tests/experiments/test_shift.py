"""The measuring functions of `shift`, against NumPy, closed forms and known facts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.studies.shift import deep, probe
from experiments.studies.shift.data import Data, accuracies
from experiments.studies.shift.noise import NoisyBatchNorm
from experiments.studies.shift.weights import he, sample_networks
from experiments.tasks.split import Split
from experiments.training.deep_mlp import DeepMLP
from jbn.linen import BatchNorm
from jbn.models import MLP

ROUNDING = 1e-5  # Relative float32 rounding over a few layers.


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- Noise ---------------------------------------------------------------------------------------


def test_without_random_numbers_there_is_no_noise(rng):
    x = jnp.asarray(rng.normal(3, 2, (8, 4)), jnp.float32)
    variables = BatchNorm().init(jax.random.key(0), x, use_running_average=False)
    for average, rngs in ((False, None), (True, None), (True, {"noise": jax.random.key(1)})):
        plain, noisy = (
            norm.apply(variables, x, use_running_average=average, mutable=True, rngs=rngs)
            for norm in (BatchNorm(), NoisyBatchNorm())
        )
        jax.tree.map(np.testing.assert_array_equal, noisy, plain)


def test_noise_has_a_mean_and_deviation_of_its_own_for_every_feature_and_key(rng):
    x = jnp.asarray(rng.normal(size=(4_000, 6)), jnp.float32)
    variables = NoisyBatchNorm().init(jax.random.key(0), x, use_running_average=False)

    def noise(key: int) -> np.ndarray:
        apply = NoisyBatchNorm().apply
        rngs = {"noise": jax.random.key(key)}
        options = {"use_running_average": False, "mutable": ["batch_stats"]}
        noisy, plain = (apply(variables, x, rngs=r, **options)[0] for r in (rngs, None))
        return np.asarray(noisy - plain)

    drawn = [noise(key) for key in range(3)]
    means, deviations = np.mean(drawn, axis=1), np.std(drawn, axis=1)
    assert np.all(np.abs(means) < 0.53)
    assert np.all(deviations < 0.53)
    assert min(len(np.unique(values.round(4))) for values in (means, deviations)) == means.size


# ---- Initial weights and accuracy ----------------------------------------------------------------


def kernel(layer):
    """Return the kernel of a layer, or the kernels of a scan over layers."""
    return layer.get("dense_0", layer)["kernel"]


def test_networks_start_from_the_same_weights_whatever_the_norm():
    plain, normalized = (
        sample_networks(DeepMLP(4, 64, norm=norm), optax.sgd(0.1, momentum=0.9), [3, 5], 50, he)
        for norm in (None, BatchNorm)
    )
    for layer in ("first", "blocks"):
        ours, theirs = (np.asarray(kernel(n.params[layer])) for n in (plain, normalized))
        np.testing.assert_array_equal(ours, theirs)
        assert np.std(ours) == pytest.approx((2 / ours.shape[-2]) ** 0.5, rel=0.03)
        assert np.any(ours[0] != ours[1])
    np.testing.assert_array_equal(normalized.params["blocks"]["norm_0"]["scale"], 1)
    np.testing.assert_array_equal(normalized.batch_stats["norm"]["var"], 1)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(normalized.opt_state))


def test_a_network_that_diverged_counts_as_chance():
    labels = np.arange(20, dtype=np.int32) % 10
    x, labels = jax.device_put((np.ones((20, 5), np.uint8), labels))
    model = DeepMLP(2, 4, norm=BatchNorm)
    data = Data(Split(*[(x, labels)] * 3), x.reshape(2, 10, 5))
    start = sample_networks(model, optax.identity(), [0], 5, he)
    network = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[0] * np.nan, start))
    assert [float(accuracy) for accuracy in accuracies(model, network, data)] == pytest.approx(
        [0.1, 0.1]
    )


# ---- Shift and landscape -------------------------------------------------------------------------


def test_layers_are_in_order_with_their_norms():
    model = MLP((3,) * 11, norm="batch")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((2, 4)), training=False))
    params = shapes["params"]
    layers = probe.by_layer(params)
    assert list(layers) == [*map(str, range(11)), "output"]
    assert set(layers["10"]) == {"dense_10", "norm_10"}
    assert {name for layer in layers.values() for name in layer} == set(params)


def test_a_step_is_seen_as_calculus_has_it():
    # L = (ab - 1)^2 / 2: dL/da = (ab - 1) b, dL/db = (ab - 1) a.
    a, b, rate = 0.7, -1.1, 0.1
    params = {"dense_0": {"kernel": jnp.float32(a)}, "output": {"kernel": jnp.float32(b)}}

    def loss(p):
        return (p["dense_0"]["kernel"] * p["output"]["kernel"] - 1) ** 2 / 2

    seen = probe.probe_step(loss, params, rate)

    def gradient(a, b):
        return np.array([(a * b - 1) * b, (a * b - 1) * a])

    here = gradient(a, b)
    moved = a - rate * here[0]
    assert seen["gradient_shift"] == pytest.approx(abs(gradient(moved, b)[1] / here[1] - 1), 1e-4)
    along = [(a - s * rate * here[0], b - s * rate * here[1]) for s in probe.ALONG]
    losses = [(a * b - 1) ** 2 / 2 for a, b in along]
    assert seen["loss_range"] == pytest.approx(np.ptp(losses), rel=1e-4)
    changes = [np.linalg.norm(gradient(*at) - here) for at in along]
    largest = max(changes) / np.linalg.norm(here)
    assert seen["gradient_change"] == pytest.approx(largest, rel=1e-4)


def test_drift_is_counted_once_training_has_settled():
    medians = np.zeros((1, 21, 2))
    medians[0, :10] = 9  # The first 900 steps, evaluated every 100.
    medians[0, 15, 0], medians[0, 20, 1] = -3, 1
    percentiles = np.stack([medians - 1, medians, medians + 1], axis=2)
    np.testing.assert_allclose(probe.drifts(percentiles, every=100), [2])
    np.testing.assert_array_equal(probe.from_settled(medians, every=10)[0], range(100, 201, 10))


# ---- Changes through the layers ------------------------------------------------------------------


def test_changes_are_those_of_numpy(rng):
    model, x = DeepMLP(3, 8), rng.random((16, 12))
    seen = deep.changes_by_depth(model, jnp.asarray(x, jnp.float32), runs=2)
    start = sample_networks(model, optax.identity(), range(2), 12, he)

    def preactivations(network, run):
        first, rest = (
            np.asarray(kernel(network.params[name]), np.float64)[run]
            for name in ("first", "blocks")
        )
        values = [x @ first]
        for weights in rest:
            values.append(np.maximum(values[-1], 0) @ weights)
        return np.stack(values)

    nudged = deep.change_kernels(start, deep.nudge, at="first")
    outliers = deep.change_kernels(start, deep.enlarge_few)
    for run in range(2):
        plain = preactivations(start, run)
        change = np.linalg.norm(preactivations(nudged, run) - plain, axis=(1, 2))
        relative = change / np.linalg.norm(plain, axis=(1, 2))
        np.testing.assert_allclose(seen["nudged"][run], relative, rtol=1e-3)  # A small difference.
        ratio = preactivations(outliers, run).std((1, 2)) / plain.std((1, 2))
        np.testing.assert_allclose(seen["outliers"][run], ratio, rtol=ROUNDING)
        large = 1.5 ** np.arange(1, 4) * plain.std((1, 2))
        np.testing.assert_allclose(seen["large"][run], large, rtol=ROUNDING)


def test_weights_move_by_one_percent_and_few_are_enlarged(rng):
    kernel = rng.normal(size=(200, 100))
    moved = deep.nudge(kernel, 0) - kernel
    assert np.linalg.norm(moved) == pytest.approx(0.01 * np.linalg.norm(kernel))
    factors = deep.enlarge_few(kernel, 0) / kernel
    assert set(factors.ravel().round(6)) == {1.0, 10.0}
    assert np.mean(factors > 5) == pytest.approx(0.01, abs=0.003)


def test_growth_is_the_factor_per_layer():
    np.testing.assert_allclose(deep.growth(np.array([[2, 3, 4.5], [5.0, 5, 5]])), [1.5, 1])
