"""Population statistics of stacked batches, and of anything that yields batches one by one."""

import collections
import gc
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx
from oracles import assert_close
from populations import (
    AVERAGED,
    LAYERS,
    POPULATIONS,
    RECOVERED,
    arrays,
    by_function,
    by_layer,
    check,
    pooled,
)

import jbn
import jbn.linen
import jbn.nnx

# Sources of batches -----------------------------------------------------------------------------


class Dataset:
    """A data set with an index and a length; iterating by index would never end."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i % len(self.batches)]


class Next:
    """An iterator without `__iter__`."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __next__(self):
        return next(self.batches)


def torch_loader(batches):
    torch = pytest.importorskip("torch")
    rows = torch.as_tensor(np.concatenate(batches))
    return torch.utils.data.DataLoader(rows, batch_size=len(batches[0]))


def grain_loader(batches):
    grain = pytest.importorskip("grain")
    rows = np.concatenate(batches)
    return iter(grain.MapDataset.source(rows).to_iter_dataset().batch(len(batches[0])))


ITERABLES = {
    "list": list,
    "of jax arrays": lambda batches: [jnp.asarray(x) for x in batches],
    "generator": lambda batches: (x for x in batches),
    "iterator": iter,
    "map": lambda batches: map(jnp.asarray, batches),
    "deque": collections.deque,
    "dataset": Dataset,
    "next": Next,
    "torch": torch_loader,
    "grain": grain_loader,
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_an_iterable_is_batches(kind):
    batches = arrays((8, 8, 8))
    check(by_layer("linen-flax")(ITERABLES[kind](batches)), pooled(batches, [1, 1, 1]))


@pytest.mark.parametrize("name", POPULATIONS)
def test_an_iterable_gives_what_the_stacked_array_gives(name):
    batches = arrays((8, 8, 8))
    tolerance = RECOVERED if name == "function" else AVERAGED
    for given in (np.stack(batches), (x for x in batches)):
        check(POPULATIONS[name](given), pooled(batches, [1, 1, 1]), tolerance)


def test_a_loader_of_pairs_with_a_ragged_end():
    """The default collation of torch gives lists [x, y] of tensors."""
    torch = pytest.importorskip("torch")
    x = np.concatenate(arrays((8, 8, 5)))
    data = torch.utils.data.TensorDataset(torch.as_tensor(x), torch.arange(len(x)))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    got = by_layer("linen-flax", lambda layer, batch: layer(batch[0]))(loader)
    check(got, pooled(np.split(x, [8, 16]), [8, 8, 5]))


def test_dicts_and_tuples_of_arrays_are_stacked_and_lists_are_not():
    batches = arrays((8, 8))
    want = pooled(batches, [1, 1])
    stacked = np.stack(batches)
    pick = lambda key: by_layer("nnx-jbn", lambda layer, batch: layer(batch[key]))  # noqa: E731
    check(pick("x")({"x": stacked, "y": np.zeros(2)}), want)
    check(pick("x")([{"x": x, "y": 0} for x in batches]), want)
    check(pick(0)((stacked, np.zeros(2))), want)
    check(pick(0)([(x, 0) for x in batches]), want)


# Batches of several sizes -----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_layers_weigh_batches_by_their_size(name):
    batches = arrays((16, 16, 3))
    got = POPULATIONS[name](batches)
    check(got, pooled(batches, [16, 16, 3]))
    assert_close(got["mean"], oracles.exact(np.concatenate(batches)).mean(0), AVERAGED)


def test_positions_count():
    """For x of shape (N, T, C), n is N T."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(i, 1, (4, t, 3)).astype(np.float32) for i, t in enumerate((2, 9))]
    flat = [x.reshape(-1, 3) for x in batches]
    check(POPULATIONS["linen-jbn"](batches), pooled(flat, [8, 36]))


def test_channels_first():
    batches = arrays((16, 5))
    got = by_layer("nnx-flax", axis=0)([x.T for x in batches])
    check(got, pooled(batches, [16, 5]))


def test_bessels_factor_is_each_calls_own():
    batches = arrays((16, 3))
    variances = [oracles.exact(x).var(0, ddof=1) for x in batches]
    got = by_layer("linen-jbn", unbiased=True)(batches)
    assert_close(got["var"], np.average(variances, axis=0, weights=[16, 3]), AVERAGED)


def test_the_function_weighs_batches_alike():
    """It cannot know how many values a step has seen."""
    batches = arrays((16, 3))
    check(by_function(batches), pooled(batches, [1, 1]), RECOVERED)


@pytest.mark.parametrize("name", LAYERS)
def test_masks_weigh_each_feature_by_what_they_leave(name):
    batches = np.stack(arrays((16, 16)))
    masks = np.random.default_rng(1).random((2, 16, 3)) < 0.6
    masks[1, 3:] = False
    masks[1, 0:3] = True
    masks[1, :, 2] = False  # No value of feature 2 in the second batch.
    if name == "nnx-flax":
        masks[1, :2, 2] = True  # Flax's layer gives NaN without any.
    got = by_layer(name, lambda layer, batch: layer(batch[0], mask=batch[1]))((batches, masks))
    for c in range(3):
        parts = [x[m, c] for x, m in zip(oracles.exact(batches), masks[..., c], strict=True)]
        parts = [part for part in parts if part.size]
        sizes = [part.size for part in parts]
        assert_close(got["mean"][c], np.concatenate(parts).mean(), AVERAGED)
        var = np.average([part.var() for part in parts], weights=sizes)
        assert_close(got["var"][c], var, AVERAGED)


def test_weights_weigh():
    batches = np.stack(arrays((16, 16)))
    weights = np.random.default_rng(1).random((2, 16, 1)).astype(np.float32)
    weights[1] *= 3
    got = by_layer("linen-jbn", lambda layer, b: layer(b[0], mask=b[1]))((batches, weights))
    rows, w = oracles.exact(batches).reshape(-1, 3), oracles.exact(weights).ravel()
    assert_close(got["mean"], np.average(rows, axis=0, weights=w), AVERAGED)


def test_flax_takes_weights_for_a_mask():
    """As in its own layer, every weight that is not 0 counts as one."""
    batches = np.stack(arrays((16, 16)))
    weights = np.ones((2, 16, 1), np.float32)
    weights[0] = 0.25
    got = by_layer("linen-flax", lambda layer, b: layer(b[0], mask=b[1]))((batches, weights))
    check(got, pooled(batches, [1, 1]))


@pytest.mark.parametrize("name", ["linen-jbn", "linen-flax"])
def test_named_axes_count_together(name):
    """The batch is spread over devices: masks leave 24 values of the first and 8 of the second."""
    batches = np.stack(arrays((32, 32))).reshape(2, 4, 8, 3)
    masks = np.zeros((2, 4, 8, 1), bool)
    masks[0, :, :6] = masks[1, :, :2] = True

    def forward(call, batch):
        stats = jax.vmap(lambda x, m: call(x, mask=m), axis_name="devices")(*batch)
        return jax.tree.map(lambda leaf: leaf[0], stats)

    got = by_layer(name, forward, axis_name="devices")((batches, masks))
    parts = [batches[0, :, :6].reshape(-1, 3), batches[1, :, :2].reshape(-1, 3)]
    check(got, pooled(parts, [24, 8]))


def test_examples_one_by_one_with_a_named_axis():
    """In a model of single examples, x has no batch axis: the named axis is the batch."""
    batches = np.stack(arrays((16, 16)))

    def forward(call, x):
        stats = jax.vmap(call, axis_name="batch")(x)
        return jax.tree.map(lambda leaf: leaf[0], stats)

    got = by_layer("linen-flax", forward, axis_name="batch")(batches)
    check(got, pooled(batches, [1, 1]))


def test_calls_whose_input_is_not_seen_weigh_alike():
    class Hidden(nn.Module):
        """A layer with statistics of a kind that no tested library has."""

        momentum: float = 0.9

        @nn.compact
        def __call__(self, *, values):
            mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
            new = self.momentum * mean.value + (1 - self.momentum) * values.mean(0)
            mean.value = new

    layer, batches = Hidden(), arrays((16, 3))
    variables = {"batch_stats": {"mean": np.zeros(3, np.float32)}}

    def step(batch_stats, x):
        return layer.apply({"batch_stats": batch_stats}, values=x, mutable="batch_stats")[1][
            "batch_stats"
        ]

    got = jbn.linen.population(step, variables["batch_stats"], batches)
    assert_close(got["mean"], pooled(batches, [1, 1])[0], AVERAGED)


def test_complex_values():
    """The mean of an nnx layer is real until its first training step."""
    x = np.stack(arrays((16, 16))) + 1j * np.stack(arrays((16, 16), seed=1))
    layer = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def run():
        return jbn.nnx.population(lambda layer, x: layer(x), layer, x.astype(np.complex64))

    with pytest.raises(ValueError, match="complex mean in the state"):
        run()
    layer(jnp.asarray(x[0], jnp.complex64))
    got = nnx.to_pure_dict(run())
    assert_close(got["mean"], x.mean((0, 1)), AVERAGED)
    assert_close(got["var"], x.var(1).mean(0), AVERAGED)


# Compiled once, and streamed --------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_one_compilation_for_each_shape(name):
    traced = []

    def forward(layer, x):
        traced.append(x.shape)
        return layer(x)

    run = by_layer(name, forward)
    run(arrays((8, 8, 8, 8, 3, 3, 8)))
    assert traced == [(8, 3), (3, 3)]
    traced.clear()
    run(np.stack(arrays((8, 8))))
    once = len(traced)
    run(np.stack(arrays((8,) * 9)))
    assert len(traced) == 2 * once <= 4


def test_the_function_is_compiled_once_for_each_shape():
    traced = []
    params, state = jbn.init(3)

    def step(state, x):
        traced.append(x.shape)
        return jbn.batch_norm(x, params, state, training=True)[1]

    jbn.population(step, state, arrays((8, 8, 8, 3, 3)))
    assert traced == 2 * [(8, 3)] + 2 * [(3, 3)]  # The step, and the step from a distant state.


@pytest.mark.parametrize("name", POPULATIONS)
def test_batches_are_let_go(name, old_objects_left_alone):
    """However many batches there are, only a few are alive at once."""
    alive, most = [], []

    def living():
        gc.collect()
        return sum(ref() is not None for ref in alive)

    def stream():
        for i in range(20):
            batch = np.full((64, 3), i, np.float32)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            deadline = time.monotonic() + 10
            while living() > 4 and time.monotonic() < deadline:
                time.sleep(0.01)  # A dispatched program holds its batch until it has run.
            most.append(living())

    POPULATIONS[name](stream())
    assert len(most) == 20
    assert max(most) <= 4


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_inference_is_left_alone(name):
    """It is left alone even if it gets a single example."""
    got = by_layer(name, lambda layer, x: layer(x[0]), use_running_average=True)(arrays((8, 8)))
    check(got, (np.zeros(3), np.ones(3)))
