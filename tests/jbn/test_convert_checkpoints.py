"""Trees restored from checkpoints, and boxed trees: `jbn.convert` treats them as the originals."""

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from convertible import C, ones

import jbn
from jbn import convert


def by_msgpack(trees, tmp_path):
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(trees))
    return restored["0"], restored["1"]


def by_orbax(trees, tmp_path):
    checkpointer = orbax.checkpoint.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "layer", dict(zip(("params", "state"), trees, strict=True)))
    restored = checkpointer.restore(tmp_path / "layer")
    return restored["params"], restored["state"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize("through", [by_msgpack, by_orbax])
@pytest.mark.parametrize("use_bias", [True, False])
def test_restored_trees_are_those_that_were_saved(through, use_bias, tmp_path):
    params, state = jbn.init(C, use_bias=use_bias)
    trees = params, state._replace(count=jnp.int32(7), var=jnp.arange(1.0, C + 1))
    restored = through(trees, tmp_path)
    assert isinstance(restored[0], dict)
    calls = {
        "torch": lambda *layer: convert.to_torch(*layer, tensors=False),
        "keras": convert.to_keras,
        "linen": lambda *layer: convert.to_linen(*layer, with_count=True),
        "nnx": lambda *layer: convert.to_nnx(*layer, with_count=True),
        "haiku": lambda *layer: convert.to_haiku(*layer, decay_rate=0.9),
        "fold": lambda *layer: jbn.fold(ones(2, C), None, *layer),
    }
    for call in calls.values():
        got, want = call(*restored), call(*trees)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_boxed_variables_of_linen():
    """Boxed parameters carry the names of mesh axes."""
    boxed = nn.with_partitioning(nn.initializers.ones, ("features",))
    variables = nn.BatchNorm(scale_init=boxed).init(
        jax.random.key(0), ones(2, C), use_running_average=True
    )
    assert isinstance(variables["params"]["scale"], nn.Partitioned)
    np.testing.assert_array_equal(convert.from_linen(variables).params.scale, ones(C))
