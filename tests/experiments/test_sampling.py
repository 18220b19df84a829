"""Random streams: different for every purpose, the same for every study."""

import itertools

import jax
import numpy as np
import pytest

from experiments import sampling


def test_no_two_purposes_or_seeds_share_a_stream():
    """NumPy's `default_rng(5)` and `default_rng([5, 0])` do share one."""
    same = [np.random.default_rng(entropy).random(4) for entropy in (5, [5, 0])]
    np.testing.assert_array_equal(*same)
    asked = itertools.product(range(3), ("weights", "batches", "batches, epoch 0", "1", ""))
    drawn = {tuple(sampling.rng(*each).random(4)) for each in asked}
    assert len(drawn) == 15
    # Digits of the seed are not confused with those of the purpose.
    assert sampling.rng(12, "subset 1").random() != sampling.rng(2, "subset 11").random()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_those_of_seed_and_purpose_alone(impl):
    keys = sampling.keys(range(4), "weights", impl=impl)
    data = np.asarray(jax.random.key_data(keys))
    assert len({row.tobytes() for row in data}) == 4
    np.testing.assert_array_equal(
        jax.random.key_data(sampling.keys([2], "weights", impl=impl)[0]), data[2]
    )
    others = np.asarray(jax.random.key_data(sampling.keys(range(4), "dropout", impl=impl)))
    assert not {row.tobytes() for row in others} & {row.tobytes() for row in data}


def test_batches_of_another_purpose_are_others():
    ours, others = (
        sampling.batch_indices(0, 0, 5, 8, 40, purpose=purpose)
        for purpose in ("batches", "population")
    )
    assert (ours != others).any()
    for drawn in (ours, others):
        np.testing.assert_array_equal(np.sort(drawn.ravel()), np.arange(40))
    np.testing.assert_array_equal(sampling.all_batches(range(2), 5, 8, 40)[0], ours)
