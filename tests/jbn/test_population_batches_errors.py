"""Population statistics raise for inputs that are not batches, and for wrong arguments."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx
from oracles import assert_close
from populations import AVERAGED, POPULATIONS, RECOVERED, arrays, by_layer, check, pooled

import jbn
import jbn.linen
import jbn.nnx

# Inputs that are not batches --------------------------------------------------------------------


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
    """Flax's own layers silently accept a row of features, whose variance is 0."""
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
    """Make variables of a model with arbitrary values, without running it."""
    rng, like = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape).astype(leaf.dtype), like)


def test_one_batch_of_a_flax_model_by_the_function():
    """The model does not raise, and the function sees no layers."""

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
    """The batches have shape (K, N): the step adds the feature axis."""
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
# name: (call, error, words in the message)
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
    """The step's own error is passed on unchanged, since the state holds statistics as well."""

    def step(state, batch):
        raise RuntimeError("of the step")

    with pytest.raises(RuntimeError, match="of the step"):
        jbn.population(step, jbn.init(3)[1], {"mean": TWO, "var": TWO})


def test_batches_that_are_numbers():
    """Numbers may be seeds, from which the step makes its batch."""

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
