"""Diagnostics against float64 NumPy, finite differences and known shares."""

import io

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jbn
from jbn import diagnostics

RNG = np.random.default_rng(0)


def single(x):
    return jax.device_put(np.asarray(x, np.float32))


def stats(seed, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "block": {"norm": {"mean": rng.normal(shift, 1, 4), "var": scale * rng.uniform(1, 2, 4)}},
        "last": {"mean": rng.normal(size=3), "var": rng.uniform(1, 2, 3)},
    }


# ---- The gap -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_population", [False, True])
def test_gap_by_hand(with_population):
    running, batch, population = stats(0), stats(1, 2.0, 4.0), stats(2)
    gaps = diagnostics.train_eval_gap(
        running, batch, population if with_population else None, epsilon=0.1
    )
    assert list(gaps) == ["block/norm", "last"]
    for name, pick in (("block/norm", lambda s: s["block"]["norm"]), ("last", lambda s: s["last"])):
        r, b, truth = pick(running), pick(batch), pick(population if with_population else batch)
        std = np.sqrt(truth["var"] + 0.1)

        def distance(s, truth=truth, std=std):
            ratio = np.sqrt(s["var"] + 0.1) / std
            return np.max(np.abs(s["mean"] - truth["mean"]) / std), np.max(np.abs(np.log2(ratio)))

        want = (
            *distance(r),
            max(distance(b)),
            np.log2(1 + np.max(truth["mean"] ** 2 / (truth["var"] + 0.1))),
        )
        np.testing.assert_allclose(gaps[name][:4], want, rtol=1e-5, atol=1e-6)
        assert np.isnan(gaps[name][4:]).all()
        assert (gaps[name].noise > 0) == with_population


def test_gap_of_states_and_what_it_finds():
    """A running mean off by three stds, on features whose mean is 1,000 stds, shows as such."""
    x = single(RNG.normal(1000, 1, (4096, 2)))
    batch = jbn.moments(x)
    true = jbn.BatchNormState(batch.mean, batch.var, jnp.int32(1))
    off = true._replace(mean=true.mean + 3)
    gap = diagnostics.train_eval_gap([off], [true])["0"]
    assert gap.mean == pytest.approx(3, rel=0.05)
    assert gap.std == pytest.approx(0, abs=1e-6)
    assert gap.digits == pytest.approx(20, abs=0.1)  # log2(1e6)
    both = {"own": true._replace(count=jnp.int32(7)), "flax": {"mean": true.mean, "var": true.var}}
    aged = diagnostics.train_eval_gap(both, both, momentum=0.9, count=50)
    for name, absorbed in (("own", 7), ("flax", 50)):
        assert aged[name].batches == diagnostics.effective_batches(absorbed, 0.9)
        assert aged[name].stale == pytest.approx(0.9**absorbed, rel=1e-5)
    alone = diagnostics.train_eval_gap(true, true)
    assert list(alone) == ["layer"]
    assert float(alone["layer"].mean) == 0


def test_gap_needs_the_same_layers():
    with pytest.raises(ValueError, match="`batch` with the layers"):
        diagnostics.train_eval_gap(stats(0), {"last": stats(0)["last"]})
    with pytest.raises(ValueError, match="not the parameters"):
        diagnostics.train_eval_gap({"kernel": jnp.ones(3)}, {"kernel": jnp.ones(3)})


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_effective_batches_and_initial_weight(momentum, count):
    weights = (1 - momentum) * momentum ** np.arange(count, dtype=np.float64)
    want = weights.sum() ** 2 / (weights**2).sum()
    got = diagnostics.effective_batches(count, momentum)
    np.testing.assert_allclose(got, want, rtol=2e-4)
    left = diagnostics.initial_weight(count, momentum)
    np.testing.assert_allclose(left, 1 - weights.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("momentum", "count"), [(0.999999, 10**6), (1 - 1e-9, 2**24 + 1)])
def test_momentum_that_float32_has_not(momentum, count):
    kept = np.float64(momentum) ** count
    want = (1 - kept) * (1 + momentum) / ((1 + kept) * (1 - momentum))
    np.testing.assert_allclose(diagnostics.effective_batches(count, momentum), want, rtol=1e-6)
    np.testing.assert_allclose(diagnostics.initial_weight(count, momentum), kept, rtol=1e-6)


def test_restored_statistics():
    """A state that a checkpoint restored as a dict counts for itself, too."""
    state = jbn.BatchNormState(single(np.arange(3)), single(np.arange(1, 4)), jnp.int32(7))
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))
    assert isinstance(restored, dict)
    want = diagnostics.train_eval_gap({"norm": state}, {"norm": state}, momentum=0.9)
    got = diagnostics.train_eval_gap({"norm": restored}, {"norm": restored}, momentum=0.9)
    assert got == want


# ---- Gradients and activations -------------------------------------------------------------------


def test_gradient_norms():
    tree = {
        "a": {"kernel": RNG.normal(size=(3, 4)).astype(np.float32), "bias": np.ones(4, "f4")},
        "b": {"c": {"kernel": np.full((2, 2), 1e-25, "f4")}, "d": np.zeros(3, "f4")},
    }
    norms = diagnostics.gradient_norms(tree)
    want = np.sqrt((tree["a"]["kernel"].astype(float) ** 2).sum() + 4)
    np.testing.assert_allclose(norms["a"], want, rtol=1e-6)
    np.testing.assert_allclose(norms["b"], 2e-25, rtol=1e-6)  # Its square is 0 in float32.
    assert list(diagnostics.gradient_norms(tree, depth=2)) == ["a/bias", "a/kernel", "b/c", "b/d"]
    assert float(diagnostics.gradient_norms(tree, depth=2)["b/d"]) == 0


@pytest.mark.parametrize(("std", "share"), [(1, 0.0), (4, 0.25), (10, 0.65)])
def test_saturation_of_normal_inputs(std, share):
    """Slope < .01 beyond |x| = 4.585: P = 2 (1 - Phi(4.585 / std))."""
    x = single(RNG.normal(0, std, 200_000))
    exact = 2 * scipy.stats.norm.sf(np.log((1 + np.sqrt(0.96)) / (1 - np.sqrt(0.96))) / std)
    assert exact == pytest.approx(share, abs=0.01)
    assert float(diagnostics.saturation(x, jax.nn.sigmoid)) == pytest.approx(exact, abs=0.005)


def test_dead_units():
    x = RNG.normal(size=(6, 2, 5)).astype(np.float32)
    x[..., 1], x[..., 3] = -np.abs(x[..., 1]), -np.abs(x[..., 3])
    x[0, 0, 3] = 1.0
    assert float(diagnostics.dead_units(x, jax.nn.relu)) == pytest.approx(1 / 5)
    assert float(diagnostics.dead_units(x, jax.nn.leaky_relu)) == 0
    np.testing.assert_array_equal(diagnostics.slopes(x, jax.nn.relu), x > 0)


# ---- Shift ---------------------------------------------------------------------------------------


def test_percentiles_and_their_drift():
    batches = RNG.normal(size=(5, 40, 3, 2)) * np.arange(1, 6)[:, None, None, None]
    rows = single([diagnostics.percentiles(single(x)) for x in batches])
    want = np.percentile(batches.reshape(5, -1, 2), (15, 50, 85), axis=1).swapaxes(0, 1)
    np.testing.assert_allclose(rows, want, rtol=1e-5, atol=1e-6)
    drift = diagnostics.drift(rows)
    median, spread = want[:, 1], want[:, 2] - want[:, 0]
    np.testing.assert_allclose(drift.median, np.abs(median - median[0]).max(0).mean(), rtol=1e-5)
    np.testing.assert_allclose(drift.spread, (spread.max(0) / spread.min(0)).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="Q odd"):
        diagnostics.drift(rows[:, :2])


def network(params, x):
    return jnp.tanh(jnp.tanh(x @ params["a"]["w"]) @ params["b"]["w"]) @ params["c"]["w"]


def make_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 3), "b": (3, 3), "c": (3, 1)}
    return {k: {"w": single(rng.normal(size=s))} for k, s in shapes.items()}


X = single(np.random.default_rng(3).normal(size=(20, 4)))


@jax.jit
def loss(params):
    return jnp.mean((network(params, X) - 1) ** 2)


def test_gradient_shift_is_of_the_layers_before():
    params, moved = make_params(0), make_params(1)
    gradient = jax.jit(jax.grad(loss))
    shifts = diagnostics.gradient_shift(loss, params, moved, ["a", "b", "c"])
    assert [float(v) for v in shifts["a"]] == pytest.approx([0, 0, 1], abs=1e-6)
    for name, ahead in (("b", {"a": moved["a"]}), ("c", {"a": moved["a"], "b": moved["b"]})):
        g = np.float64(gradient(params)[name]["w"])
        other = np.float64(gradient({**params, **ahead})[name]["w"])
        assert shifts[name].distance == pytest.approx(np.linalg.norm(g - other), rel=1e-5)
        assert shifts[name].relative == pytest.approx(
            np.linalg.norm(g - other) / np.linalg.norm(g), rel=1e-5
        )
        cosine = (g * other).sum() / np.linalg.norm(g) / np.linalg.norm(other)
        assert shifts[name].cosine == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(ValueError, match="among"):
        diagnostics.gradient_shift(loss, params, moved, ["a", "z"])


def test_gradient_shift_under_jit_and_without_a_step():
    params = make_params(0)
    still = jax.jit(lambda p: diagnostics.gradient_shift(loss, p, p, ["a", "b", "c"]))(params)
    for shift in still.values():
        assert [float(v) for v in shift] == pytest.approx([0, 0, 1], abs=1e-5)


def test_percentiles_of_sharded_features():
    """On a mesh with explicit axes, where JAX does not sort along a sharded one."""
    made = jax.make_mesh((4, 2), ("b", "m"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    x = single(np.random.default_rng(0).normal(size=(8, 3, 6)))
    want = diagnostics.percentiles(x)
    with jax.sharding.set_mesh(made):
        placed = jax.device_put(x, jax.NamedSharding(made, jax.P("b", None, "m")))
        got = diagnostics.percentiles(placed)
    np.testing.assert_array_equal(got, want)


def test_landscape_of_a_quadratic():
    """Loss w H w / 2: the smoothness along the gradient is |H g| / |g|, at every size."""
    rng = np.random.default_rng(2)
    root = rng.normal(size=(5, 5))
    hessian, w = single(root @ root.T), single(rng.normal(size=5))
    sizes = np.array([0.01, 0.1, 0.3])
    seen = diagnostics.landscape(jax.jit(lambda w: w @ hessian @ w / 2), w, sizes)
    h, v = np.float64(hessian), np.float64(w)
    g = h @ v
    want = [(v - s * g) @ h @ (v - s * g) / 2 for s in sizes]
    np.testing.assert_allclose(seen.loss, want, rtol=1e-4)
    np.testing.assert_allclose(seen.gradient_change, sizes * np.linalg.norm(h @ g), rtol=1e-4)
    np.testing.assert_allclose(
        seen.smoothness, np.linalg.norm(h @ g) / np.linalg.norm(g), rtol=1e-3
    )


def test_gradient_before_batch_norm_is_inverse_to_the_scale_of_the_weights():
    """The paper's section 3.3."""
    params = make_params(0)
    _, state = jbn.init(3)
    plain = jbn.BatchNormParams(None, None)

    def normalized(params):
        h = X @ params["a"]["w"]
        h, _ = jbn.batch_norm(h, plain, state, training=True)
        return jnp.mean((jnp.tanh(h) @ params["c"]["w"] - 1) ** 2)

    large = {**params, "a": {"w": 10 * params["a"]["w"]}}
    gradient = jax.jit(jax.grad(normalized))
    one, ten = (diagnostics.gradient_norms(gradient(p))["a"] for p in (params, large))
    assert float(ten) == pytest.approx(float(one) / 10, rel=1e-3)


# ---- The table -----------------------------------------------------------------------------------


def test_summary_has_a_line_for_each_layer():
    out = io.StringIO()
    diagnostics.summarize(
        gap=diagnostics.train_eval_gap(stats(0), stats(1)),
        saturated={"last": 0.5, "more": jnp.float32(1 / 3)},
        file=out,
    )
    header, *lines = out.getvalue().splitlines()
    fields = ("mean", "std", "noise", "digits", "batches", "stale")
    assert header.split() == ["layer", *(f"gap.{field}" for field in fields), "saturated"]
    assert [line.split()[0] for line in lines] == ["block/norm", "last", "more"]
    assert lines[1].endswith(" 0.5")
    assert lines[2].split() == ["more", "0.333"]
    assert len({len(line) for line in (header, *lines[1:])}) == 1


# ---- Wrong calls ---------------------------------------------------------------------------------


def one(mean=(4,), var=(4,), **fields):
    return {"norm": {"mean": jnp.zeros(mean), "var": jnp.ones(var), **fields}}


def gap(running=None, batch=None, **options):
    return diagnostics.train_eval_gap(running or one(), batch or one(), **options)


def shift(loss=loss, params=None, moved=None, layers=("a", "b")):
    params = make_params(0) if params is None else params
    return diagnostics.gradient_shift(loss, params, moved or make_params(1), layers)


def slope_of(x, activation=jax.nn.relu):
    return diagnostics.slopes(x, activation)


ONE = jnp.float32(1)

# name: (call, error, words that the message holds)
CASES = {
    # The gap.
    "gap of other shapes": (
        lambda: gap(one((3,), (3,)), one((1,), (1,))),
        ValueError,
        ["`batch`", "(3,)", "'norm'", "(1,)"],
    ),
    "population of other shapes": (
        lambda: gap(population=one((1,), (1,))),
        ValueError,
        ["`population`", "(4,)", "'norm'", "(1,)"],
    ),
    "mean and var of other shapes": (
        lambda: gap(one(var=(1,)), one(var=(1,))),
        ValueError,
        ["'norm'", "(4,) and (1,)"],
    ),
    "no features": (lambda: gap(one((0,), (0,))), ValueError, ["'norm'", "(0,)"]),
    "a count for each device": (
        lambda: gap(one(count=jnp.zeros(8, jnp.int32))),
        ValueError,
        ["one count", "'norm'", "(8,)"],
    ),
    "mean of None": (
        lambda: gap({"norm": {"mean": None, "var": None}}),
        TypeError,
        ["mean of layer 'norm'", "None"],
    ),
    "mean as a string": (
        lambda: gap({"norm": {"mean": "0", "var": "1"}}),
        TypeError,
        ["mean of layer 'norm'", "'0'"],
    ),
    "statistics of None": (
        lambda: diagnostics.train_eval_gap(None, one()),
        ValueError,
        ["found none", "not the parameters"],
    ),
    "epsilon of the gap": (lambda: gap(epsilon=-1e-3), ValueError, ["`epsilon`", "-0.001"]),
    "momentum of the gap": (lambda: gap(momentum=1.0), ValueError, ["`momentum`", "[0, 1)", "1.0"]),
    "count of the gap": (lambda: gap(count=-1), ValueError, ["`count`", "-1"]),
    "schedule for the gap": (
        lambda: gap(momentum=jbn.cumulative, count=1),
        TypeError,
        ["`momentum`", "schedule", "decay"],
    ),
    "swapped momentum and count": (
        lambda: diagnostics.effective_batches(0.99, 100),
        ValueError,
        ["`momentum`", "100", "count goes first"],
    ),
    "momentum of 1": (
        lambda: diagnostics.effective_batches(3, np.float32(1)),
        ValueError,
        ["`momentum`", "[0, 1)"],
    ),
    "momentum as a string": (
        lambda: diagnostics.initial_weight(3, "0.9"),
        TypeError,
        ["`momentum`", "'0.9'"],
    ),
    "momentum above 1": (
        lambda: diagnostics.initial_weight(3, jnp.float32(1.5)),
        ValueError,
        ["`momentum`", "[0, 1]", "1.5"],
    ),
    "count of None": (
        lambda: diagnostics.initial_weight(None, 0.9),
        TypeError,
        ["`count`", "None"],
    ),
    "negative count": (
        lambda: diagnostics.initial_weight(np.array(-1), 0.9),
        ValueError,
        ["`count`", "-1"],
    ),
    # Gradients.
    "no gradients": (lambda: diagnostics.gradient_norms({}), ValueError, ["gradients", "no keys"]),
    "gradient of None": (lambda: diagnostics.gradient_norms(None), ValueError, ["None"]),
    "function for a gradient": (
        lambda: diagnostics.gradient_norms(jax.grad(loss)),
        TypeError,
        ["gradient of", "jax.grad returned"],
    ),
    "integers for a gradient": (
        lambda: diagnostics.gradient_norms({"a": jnp.arange(3)}),
        TypeError,
        ["gradient of a", "int32"],
    ),
    **{
        f"depth of {depth}": (
            lambda depth=depth: diagnostics.gradient_norms({"a": ONE}, depth=depth),
            ValueError,
            ["`depth`", repr(depth)],
        )
        for depth in (0, -1, 1.5, "1", True)
    },
    # Activations.
    "integer x": (lambda: slope_of(jnp.arange(3)), TypeError, ["`x`", "int32", "astype"]),
    "swapped x and activation": (
        lambda: slope_of(jax.nn.relu, jnp.ones(3)),
        TypeError,
        ["`x`", "then the activation"],
    ),
    "x of None": (lambda: slope_of(None), TypeError, ["`x`", "None"]),
    "name for an activation": (
        lambda: slope_of(jnp.ones(3), "relu"),
        TypeError,
        ["`activation`", "'relu'", "jax.nn.relu"],
    ),
    "activation that sums": (
        lambda: slope_of(jnp.ones((2, 3)), jnp.sum),
        ValueError,
        ["elementwise", "(2, 3)", "()"],
    ),
    "activation that compares": (
        lambda: slope_of(jnp.ones(3), lambda x: x > 0),
        TypeError,
        ["bool", "slope"],
    ),
    "saturation of nothing": (
        lambda: diagnostics.saturation(jnp.zeros((0, 3)), jax.nn.relu),
        ValueError,
        ["(0, 3)"],
    ),
    **{
        f"threshold of {threshold}": (
            lambda threshold=threshold: diagnostics.saturation(
                jnp.ones(3), jax.nn.relu, threshold=threshold
            ),
            error,
            ["`threshold`", str(threshold)],
        )
        for threshold, error in (
            (0, ValueError),
            (-0.1, ValueError),
            (float("nan"), ValueError),
            (float("inf"), ValueError),
            ("0.01", TypeError),
            (None, TypeError),
        )
    },
    "dead units of an empty batch": (
        lambda: diagnostics.dead_units(jnp.zeros((0, 3)), jax.nn.relu),
        ValueError,
        ["(N, ..., C)", "(0, 3)"],
    ),
    "dead units of one example": (
        lambda: diagnostics.dead_units(jnp.ones(3), jax.nn.relu),
        ValueError,
        ["(N, ..., C)", "(3,)", "x[None]"],
    ),
    # Percentiles.
    "percentiles of an empty batch": (
        lambda: diagnostics.percentiles(jnp.zeros((0, 3))),
        ValueError,
        ["(0, 3)"],
    ),
    "percentiles of a number": (lambda: diagnostics.percentiles(ONE), ValueError, ["()"]),
    "percentiles of integers": (
        lambda: diagnostics.percentiles(jnp.ones((4, 3), jnp.int32)),
        TypeError,
        ["`x`", "int32"],
    ),
    **{
        f"threshold of {threshold}": (
            lambda threshold=threshold: diagnostics.saturation(
                jnp.ones((4, 2)), jnp.tanh, threshold=threshold
            ),
            error,
            ["`threshold` as", came, "slope"],
        )
        for threshold, error, came in (
            (np.ones(3), ValueError, "an array of shape (3,)"),
            (jnp.ones(3), ValueError, "an array of shape (3,)"),
            ([1], ValueError, "a list of 1 (int)"),
            ([], ValueError, "an empty list"),
            ([[1], [1, 2]], TypeError, "a list of 2 (list)"),
            (None, TypeError, "None"),
        )
    },
    **{
        f"q of {q}": (
            lambda q=q: diagnostics.percentiles(jnp.ones((4, 3)), q),
            error,
            ["`q`", "a list" if error is TypeError else "percentages", "(15, 50, 85)"],
        )
        for q, error in (
            (200, ValueError),
            (50, ValueError),
            ((), ValueError),
            ((-1, 50, 101), ValueError),
            ("15", TypeError),
            (None, TypeError),
        )
    },
    "drift of an even number": (
        lambda: diagnostics.drift(jnp.ones((5, 2, 3))),
        ValueError,
        ["Q odd", "(5, 2, 3)"],
    ),
    "drift of one row": (lambda: diagnostics.drift(jnp.ones((3, 2))), ValueError, ["(3, 2)"]),
    "drift of no row": (lambda: diagnostics.drift(jnp.ones((0, 3, 2))), ValueError, ["(0, 3, 2)"]),
    "drift of integers": (
        lambda: diagnostics.drift(jnp.ones((5, 3, 2), jnp.int32)),
        TypeError,
        ["int32"],
    ),
    # Losses.
    "loss after params": (
        lambda: shift(make_params(0), loss),
        TypeError,
        ["`params`", "loss, params, moved, layers"],
    ),
    "loss as a number": (lambda: shift(1.0), TypeError, ["`loss`", "1.0"]),
    "loss of each example": (
        lambda: shift(lambda params: network(params, X)[:, 0]),
        TypeError,
        ["one number", "(20,)", "mean"],
    ),
    "layers as a string": (lambda: shift(layers="a"), TypeError, ["`layers`", "layers=['a']"]),
    "layers of None": (lambda: shift(layers=None), TypeError, ["`layers`", "None", "a list"]),
    "layer that is not there": (
        lambda: shift(layers=["d"]),
        ValueError,
        ["['d']", "'a', 'b', 'c'"],
    ),
    "layer that did not move": (
        lambda: shift(moved={"a": make_params(0)["a"]}),
        ValueError,
        ["['b']", "['a']"],
    ),
    "moved of other shapes": (
        lambda: shift(moved={**make_params(1), "b": {"w": jnp.ones((3, 1))}}),
        ValueError,
        ["`moved`", "'b'", "(3, 1)", "(3, 3)"],
    ),
    "moved as a list": (lambda: shift(moved=[1]), TypeError, ["`moved`", "a list of 1"]),
    "params of integers": (
        lambda: diagnostics.landscape(lambda w: w.sum() * 1.0, jnp.arange(3), [0.1]),
        TypeError,
        ["params", "int32"],
    ),
    "landscape, swapped": (
        lambda: diagnostics.landscape(ONE, lambda w: w, [0.1]),
        TypeError,
        ["`loss`", "It goes first"],
    ),
    **{
        f"sizes of {sizes}": (
            lambda sizes=sizes: diagnostics.landscape(lambda w: w**2, ONE, sizes),
            error,
            ["`sizes`", "a list of numbers" if error is TypeError else "", "(0.01, 0.1)"],
        )
        for sizes, error in (
            (0.1, ValueError),
            ((), ValueError),
            ((0.1, 0.0), ValueError),
            ((-0.1,), ValueError),
            ("0.1", TypeError),
        )
    },
    # The table.
    "report as a number": (lambda: diagnostics.summarize(dead=0.5), TypeError, ["`dead`", "0.5"]),
    "report of arrays": (
        lambda: diagnostics.summarize(dead={"a": jnp.ones(3)}),
        TypeError,
        ["dead of a", "(3,)", "Reduce"],
    ),
    "report of words": (lambda: diagnostics.summarize(dead={"a": "no"}), TypeError, ["'no'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    for word in ["Expected", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"


def test_summary_inside_jit():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: diagnostics.summarize(dead={"a": x}))(ONE)


def test_traced_arguments():
    """Values that are not known are not checked, and nothing waits for them."""
    batches = jax.jit(diagnostics.effective_batches)(7, 0.9)
    np.testing.assert_allclose(batches, diagnostics.effective_batches(7, 0.9), rtol=1e-5)
    share = jax.jit(lambda t: diagnostics.saturation(jnp.ones(3), jax.nn.relu, threshold=t))(0.5)
    assert float(share) == 0
    seen = jax.jit(lambda s: diagnostics.landscape(lambda w: w**2, ONE, [s, 2 * s]))(0.1)
    np.testing.assert_allclose(seen.loss, [0.64, 0.36], rtol=1e-5)
