"""Counts of batches that `jbn.convert` accepts, clips or rejects, and layers without a count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convertible import (
    BARE,
    C,
    Error,
    equinox_norm,
    from_haiku,
    haiku_trees,
    layer,
    linen_variables,
    ones,
    peer,
    state_dict,
)

import jbn
from jbn import convert

MOST = np.iinfo(np.int32).max  # The largest count in jbn.


def with_counter(counter):
    params, state = haiku_trees(count=10_000)  # Large, so that hidden is the average.
    return params, {key: {**ema, "counter": counter} for key, ema in state.items()}


# name: (call, error, words in the message)
CASES = {
    "fraction of a batch": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=np.float32(0.3))),
        Error,
        ["'num_batches_tracked' is 0.3", "whole number", "Set it to"],
    ),
    "negative count": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=np.array(-1))),
        Error,
        ["-1", "whole number"],
    ),
    "two counts": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=np.array([7, 7]))),
        Error,
        ["(2,)", "expected ()"],
    ),
    "fraction as count=": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=None), count=1.5),
        Error,
        ["`count` is 1.5", "Pass the number of batches absorbed, at least 0"],
    ),
    "count= below 0": (
        lambda: convert.from_torch(state_dict(num_batches_tracked=None), count=-7),
        Error,
        ["`count` is -7", "Pass the number of batches absorbed, at least 0"],
    ),
    **{
        f"no count for a schedule, {name}": (
            lambda call=call: call(options=BARE),
            Error,
            ["no count of batches", "cumulative", "Pass count="],
        )
        for name, call in {
            "torch": lambda **o: convert.from_torch(state_dict(num_batches_tracked=None), **o),
            "keras": lambda **o: convert.from_keras([ones(C)] * 4, **o),
            "linen": lambda **o: convert.from_linen(linen_variables(), "bn", **o),
            "nnx": lambda **o: convert.from_nnx({"mean": ones(C), "var": ones(C)}, **o),
        }.items()
    },
    **{
        f"average of counts, {name}": (
            lambda call=call: call(*layer(np.float32(0.3))),
            Error,
            ["count is 0.3", "whole number", "_replace(count="],
        )
        for name, call in {
            "torch": lambda *trees: convert.to_torch(*trees, tensors=False),
            "linen": lambda *trees: convert.to_linen(*trees, with_count=True),
            "nnx": lambda *trees: convert.to_nnx(*trees, with_count=True),
            "haiku": lambda *trees: convert.to_haiku(*trees, decay_rate=0.9),
            "equinox": lambda *trees: convert.to_equinox(*trees, *equinox_norm()),
        }.items()
    },
    "NaN for a count": (
        lambda: convert.to_torch(*layer(jnp.nan), tensors=False),
        Error,
        ["count is nan"],
    ),
    "traced average of counts": (
        lambda: jax.eval_shape(
            lambda count: convert.to_linen(*layer(count), with_count=True), jnp.float32(1)
        ),
        Error,
        ["count is float32", "integer"],
    ),
    "fraction in Haiku": (
        lambda: from_haiku(*with_counter(np.float32(0.3))),
        Error,
        ["'mean_ema/counter' is 0.3", "'var_ema/counter' is 0.3"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["xpected", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"


# Layers and checkpoints without a count ----------------------------------------------------------


def frozen():
    """Make a layer like FrozenBatchNorm2d of torchvision and detectron2: buffers and an eps."""
    torch = peer("torch")

    class FrozenBatchNorm2d(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.eps = 1e-3
            for name, value in (("weight", 2.0), ("bias", 1.0)):
                self.register_buffer(name, torch.full((C,), value))
            self.register_buffer("running_mean", torch.arange(float(C)))
            self.register_buffer("running_var", torch.full((C,), 4.0))

        def forward(self, x):
            shape = (1, -1, 1, 1)
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(shape) + shift.reshape(shape)

    return FrozenBatchNorm2d()


def test_frozen_layer_of_torch():
    module = frozen()
    params, state, options = convert.from_torch(module)
    assert options == (0.9, 1e-3, True)
    assert (int(state.count), state.count.dtype) == (0, jnp.int32)
    expected = convert.Options(0.7, 1e-3, True)  # The layer has no momentum to contradict.
    assert convert.from_torch(module, options=expected).options == expected
    torch = peer("torch")
    x = np.random.default_rng(0).normal(1, 2, (4, C, 5, 5)).astype(np.float32)
    y, _ = jbn.batch_norm(x, params, state, training=False, axis=1, epsilon=options.epsilon)
    np.testing.assert_allclose(y, module(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-5)


def test_stripped_checkpoint_of_torch():
    stripped = state_dict("a.", num_batches_tracked=None) | state_dict("b.")
    layers = convert.convert_layers(convert.from_torch, stripped, names=["a", "b"], count=3)
    assert [int(each.state.count) for each in layers.values()] == [3, 7]
    assert int(convert.from_torch(stripped, "a", count=0, options=BARE).state.count) == 0


@pytest.mark.parametrize(
    "convert_with",
    [
        lambda **o: convert.from_keras([ones(C)] * 4, **o),
        lambda **o: convert.from_linen(linen_variables(), "bn", **o),
        lambda **o: convert.from_nnx({"mean": ones(C), "var": ones(C)}, **o),
    ],
)
def test_count_for_formats_without_one(convert_with):
    assert int(convert_with().state.count) == 0
    converted = convert_with(count=12, options=BARE)
    assert int(converted.state.count) == 12
    assert converted.state.count.dtype == jnp.int32


@pytest.mark.parametrize("count", [MOST, MOST + 1, 3_000_000_000, 2**40])
def test_counts_that_int32_does_not_hold(count):
    tracked = np.array(count, np.int64)
    got = convert.from_torch(state_dict(num_batches_tracked=tracked))
    assert int(got.state.count) == MOST
    torch = peer("torch")
    saved = state_dict(num_batches_tracked=torch.tensor(count))
    assert int(convert.from_torch(saved).state.count) == MOST
    back = convert.to_torch(*got[:2], tensors=False)["num_batches_tracked"]
    assert (int(back), back.dtype) == (MOST, np.int64)
    assert int(from_haiku(*with_counter(tracked)).state.count) == MOST
    variables = linen_variables()
    variables["batch_stats"]["bn"]["count"] = tracked
    assert int(convert.from_linen(variables, "bn").state.count) == MOST


def test_counts_that_are_whole_floats():
    """A pmean over devices turns the count into a float32."""
    saved = convert.to_torch(*layer(jnp.float32(7)), tensors=False)
    assert int(saved["num_batches_tracked"]) == 7
    trees = convert.to_linen(*layer(jnp.float32(7)), with_count=True)
    assert trees["batch_stats"]["count"].dtype == jnp.int32


def test_counts_of_averages_are_no_matter_where_none_is_written():
    trees = layer(jnp.float32(0.3))
    assert len(convert.to_keras(*trees)) == 4
    assert "count" not in convert.to_linen(*trees)["batch_stats"]
    assert "count" not in convert.to_nnx(*trees)
