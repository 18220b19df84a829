"""Diagnostics against float64 NumPy, finite differences and known fractions."""

import io

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from diagnosed import X, loss, make_params, single

import jbn
from jbn import diagnostics

RNG = np.random.default_rng(0)


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
    """The gap of a running mean that is off by 3 stds is 3, even with a mean of 1,000 stds."""
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
    """A state that a checkpoint restored as a dict uses its own count, too."""
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
    """On a mesh with explicit axes, JAX does not sort along a sharded axis."""
    made = jax.make_mesh((4, 2), ("b", "m"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    x = single(np.random.default_rng(0).normal(size=(8, 3, 6)))
    want = diagnostics.percentiles(x)
    with jax.sharding.set_mesh(made):
        placed = jax.device_put(x, jax.NamedSharding(made, jax.P("b", None, "m")))
        got = diagnostics.percentiles(placed)
    np.testing.assert_array_equal(got, want)


def test_landscape_of_a_quadratic():
    """For the loss w H w / 2, the smoothness along the gradient is |H g| / |g| at any step size."""
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
