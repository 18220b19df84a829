"""The count of jbn.linen.BatchNorm: created, updated, missing, averaged, too large."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_layers import counting, sample, trained, with_stats

import jbn
from jbn.linen import BatchNorm
from jbn.linen._batch_norm import as_count


def without_count(variables):
    stats = {k: v for k, v in variables["batch_stats"].items() if k != "count"}
    return {**variables, "batch_stats": stats}


def test_count_stays_int32_after_pmean():
    """Flax's ImageNet example averages batch_stats over devices, which makes the count a float."""
    layer, variables, x = counting()
    copies = jax.tree.map(lambda leaf: np.stack([leaf] * 4), variables["batch_stats"])
    mean = jax.jit(jax.vmap(lambda stats: jax.lax.pmean(stats, "d"), axis_name="d"))(copies)
    mean = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[0]), mean)
    averaged = {**variables, "batch_stats": mean}
    assert averaged["batch_stats"]["count"].dtype == jnp.float32
    traces = []

    @jax.jit
    def step(variables, x):
        traces.append(x)
        return trained(layer, variables, x)

    want = step(variables, x)
    for _ in range(3):  # One more trace for the float count, however often it is averaged.
        got = step(step(averaged, x), x)
    chex.assert_trees_all_close(got, step(want, x), rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, variables)
    assert int(got["batch_stats"]["count"]) == 5
    assert len(traces) == 2
    last, _ = jax.lax.scan(lambda v, x: (trained(layer, v, x), None), got, np.stack([x, x]))
    assert int(last["batch_stats"]["count"]) == 7


def test_training_without_a_count_is_an_error_that_shows_how_to_give_it():
    layer, variables, x = counting()
    bare = without_count(variables)  # As in Flax.
    message = re.escape('batch_stats["count"] = jnp.int32(n)')
    for apply in (trained, jax.jit(trained, static_argnums=0)):
        with pytest.raises(ValueError, match=message):
            apply(layer, bare, x)
    given = with_stats(bare, count=jnp.int32(3))
    chex.assert_trees_all_equal(trained(layer, given, x), trained(layer, variables, x))
    given = with_stats(bare, count=3)  # A Python number works, too.
    chex.assert_trees_all_equal(trained(layer, given, x), trained(layer, variables, x))


def test_a_missing_count_is_named_by_its_path():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(momentum=jbn.cumulative, use_running_average=False, name="norm")(x)

    x = sample((8, 3))
    variables = Outer().init(jax.random.key(0), x)
    del variables["batch_stats"]["norm"]["count"]
    with pytest.raises(ValueError, match=re.escape('batch_stats["norm"]["count"]')):
        Outer().apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
def test_evaluation_needs_no_count(mutable):
    layer, variables, x = counting()
    bare = without_count(variables)
    got = layer.apply(bare, x, use_running_average=True, mutable=mutable)
    got = got[0] if mutable else got
    chex.assert_trees_all_equal(got, layer.apply(variables, x, use_running_average=True))
    if mutable:
        moved = layer.apply(bare, x, use_running_average=True, mutable=mutable)[1]
        chex.assert_trees_all_equal(moved["batch_stats"], bare["batch_stats"])


def test_statistics_made_by_apply_have_a_count():
    """As in Flax, a layer without any statistics creates them if they are mutable."""
    layer, variables, x = counting(steps=0)
    bare = {"params": variables["params"]}
    chex.assert_trees_all_equal(trained(layer, bare, x), trained(layer, variables, x))


def test_a_count_that_is_an_average_of_several_is_an_error_where_it_is_known():
    layer, variables, x = counting()
    averaged = with_stats(variables, count=jnp.float32(0.3))
    with pytest.raises(ValueError, match=r"whole number.*0\.3"):
        trained(layer, averaged, x)
    got = jax.jit(trained, static_argnums=0)(layer, averaged, x)  # Unknown in jit: rounded.
    assert int(got["batch_stats"]["count"]) == 1


def test_a_float_count_ends_where_int32_does():
    layer, variables, x = counting(jbn.debiased(0.9))
    last = with_stats(variables, count=jnp.float32(2**31))
    moved = layer.apply(last, x, use_running_average=True, mutable=["batch_stats"])[1]
    assert float(moved["batch_stats"]["count"]) == 2**31  # Evaluation keeps it.
    assert as_count(last["batch_stats"]["count"]) == 2**31 - 1
