"""Population statistics of linen and nnx models against Algorithm 2 in float64 NumPy.

`jbn.population` is for any step, `jbn.linen.population` and `jbn.nnx.population` also for models
that call a layer several times.
"""

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

# Two float32 layers, averaged over five batches.
AVERAGED = 5e-6
# `jbn.population` reads a batch off a moved state, (new - m old) / (1 - m): at m = .99 that
# magnifies float32's rounding a hundredfold, and Flax's own fast variance adds its cancellation.
RECOVERED = 5e-5

MOMENTA = {"0": 0.0, "default": 0.99}
SCHEDULES = {"cumulative": jbn.cumulative, "debiased": jbn.debiased(0.9)}
LINEN = {"jbn": jbn.linen.BatchNorm, "flax": nn.BatchNorm}
NNX = {"jbn": jbn.nnx.BatchNorm, "flax": nnx.BatchNorm}


CASES = [
    pytest.param(library, momentum, id=f"{library}-{name}")
    for library in LINEN
    for name, momentum in (MOMENTA if library == "flax" else MOMENTA | SCHEDULES).items()
]


def batches_of(seed=0, shape=(5, 16, 3)):
    return jax.device_put(np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32))


# Algorithm 2, in float64 ------------------------------------------------------------------------


def algorithm_2(w, batches, calls, bessel=False):
    """Run x -> norm(tanh(x) @ w), `calls` times, on each batch; average over calls and batches."""
    means, variances = [], []
    for x in oracles.exact(batches):
        for _ in range(calls):
            h = np.tanh(x) @ oracles.exact(w)
            mean, var, n = oracles.moments(h)
            x = oracles.normalize(h, mean, var)
            means.append(mean)
            variances.append(var * (oracles.bessel(n) if bessel else 1))
    return np.mean(means, 0), np.mean(variances, 0)


def check(stats, want, tolerance):
    assert_close(stats["mean"], want[0], tolerance, "mean")
    assert_close(stats["var"], want[1], tolerance, "var")


class Linen(nn.Module):
    """A layer that is called `calls` times."""

    norm: type[nn.Module]
    momentum: object
    calls: int = 1

    @nn.compact
    def __call__(self, x, masks=None):
        dense = nn.Dense(3, use_bias=False, name="dense")
        norm = self.norm(momentum=self.momentum, use_running_average=False, name="norm")
        for i in range(self.calls):
            x = norm(dense(jnp.tanh(x)), mask=None if masks is None else masks[i])
        return x


def init(model, x):
    """Make variables as `model.init` does, of NumPy and with a kernel of other values."""
    rng = np.random.default_rng(3)
    made = {
        "kernel": lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(leaf.dtype),
        "scale": lambda leaf: np.ones(leaf.shape, leaf.dtype),
        "var": lambda leaf: np.ones(leaf.shape, leaf.dtype),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: made.get(path[-1].key, lambda leaf: np.zeros(leaf.shape, leaf.dtype))(
            leaf
        ),
        jax.eval_shape(lambda: model.init(jax.random.key(0), x)),
    )


def linen_step(model, x):
    """Return (step, batch_stats, W), the statistics far from where they will be."""
    variables = init(model, x)
    stats = jax.tree.map(lambda leaf: leaf + np.asarray(7, leaf.dtype), variables["batch_stats"])

    def step(batch_stats, batch):
        tree = {**variables, "batch_stats": batch_stats}
        batch = batch if isinstance(batch, tuple) else (batch,)
        return model.apply(tree, *batch, mutable=["batch_stats"])[1]["batch_stats"]

    return step, stats, variables["params"].get("dense", {}).get("kernel")


class Nnx(nnx.Module):
    """A layer that is called `calls` times."""

    def __init__(self, norm, momentum, calls=1, dropout=0.0):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
        self.norm = norm(3, momentum=momentum, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.calls = calls

    def __call__(self, x, masks=None):
        for i in range(self.calls):
            x = self.dense(jnp.tanh(x))
            x = self.dropout(self.norm(x, mask=None if masks is None else masks[i]))
        return x


def forward(model, x):
    return model(x)


# A layer that is called once --------------------------------------------------------------------


@pytest.mark.parametrize(("library", "momentum"), CASES)
def test_linen_by_the_plain_function_is_algorithm_2(library, momentum):
    batches = batches_of()
    step, stats, w = linen_step(Linen(LINEN[library], momentum), batches[0])
    got = jbn.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 1), RECOVERED)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, stats)


@pytest.mark.parametrize("library", LINEN)
def test_linen_is_algorithm_2(library):
    batches = batches_of()
    step, stats, w = linen_step(Linen(LINEN[library], 0.99), batches[0])
    got = jbn.linen.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 1), AVERAGED)


@pytest.mark.parametrize("library", NNX)
def test_nnx_is_algorithm_2(library):
    batches, model = batches_of(), Nnx(NNX[library], 0.99)
    want = algorithm_2(model.dense.kernel[...], batches, 1)
    state = jbn.nnx.population(forward, model, batches)
    nnx.update(model, state)
    check(nnx.to_pure_dict(state)["norm"], want, AVERAGED)
    check({"mean": model.norm.mean[...], "var": model.norm.var[...]}, want, AVERAGED)


@pytest.mark.parametrize("library", NNX)
def test_nnx_by_split_and_merge_is_algorithm_2(library):
    """What one writes without a helper; Flax stops the gradient of what its layer writes."""
    batches, model = batches_of(), Nnx(NNX[library], 0.99)
    graphdef, stats, rest = nnx.split(model, nnx.BatchStat, ...)

    def step(stats, x):
        copy = nnx.merge(graphdef, stats, rest, copy=True)
        copy(x)
        return nnx.state(copy, nnx.BatchStat)

    got = nnx.to_pure_dict(jbn.population(step, stats, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 1), RECOVERED)


def test_unbiased_is_line_10():
    """Var[x] = m / (m - 1) E[var_B]."""
    batches = batches_of()
    model = Nnx(lambda *args, **kw: jbn.nnx.BatchNorm(*args, unbiased=True, **kw), 0.9)
    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 1, bessel=True), AVERAGED)


# A layer that is called several times -----------------------------------------------------------


@pytest.mark.parametrize(("library", "momentum"), CASES)
def test_linen_counts_every_call_of_a_shared_layer(library, momentum):
    batches = batches_of()
    step, stats, w = linen_step(Linen(LINEN[library], momentum, 2), batches[0])
    got = jbn.linen.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 2), AVERAGED)


@pytest.mark.parametrize(("library", "momentum"), CASES)
def test_nnx_counts_every_call_of_a_shared_layer(library, momentum):
    batches, model = batches_of(), Nnx(NNX[library], momentum, 2)
    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 2), AVERAGED)


def test_nnx_layer_in_two_places_is_one():
    class Twice(nnx.Module):
        def __init__(self):
            self.first = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.second = self.first

        def __call__(self, x):
            return self.second(self.first(x) * 3 + 5)

    batches = batches_of()
    got = nnx.to_pure_dict(jbn.nnx.population(forward, Twice(), batches))
    values = oracles.exact(batches)
    variance = values.var(1).mean(0)
    check(got["first"], ((values.mean((0, 1)) + 5) / 2, (variance + 9) / 2), 1e-4)


def test_cumulative_needs_no_helper_for_a_shared_layer():
    """Its weight follows the count, which every call moves."""
    batches = batches_of()
    step, stats, w = linen_step(Linen(jbn.linen.BatchNorm, jbn.cumulative, 3), batches[0])
    got = jbn.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 3), RECOVERED)
    assert int(got["norm"]["count"]) == 15


@pytest.mark.parametrize("w", [0.5, 0.9])
def test_a_shared_layer_without_helper_weighs_late_calls_more(w):
    """What `jbn.population` documents: new / (1 - slope) = (w first + second) / (1 + w)."""
    params, state = jbn.init(3)
    batches = batches_of()

    def step(state, x):
        for scale in (1.0, 4.0):
            state = jbn.batch_norm(scale * x, params, state, training=True, momentum=w)[1]
        return state

    got = jbn.population(step, state, batches)
    mean = oracles.exact(batches).mean((0, 1))
    assert_close(got.mean, (w * mean + 4 * mean) / (1 + w), RECOVERED)


# Under transforms -------------------------------------------------------------------------------


class Cell(nn.Module):
    """A block for lifting."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, use_bias=False, name="dense")(jnp.tanh(x))
        return self.norm(use_running_average=False, name="norm")(x), None


@pytest.mark.parametrize("library", LINEN)
def test_linen_shared_in_a_scan_over_steps(library):
    """The layer is traced once and called three times."""
    steps = nn.scan(
        Cell,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
        length=3,
    )
    batches, plain = batches_of(), Cell(LINEN[library])
    variables = init(plain, batches[0])

    def step(batch_stats, x):
        tree = {**variables, "batch_stats": batch_stats}
        return steps(LINEN[library]).apply(tree, x, mutable=["batch_stats"])[1]["batch_stats"]

    got = jbn.linen.population(step, variables["batch_stats"], batches)
    w = variables["params"]["dense"]["kernel"]
    check(got["norm"], algorithm_2(w, batches, 3), AVERAGED)


@pytest.mark.parametrize("library", LINEN)
@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_linen_under(lift, library):
    """`nn.jit` keeps what it traced before, for statistics of another kind."""
    model, batches = lift(Cell)(LINEN[library]), batches_of()
    step, stats, _ = linen_step(model, batches[0])
    step(stats, batches[0])
    got = jbn.linen.population(step, stats, batches)
    w = init(model, batches[0])["params"]["dense"]["kernel"]
    check(got["norm"], algorithm_2(w, batches, 1), AVERAGED)
    again = step(stats, batches[0])
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, stats)


@pytest.mark.parametrize("library", LINEN)
def test_linen_stack_of_layers(library):
    axes = {"params": 0, "batch_stats": 0}
    stack = nn.scan(Cell, variable_axes=axes, split_rngs={"params": True}, length=3)
    batches = batches_of()
    step, stats, _ = linen_step(stack(LINEN[library]), batches[0])
    got = jbn.linen.population(step, stats, batches)
    want = jbn.population(step, stats, batches)
    check(got["norm"], (want["norm"]["mean"], want["norm"]["var"]), RECOVERED)


@pytest.mark.parametrize("library", NNX)
def test_nnx_shared_in_a_scan_under_jit_and_remat(library):
    batches, model = batches_of(), Nnx(NNX[library], 0.99)

    def forward(model, x):
        @nnx.scan(in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=3)
        def steps(carry, _):
            model, x = carry
            return model, nnx.remat(lambda model, x: model(x))(model, x)

        return nnx.jit(lambda model, x: steps((model, x), None))(model, x)

    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 3), AVERAGED)


# What counts, and what stays --------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.9, jbn.debiased(0.9)])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_calls_without_weight_count_for_nothing(library, momentum):
    """The second call of every batch is masked altogether, and so is the whole second batch."""
    batches = batches_of()
    masks = np.ones((5, 2, 16, 1), bool)
    masks[:, 1] = masks[1] = False
    if library == "linen":
        model = Linen(jbn.linen.BatchNorm, momentum, 2)
        step, stats, w = linen_step(model, batches[0])
        got = jbn.linen.population(step, stats, (batches, masks))
    else:
        model = Nnx(jbn.nnx.BatchNorm, momentum, 2)
        w = model.dense.kernel[...]
        state = jbn.nnx.population(lambda m, xs: m(*xs), model, (batches, masks))
        got = nnx.to_pure_dict(state)
    check(got["norm"], algorithm_2(w, np.delete(batches, 1, 0), 1), AVERAGED)


def test_dead_features_count():
    """Their statistics are exactly 0, which is not the same as nothing."""
    step, stats, _ = linen_step(nn.BatchNorm(use_running_average=False), batches_of()[0])
    batches = np.array(batches_of())
    batches[..., 0] = 0
    zero = jbn.linen.population(step, stats, batches)
    assert float(zero["mean"][0]) == float(zero["var"][0]) == 0


def test_layers_that_were_not_called_stay():
    model = Nnx(nnx.BatchNorm, 0.99)
    model.norm.mean[...] = jnp.full(3, 5.0)
    got = nnx.to_pure_dict(jbn.nnx.population(lambda m, x: m.dense(x), model, batches_of()))
    np.testing.assert_array_equal(got["norm"]["mean"], [5, 5, 5])
    np.testing.assert_array_equal(got["norm"]["var"], [1, 1, 1])


@pytest.mark.parametrize("library", NNX)
def test_nnx_model_is_not_changed(library):
    model, x = Nnx(NNX[library], 0.99, calls=2, dropout=0.5), batches_of()
    graphdef, before = nnx.split(model)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    jbn.nnx.population(forward, model, x)
    assert nnx.split(model)[0] == graphdef
    after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert model.norm.momentum == 0.99


@pytest.mark.parametrize("library", LINEN)
def test_linen_bound_module_keeps_its_momentum(library):
    layer, x = LINEN[library](use_running_average=False, momentum=0.9), batches_of()
    bound = layer.bind(init(layer, x[0]), mutable=["batch_stats"])

    def step(batch_stats, x):
        bound.scope._collection("batch_stats").update(batch_stats)
        bound(x)
        return dict(bound.variables["batch_stats"])

    jbn.linen.population(step, dict(bound.variables["batch_stats"]), x)
    assert bound.momentum == 0.9


def test_other_statistics_stay():
    """Only mean and var of a layer with momentum are averaged; counts go on."""

    class Watched(nn.Module):
        @nn.compact
        def __call__(self, x):
            largest = self.variable("batch_stats", "largest", jnp.zeros, ())
            seen = self.variable("batch_stats", "seen", jnp.zeros, (), jnp.int32)
            largest.value = jnp.maximum(largest.value, x.max())
            seen.value += 1
            return nn.BatchNorm(use_running_average=False)(x)

    step, stats, _ = linen_step(Watched(), batches_of()[0])
    got = jbn.linen.population(step, stats, batches_of())
    assert float(got["largest"]) == float(stats["largest"])
    assert int(got["seen"]) == 5


@pytest.mark.parametrize("batches", [np.zeros((0, 4, 3), np.float32), ()])
def test_no_batches_is_an_error(batches):
    with pytest.raises(ValueError, match="K >= 1 batches"):
        jbn.nnx.population(forward, Nnx(nnx.BatchNorm, 0.9), batches)
