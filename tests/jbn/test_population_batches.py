"""Population statistics of stacked batches, and of whatever gives one batch after the other."""

import collections
import functools
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

import jbn
import jbn.linen
import jbn.nnx

# Averages in float32 of a few batches, mean/std below 10.
AVERAGED = 5e-6
# (new - m old) / (1 - m) at m = .99, as in test_population.py.
RECOVERED = 5e-5

LAYERS = {
    "linen-jbn": jbn.linen.BatchNorm,
    "linen-flax": nn.BatchNorm,
    "nnx-jbn": jbn.nnx.BatchNorm,
    "nnx-flax": nnx.BatchNorm,
}


def by_layer(name, forward=None, **options):
    """Return batches -> {"mean", "var"} of one layer of C features, by its population."""
    forward = forward or (lambda layer, x: layer(x))

    def linen(batches, features=3):
        layer = LAYERS[name](**{"use_running_average": False} | options)
        zeros, ones = np.zeros(features, np.float32), np.ones(features, np.float32)
        variables = {
            "params": {"scale": ones, "bias": zeros},
            "batch_stats": {"mean": zeros, "var": ones},
        }

        def step(batch_stats, batch):
            def call(*args, **kwargs):
                tree = {**variables, "batch_stats": batch_stats}
                return layer.apply(tree, *args, mutable=["batch_stats"], **kwargs)[1]["batch_stats"]

            return forward(call, batch)

        return jbn.linen.population(step, variables["batch_stats"], batches)

    def of_nnx(batches, features=3):
        layer = LAYERS[name](features, rngs=nnx.Rngs(0), **options)
        return nnx.to_pure_dict(jbn.nnx.population(forward, layer, batches))

    return linen if name.startswith("linen") else of_nnx


def by_function(batches):
    """The same of `jbn.batch_norm`, by `jbn.population`."""
    params, state = jbn.init(3)

    def step(state, x):
        return jbn.batch_norm(x, params, state, training=True, unbiased=False)[1]

    return jbn.population(step, state, batches)._asdict()


POPULATIONS = {"function": by_function} | {name: by_layer(name) for name in LAYERS}


def arrays(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(1 + i, 2 + i, (n, 3)).astype(np.float32) for i, n in enumerate(sizes)]


def pooled(batches, weights):
    """Return the mean and the mean of the variances, batch i weighing `weights[i]`, in float64."""
    found = [oracles.moments(oracles.exact(x))[:2] for x in batches]
    return [np.average([f[i] for f in found], axis=0, weights=weights) for i in (0, 1)]


def check(got, want, tolerance=AVERAGED):
    assert_close(got["mean"], want[0], tolerance, "mean")
    assert_close(got["var"], want[1], tolerance, "var")


# What gives batches -----------------------------------------------------------------------------


class Dataset:
    """Indexed, without an end that iteration would find."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i % len(self.batches)]


class Next:
    """Only the half of an iterator."""

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
    """What torch's default gives: lists [x, y], of tensors."""
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
    """(N, T, C): n is N T."""
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
    """Nothing tells it how many values a step has seen."""
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
        masks[1, :2, 2] = True  # Flax's own is NaN without any.
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
    """As its own layer does: whatever is not 0 counts, and counts once."""
    batches = np.stack(arrays((16, 16)))
    weights = np.ones((2, 16, 1), np.float32)
    weights[0] = 0.25
    got = by_layer("linen-flax", lambda layer, b: layer(b[0], mask=b[1]))((batches, weights))
    check(got, pooled(batches, [1, 1]))


@pytest.mark.parametrize("name", ["linen-jbn", "linen-flax"])
def test_named_axes_count_together(name):
    """A batch over devices: masks leave 24 values of the first batch and 8 of the second."""
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
    """A model of single examples, as some write it: x has no batch axis, the name has it."""
    batches = np.stack(arrays((16, 16)))

    def forward(call, x):
        stats = jax.vmap(call, axis_name="batch")(x)
        return jax.tree.map(lambda leaf: leaf[0], stats)

    got = by_layer("linen-flax", forward, axis_name="batch")(batches)
    check(got, pooled(batches, [1, 1]))


def test_calls_whose_input_is_not_seen_weigh_alike():
    class Hidden(nn.Module):
        """Statistics of a kind that no library here has."""

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
    assert traced == 2 * [(8, 3)] + 2 * [(3, 3)]  # A step and the step from afar.


@pytest.mark.parametrize("name", POPULATIONS)
def test_batches_are_let_go(name, old_objects_left_alone):
    """However many there are, few are alive at once."""
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
                time.sleep(0.01)  # What is dispatched holds its batch until it has run.
            most.append(living())

    POPULATIONS[name](stream())
    assert len(most) == 20
    assert max(most) <= 4


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_inference_is_left_alone(name):
    """Even where it sees one example."""
    got = by_layer(name, lambda layer, x: layer(x[0]), use_running_average=True)(arrays((8, 8)))
    check(got, (np.zeros(3), np.ones(3)))


# What is no batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("batches", ["train", b"train", 3, None, collections.UserDict(x=1), object])
def test_what_holds_no_batches_is_an_error(name, batches):
    with pytest.raises((TypeError, ValueError), match="Expected `batches`"):
        POPULATIONS[name](batches)


@pytest.mark.parametrize("batches", [[], iter(()), (x for x in [])])
@pytest.mark.parametrize("name", ["function", "linen-jbn", "nnx-flax"])
def test_an_empty_iterable_is_an_error(name, batches):
    with pytest.raises(ValueError, match="one or more batches, got none from a"):
        POPULATIONS[name](batches)


def test_names_in_a_batch_are_an_error():
    batches = [{"x": np.ones((4, 3), np.float32), "file": "a.png"}]
    with pytest.raises(TypeError, match="numbers, got a str"):
        by_layer("linen-flax", lambda layer, b: layer(b["x"]))(batches)


@pytest.mark.parametrize("name", POPULATIONS)
def test_one_batch_without_an_axis_of_batches_is_an_error(name):
    """Flax's own layers take a row of features without a word: its variance is 0."""
    (x,) = arrays((8,))
    with pytest.raises(ValueError, match=r"leading axis of K batches.*x\[None\].*\[x\]"):
        POPULATIONS[name](x)
    for mended in (x[None], [x]):
        tolerance = RECOVERED if name == "function" else AVERAGED
        check(POPULATIONS[name](mended), pooled([x], [1]), tolerance)


@pytest.mark.parametrize("name", POPULATIONS)
def test_examples_in_the_place_of_batches_are_an_error(name):
    (x,) = arrays((8,))
    with pytest.raises(ValueError, match=r"\[x\].*single examples"):
        POPULATIONS[name](list(x))


def filled(model, x):
    """Make variables of a model of any values, without running it."""
    rng, like = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape).astype(leaf.dtype), like)


def test_one_batch_of_a_flax_model_by_the_function():
    """Nothing raises by itself, and no layer is seen."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(5)(x))

    (x,), model = arrays((8,)), Model()
    variables = filled(model, x)

    def step(batch_stats, batch):
        tree = {**variables, "batch_stats": batch_stats}
        return model.apply(tree, batch[0], mutable="batch_stats")[1]["batch_stats"]

    labels = np.zeros(8)
    with pytest.raises(ValueError, match=r"x\[None\].*\[x\]"):
        jbn.population(step, variables["batch_stats"], (x, labels))
    with pytest.raises(ValueError, match=r"\[x\].*single examples"):
        jbn.population(step, variables["batch_stats"], zip(x, labels, strict=True))
    got = jbn.population(step, variables["batch_stats"], [(x, labels)])
    dense = variables["params"]["Dense_0"]
    h = oracles.exact(x) @ oracles.exact(dense["kernel"])
    assert_close(got["BatchNorm_0"]["var"], h.var(0), RECOVERED)


def test_one_batch_of_images_without_an_axis_of_batches_is_an_error():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x))
            return nn.Dense(2)(x.mean((1, 2)))

    model, x = Model(), np.ones((8, 6, 5, 3), np.float32)
    variables = filled(model, x)

    def step(batch_stats, batch):
        tree = {**variables, "batch_stats": batch_stats}
        return model.apply(tree, batch, mutable="batch_stats")[1]["batch_stats"]

    with pytest.raises(ValueError, match=r"rows of shape \(6, 5, 3\).*x\[None\].*\[x\]"):
        jbn.linen.population(step, variables["batch_stats"], x)


def test_batches_of_single_numbers_are_batches():
    """(K, N): the step gives each its feature axis."""
    batches = np.stack([x[:, 0] for x in arrays((16, 16))])
    got = by_layer("nnx-flax", lambda layer, x: layer(x[:, None]))(batches, features=1)
    check(got, pooled(batches[..., None], [1, 1]))


def test_a_step_of_indices_is_a_step():
    data = jnp.asarray(np.concatenate(arrays((16, 16))))
    rows = np.arange(32).reshape(2, 16)
    got = by_layer("linen-flax", lambda layer, i: layer(data[i]))(rows)
    check(got, pooled([data[:16], data[16:]], [1, 1]))


def test_errors_of_the_step_are_its_own():
    def step(state, x):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        jbn.population(step, jbn.init(3)[1], np.ones((2, 4, 3)))


# Arguments --------------------------------------------------------------------------------------


def test_swapped_arguments():
    params, state = jbn.init(3)
    x = jnp.ones((2, 4, 3))
    step = functools.partial(jbn.batch_norm, params=params, training=True)
    with pytest.raises(TypeError, match=r"population\(step, state, batches\), got a BatchNormSt"):
        jbn.population(state, step, x)
    with pytest.raises(TypeError, match=r"population\(step, batch_stats, batches\), got a dict"):
        jbn.linen.population({}, step, x)
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"population\(forward, model, batches\).*got a function"):
        jbn.nnx.population(model, lambda model, x: model(x), x)
    with pytest.raises(TypeError, match=r"population\(forward, model, batches\), got a "):
        jbn.nnx.population(x, model, lambda model, x: model(x))


def move_function(state, x):
    return jbn.batch_norm(x, jbn.init(3)[0], state, training=True)[1]


def move_linen(batch_stats, x):
    layer = nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    return layer.apply({"batch_stats": batch_stats}, x, mutable="batch_stats")[1]["batch_stats"]


def move_nnx(model, x):
    model(x)


def stats_of_linen():
    return {"mean": jnp.zeros(3), "var": jnp.ones(3)}


def layer_of_nnx():
    return nnx.BatchNorm(3, rngs=nnx.Rngs(0))


TWO = np.ones((2, 4, 3), np.float32)

# name: (call, error, words that the message holds)
WRONG = {
    "swapped": (
        lambda: jbn.population(move_function, TWO, jbn.init(3)[1]),
        TypeError,
        ["population(step, state, batches)", "BatchNormState", "(2, 4, 3)", "batches go last"],
    ),
    "swapped, a loader": (
        lambda: jbn.population(move_function, iter(TWO), jbn.init(3)[1]),
        TypeError,
        ["population(step, state, batches)", "BatchNormState", "batches go last"],
    ),
    "swapped, linen": (
        lambda: jbn.linen.population(move_linen, TWO, stats_of_linen()),
        TypeError,
        ["population(step, batch_stats, batches)", "the keys 'mean', 'var'", "batches go last"],
    ),
    "swapped, linen, a list": (
        lambda: jbn.linen.population(move_linen, [TWO[0]], {"norm": stats_of_linen()}),
        TypeError,
        ["a dict with the keys 'norm'", "a list of 1", "batches go last"],
    ),
    "swapped, linen, variables": (
        lambda: jbn.linen.population(move_linen, TWO, {"batch_stats": stats_of_linen()}),
        TypeError,
        ["the keys 'batch_stats'", "batches go last"],
    ),
    "swapped, nnx": (
        lambda: jbn.nnx.population(move_nnx, TWO, layer_of_nnx()),
        TypeError,
        ["population(forward, model, batches)", "(2, 4, 3)", "the model itself"],
    ),
    "a dict for a model": (
        lambda: jbn.nnx.population(move_nnx, {"a": 1}, TWO),
        TypeError,
        ["nnx.Module as `model`", "the keys 'a'", "the model itself"],
    ),
    "a state for a model": (
        lambda: jbn.nnx.population(move_nnx, nnx.state(layer_of_nnx()), TWO),
        TypeError,
        ["nnx.Module as `model`", "State", "nnx.merge(graphdef, state)"],
    ),
    "a class for a model": (
        lambda: jbn.nnx.population(move_nnx, nnx.BatchNorm, TWO),
        TypeError,
        ["the class BatchNorm, not an instance"],
    ),
    "a model of linen for one of nnx": (
        lambda: jbn.nnx.population(move_nnx, nn.BatchNorm(), TWO),
        TypeError,
        ["nnx.Module as `model`", "flax.linen"],
    ),
    **{
        f"batches {batches}, {name}": (
            lambda call=call, batches=batches: call(batches),
            ValueError,
            ["an axis of examples", came, "[x] for one batch x", "raised"],
        )
        for name, call in {
            "function": lambda batches: jbn.population(move_function, jbn.init(3)[1], batches),
            "linen": lambda batches: jbn.linen.population(move_linen, stats_of_linen(), batches),
            "nnx": lambda batches: jbn.nnx.population(move_nnx, layer_of_nnx(), batches),
        }.items()
        for batches, came in (
            ([None], "one without arrays"),
            ([1.0], "an array of shape () and float64"),
        )
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_raises(name):
    call, error, words = WRONG[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["Expected", "got", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"


def test_a_tree_of_models():
    layer = layer_of_nnx()
    state = jbn.nnx.population(lambda models, x: models["a"](x), {"a": layer}, TWO)
    assert_close(nnx.to_pure_dict(state)["a"]["mean"], np.ones(3), AVERAGED, "mean")


def test_batches_with_columns_named_as_statistics():
    """An error of the step's own is left as it is, where the state holds statistics too."""

    def step(state, batch):
        raise RuntimeError("of the step")

    with pytest.raises(RuntimeError, match="of the step"):
        jbn.population(step, jbn.init(3)[1], {"mean": TWO, "var": TWO})


def test_batches_that_are_numbers():
    """Such as seeds, of which a step makes its batch."""

    def step(state, seed):
        return move_function(state, seed + jnp.ones((4, 3)))

    state = jbn.population(step, jbn.init(3)[1], [1.0, 2.0])
    assert_close(state.mean, np.full(3, 2.5), RECOVERED, "mean")


def test_a_step_that_returns_its_output_too():
    params, state = jbn.init(3)
    with pytest.raises(ValueError, match="statistics alone, not the output"):
        jbn.population(lambda s, x: jbn.batch_norm(x, params, s, training=True), state, TWO)

    def step(stats, x):
        return layer.apply({"batch_stats": stats}, x, mutable="batch_stats")

    layer = nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    with pytest.raises(ValueError, match="statistics alone, not the output"):
        jbn.linen.population(step, stats_of_linen(), TWO)


def test_a_step_that_ignores_its_statistics():
    layer = nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    variables = {"batch_stats": stats_of_linen()}

    def step(stats, x):
        return layer.apply(variables, x, mutable="batch_stats")[1]["batch_stats"]

    with pytest.raises(ValueError, match="statistics that it is given, got others"):
        jbn.linen.population(step, variables["batch_stats"], TWO)


def test_a_layer_without_momentum_is_an_error():
    class Largest(nnx.Module):
        def __init__(self):
            self.mean = nnx.BatchStat(jnp.zeros(3))

    with pytest.raises(ValueError, match=r"`momentum`, got Largest, which keeps mean"):
        jbn.nnx.population(lambda m, x: None, Largest(), jnp.ones((2, 4, 3)))
