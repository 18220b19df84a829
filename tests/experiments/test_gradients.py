"""The functions `gradients` measures with: the deep network, its gradients, manual backprop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import sampling
from experiments.studies.gradients import deep, factors
from experiments.studies.gradients import training as gradients_training
from experiments.studies.gradients.backprop import backprop_errors, backpropagate
from experiments.studies.gradients.config import GAINS, INITS
from experiments.studies.gradients.deep import of_depth
from jbn.models import MLP

KINDS = [("linear", "none"), ("linear", "residual")]
EXACT = 1e-12  # A few matrix products in float64.


@pytest.fixture(scope="module")
def found() -> dict[str, np.ndarray]:
    return deep.profiles(KINDS, 6, 10, seeds=2, batch_size=7)


def by_hand(seed: int, init: str, skip: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute pre-activations of a linear network and gradients by them in NumPy."""
    x = sampling.rng(0, "inputs").normal(size=(7, 10))
    labels = sampling.rng(0, "labels").integers(0, 10, 7)
    (variables,) = deep.sample_weights(of_depth(6, 10), x, [seed])
    params = variables["params"]
    gain = GAINS[init]
    assert gain is not None
    w1, w2 = (gain * params["blocks"][f"dense_{i}"]["kernel"] for i in range(2))
    jacobians = [skip * np.eye(10) + a @ b for a, b in zip(w1, w2, strict=True)]
    preactivations = [x @ params["first"]["kernel"]]
    for jacobian in jacobians:
        preactivations.append(preactivations[-1] @ jacobian)
    logits = preactivations[-1] @ params["output"]["kernel"]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    upstream = (chances - np.eye(10)[labels]) / 7 @ params["output"]["kernel"].T
    upward = [upstream]
    for jacobian in reversed(jacobians):
        upward.insert(0, upward[0] @ jacobian.T)
    return preactivations, upward


@pytest.mark.parametrize(("architecture", "skip"), [("none", 0.0), ("residual", 1.0)])
@pytest.mark.parametrize("init", ["zero", "Xavier", "twice He"])
def test_profiles_are_those_of_the_chain_rule(found, init, architecture, skip):
    for seed in range(2):
        preactivations, upward = by_hand(seed, init, skip)
        at = INITS.index(init), seed
        np.testing.assert_allclose(
            found[f"linear_{architecture}_gradient"][at],
            [np.linalg.norm(g) for g in upward],
            rtol=EXACT,
        )
        np.testing.assert_allclose(
            found[f"linear_{architecture}_square"][at],
            [np.mean(h**2) for h in preactivations],
            rtol=EXACT,
        )


def test_kernels_do_not_depend_on_the_norm():
    x = np.ones((3, 5))
    plain, normalized = (
        next(deep.sample_weights(of_depth(4, 8, norm=norm), x, [3])) for norm in (None, "batch")
    )
    for name in ("first", "output"):
        np.testing.assert_array_equal(
            plain["params"][name]["kernel"], normalized["params"][name]["kernel"]
        )
    for i in range(2):
        kernels = [v["params"]["blocks"][f"dense_{i}"]["kernel"] for v in (plain, normalized)]
        np.testing.assert_array_equal(*kernels)


def test_kernels_have_the_variance_of_their_fan_in():
    drawn = next(deep.sample_weights(MLP(hidden=(400, 200)), np.ones((1, 300)), [0]))["params"]
    for name, fan_in in {"dense_0": 300, "dense_1": 400}.items():
        assert np.var(drawn[name]["kernel"]) * fan_in == pytest.approx(1, rel=0.02)
        assert not np.any(drawn[name]["bias"])


def test_odd_depth_is_refused():
    with pytest.raises(ValueError, match="blocks of 2, so 1 more than a multiple"):
        of_depth(5, 8).init(jax.random.key(0), jnp.ones((2, 3)), training=True)


def test_mean_factor_takes_means_first():
    # The mean of the two networks doubles per block (2 ** .5 per layer), though neither does alone.
    squared = np.array([[1.0, 3.0, 2.0], [3.0, 5.0, 14.0]])[:, ::-1]
    np.testing.assert_allclose(factors.mean_factor(squared, 1), [2**0.5])


def test_the_rate_is_chosen_on_validation_images():
    accuracy = np.zeros((3, 2, 2))
    accuracy[:, :, 0] = [[0.2, 0.2], [0.9, 0.7], [1.0, 0.0]]  # The second is best.
    accuracy[:, :, 1] = [[0.9, 0.9], [0.5, 0.6], [0.8, 0.8]]
    np.testing.assert_array_equal(gradients_training.at_best_rate(accuracy), [0.5, 0.6])


def test_backpropagation_by_hand_is_that_of_jax():
    assert max(backprop_errors([0, 1])) < EXACT


def test_backpropagation_by_hand_is_a_slope():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6, 4)), rng.integers(0, 10, 6)
    model = MLP(hidden=(5,), norm="batch")
    params = next(deep.sample_weights(model, x, [0]))["params"]
    step = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    @jax.jit
    def of_params(params):
        y, _ = model.apply({"params": params}, x, training=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()

    def loss(size):
        with jax.enable_x64(True):
            return float(of_params(jax.tree.map(lambda p, s: p + size * s, params, step)))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    products = jax.tree.map(lambda g, s: np.sum(g * s), backpropagate(params, x, labels), step)
    assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-7)
