"""Exact for any mean in the programs of other platforms, which guess the mean from a sample."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from large_means import (
    ADVERSARIES,
    OUTPUT,
    RATIOS,
    VARIANCE,
    adversary,
    check,
    check_dx,
    check_state,
    draw,
    make_mask,
    step,
    train,
    with_gradient,
)
from meshes import DEVICES, MAPPED, compiled, need_devices, shard, spread

import jbn
from experiments.training import traffic

EPS = 2**-23  # A rounding of float32.

# Rows per platform: different, since jbn's own jit caches traces by shape, and above
# `_center._sums.SAMPLE_FROM`.
ROWS = {"tpu": 1040, "cuda": 1056}


@contextlib.contextmanager
def compiled_as_for(platform, monkeypatch, expected=None):
    """Compile another platform's program for this CPU."""
    taken = []

    def take(*arguments, default, **platforms):
        branch = platforms.get(platform, default)
        taken.append(branch.func.__name__)
        return branch(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", take)
    yield
    assert set(taken) == {expected or ("about_guess" if platform == "tpu" else "_about_sample")}


@pytest.fixture(params=list(ROWS))
def platform(request, monkeypatch):
    with compiled_as_for(request.param, monkeypatch):
        yield request.param


PLATFORMS = pytest.mark.parametrize("platform", list(ROWS))


@functools.cache
def steps(platform, kind, dtype="float32"):
    """Return (x, dy, mask, state) -> (y, state, dx), compiled as for the platform."""

    def run(x, dy, mask, state):
        function = functools.partial(step, mask=mask, state=state)
        return with_gradient(function, x, dy)

    x = jax.ShapeDtypeStruct((ROWS[platform], 16), dtype)
    mask = None if kind == "none" else make_mask((ROWS[platform], 1), kind)
    with pytest.MonkeyPatch.context() as patch, compiled_as_for(platform, patch):
        return jax.jit(run).lower(x, x, mask, jbn.init(16)[1]).compile()


@PLATFORMS
@pytest.mark.parametrize("kind", ["none", "boolean", "weights"])
def test_other_platforms(platform, kind):
    shape = (ROWS[platform], 16)
    dy = draw(shape, 0.0, seed=5)
    mask = None if kind == "none" else make_mask((shape[0], 1), kind)
    run = steps(platform, kind)
    for ratio in RATIOS:
        x = draw(shape, ratio)
        cold = jbn.init(16)[1]
        # Cold, warm, a few standard deviations off, and far away, including NaN.
        for mean in (0.0, ratio, ratio + 1.4, ratio - 3.0, 1e5 - ratio, 1e30, np.nan):
            y, state, dx = run(x, dy, mask, cold._replace(mean=np.full(16, mean, "f4")))
            check(y, x, mask)
            if np.isfinite(mean):  # At momentum 0, the state is the batch's.
                check_state(state, x, mask)
            check_dx(dx, x, dy, mask)
        for name in ADVERSARIES:
            if mask is None or "sparse" not in name:  # its only outlier may be masked
                x = adversary(name, ratio, shape)
                check(run(x, dy, mask, cold)[0], x, mask)


@pytest.mark.parametrize("platform", ["cpu", *ROWS])
def test_constants_are_the_bias_at_any_scale(platform, monkeypatch):
    """Except from 1e9 to 1e16, where rounding exceeds the root of epsilon and is in range."""
    exponents = np.array([*range(-30, 9), *range(17, 38)])
    scales = np.concatenate([factor * 10.0**exponents for factor in (1.7, 2.9, 3.3333)])
    x = np.full((ROWS.get(platform, 64), scales.size), scales, np.float32)
    here = contextlib.nullcontext()
    with here if platform == "cpu" else compiled_as_for(platform, monkeypatch):
        y, state = jbn.batch_norm(x, *jbn.init(scales.size), training=True)
    assert np.abs(y).max() <= 0.1, scales[np.abs(y).max(0) > 0.1]
    assert np.isfinite(state.var).all()


@PLATFORMS
def test_other_platforms_with_outliers_among_the_sampled(platform):
    """Three outliers anywhere in the sample do not move its ninther; nine do."""
    shape = (ROWS[platform], 16)
    places = [int((i + i * 0.618 % 1) / 9 * shape[0]) for i in range(9)]
    dy = draw(shape, 0.0, seed=5)
    for ratio in (0.0, 1e3, 1e5):
        for rows in (places[:3], places[::3], places):
            x = draw(shape, ratio)
            x[rows] += np.float32(1e4)
            y, _, dx = steps(platform, "none")(x, dy, None, jbn.init(16)[1])
            moved = platform == "cuda" and len(rows) == 9
            check(y, x, tolerance=len(x) / 4 * EPS if moved else OUTPUT)
            if not moved:
                check_dx(dx, x, dy)


@PLATFORMS
@pytest.mark.parametrize("kind", ["none", "boolean"])
def test_other_platforms_with_values_far_beyond_the_sampled(platform, kind):
    """No square overflows, although the rows are not sampled and a sample of zeros has no scale."""
    shape = (ROWS[platform], 16)
    dy = draw(shape, 0.0, seed=5)
    mask = None if kind == "none" else make_mask((shape[0], 1), kind)
    for size in (1e10, 1e17, 1e19, 1e22, 1e25, 1e27):
        for x in (np.zeros(shape, np.float32), draw(shape, 0.0), draw(shape, 5.0, std=1e-3)):
            x[5::100] = np.float32(size)
            y, state, dx = steps(platform, kind)(x, dy, mask, jbn.init(16)[1])
            check(y, x, mask)
            check_dx(dx, x, dy, mask)
            _, var, n = oracles.moments(x, mask=mask)
            var = np.minimum(var * n / (n - 1), np.finfo(np.float32).max)
            np.testing.assert_allclose(state.var, var, rtol=VARIANCE)


def test_moments_of_few_small_values_among_zeros(monkeypatch):
    """The nine samples are equal, and no user's epsilon makes the other values negligible."""
    x = np.zeros((ROWS["cuda"] + 5, 16), np.float32)
    with compiled_as_for("cuda", monkeypatch):
        moments = jax.jit(jbn.moments).lower(x).compile()
    for size in (1e-9, 1e-7, 1e-3, 1e8, 1e17):
        x[5::100] = np.float32(size)
        np.testing.assert_allclose(moments(x).var, oracles.moments(x)[1], rtol=VARIANCE)


@PLATFORMS
def test_other_platforms_sample_what_is_not_masked(platform):
    shape = (ROWS[platform], 16)
    dy = draw(shape, 0.0, seed=5)
    for ratio in (0.0, 1e5):
        x = draw(shape, ratio)
        for kept in (slice(-40, None), slice(3, 4), slice(0, 9), slice(0)):
            mask = np.zeros((shape[0], 1), bool)
            mask[kept] = True
            for garbage in (np.nan, np.inf, 1e30, 0.0):
                dirty = np.where(mask, x, np.float32(garbage))
                wanted = np.where(mask, dy, 0)
                y, _, dx = steps(platform, "boolean")(dirty, wanted, mask, jbn.init(16)[1])
                assert np.isfinite(np.asarray(y)[mask[:, 0]]).all()
                assert np.isfinite(dx).all()
                if mask.sum() > 1:
                    check(y, dirty, mask)
                    check_dx(dx, dirty, wanted, mask)


@PLATFORMS
def test_other_platforms_in_half_precision(platform):
    shape = (ROWS[platform], 16)
    for ratio in (0.0, 1.4, 100.0):
        x = jnp.asarray(draw(shape, ratio), jnp.bfloat16)
        y, state, _ = steps(platform, "none", "bfloat16")(
            x, jnp.ones_like(x), None, jbn.init(16)[1]
        )
        exact = np.asarray(x, np.float64)
        want = oracles.normalize(exact, *oracles.moments(exact)[:2])
        # y is rounded to bfloat16: half a unit in the last of eight bits.
        np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8, atol=2**-9)
        check_state(state, exact)


def test_other_platforms_under_vmap(platform):
    """Under vmap, a branch is taken for all problems at once."""
    rows = ROWS[platform] + 3
    x = np.stack([draw((rows, 16), ratio, seed=i) for i, ratio in enumerate(RATIOS)])
    y, state = jax.device_get(jax.jit(jax.vmap(step))(x))
    for i in range(len(RATIOS)):
        check(y[i], x[i])
        check_state(jax.tree.map(lambda leaf, i=i: leaf[i], state), x[i])


@pytest.fixture
def devices():
    need_devices()


@pytest.mark.parametrize("spec", [("a", None), (None, "b"), ("a", "b")])
def test_other_platforms_on_an_explicit_mesh(devices, platform, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    for ratio in (0.0, 1e5):
        x = draw((2 * ROWS[platform], 16), ratio)
        with jax.sharding.set_mesh(mesh):
            y, state = train(jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec))))
        check(y, x)
        check_state(state, x)


@pytest.mark.parametrize("mode", MAPPED)
@PLATFORMS
def test_other_platforms_over_devices(monkeypatch, platform, mode):
    """Masks are unequal, and each device has its own running mean."""
    rows = DEVICES * (ROWS[platform] + 4 + MAPPED.index(mode))

    def function(sharded, _):
        x, mask, mean = sharded
        state = jbn.init(16)[1]._replace(mean=mean[0])
        return step(x, mask, state, axis_name="d")

    run = compiled(spread(function, mode, replicated=False), mode)
    masks = make_mask((rows, 1), "weights")
    masks[: rows // DEVICES] = 0
    means = np.arange(DEVICES, dtype=np.float32)[:, None] + np.zeros(16, np.float32)
    for ratio in (0.0, 1e3, 1e5):
        x = draw((rows, 16), ratio)
        with compiled_as_for(platform, monkeypatch) if not ratio else contextlib.nullcontext():
            y, state = run((x, masks, means + np.float32(ratio)), np.zeros(()))
        check(y, x, masks)
        check_state(jax.tree.map(lambda leaf: leaf[-1], state), x, masks)


@pytest.mark.parametrize("kind", ["none", "boolean"])
def test_devices_that_are_known_to_share_a_running_mean(devices, monkeypatch, kind):
    """On a TPU it is the pivot of all; if it is near, one sum of a few vectors is enough."""
    rows = DEVICES * 12
    mask = None if kind == "none" else make_mask((rows, 1), kind)
    if mask is not None:
        mask[: rows // DEVICES] = False  # One device has nothing.
    dy = draw((rows, 16), 0.0, seed=5)
    if mask is not None:
        dy = np.where(mask, dy, 0)

    def over_devices(x, state):
        def function(sharded, state):
            return step(*sharded, state, axis_name="d")

        return spread(function, "shard_map", replicated=True)((x, mask), state)

    def run(x, dy, state):
        return with_gradient(lambda x: over_devices(x, state), x, dy)

    x, cold = jax.ShapeDtypeStruct((rows, 16), "float32"), jbn.init(16)[1]
    with compiled_as_for("tpu", monkeypatch, "_of_all"):
        program = jax.jit(run).lower(x, x, cold).compile()
    found = traffic.traffic(program.as_text())
    forward, backward = 2 if mask is None else 3, 3
    digits = 2 * 4  # The checksum: four digits of ten bits, and their squares.
    assert [size for _, size in found.collectives] == [4 * (16 * forward + digits), 64 * backward]
    assert found.in_other_branches
    for ratio in RATIOS:
        x = draw((rows, 16), ratio)
        for mean in (0.0, ratio, ratio + 1.4, ratio - 3.0, 1e5 - ratio, 1e30, np.nan):
            y, state, dx = program(x, dy, cold._replace(mean=jnp.full(16, mean)))
            check(y, x, mask)
            if np.isfinite(mean):  # At momentum 0, the state is the batch's.
                check_state(state, x, mask)
            check_dx(dx, x, dy, mask)


def test_copies_of_a_running_mean_that_differ(devices, monkeypatch):
    """With check_vma=False, copies may differ despite their type: a checksum detects it."""
    x = draw((DEVICES * 13, 16), 1.0)

    def function(x, state):
        return step(x, None, state, axis_name="d")

    run = jax.jit(spread(function, "shard_map", replicated=True))
    cold = jbn.init(16)[1]
    with compiled_as_for("tpu", monkeypatch, "_of_all"):
        program = run.lower(x, cold).compile()
    replicated = shard(cold, replicate=True).mean.sharding
    one = np.zeros((DEVICES, 16))
    one[5, 3] = 1e-5
    each = np.arange(DEVICES)[:, None] * np.ones(16)
    for difference in (0 * one, one, each / 80, 1e3 * each):
        copies = map(jax.device_put, np.float32(1 + difference), replicated.mesh.devices)
        mean = jax.make_array_from_single_device_arrays((16,), replicated, list(copies))
        y, state = program(x, cold._replace(mean=mean))
        check(y, x)
        for part in state.mean.addressable_shards:  # At momentum 0, the batch's on all.
            check_state(state._replace(mean=part.data), x)


def test_devices_that_may_branch_apart_do_not_wait_for_each_other(devices, monkeypatch):
    """Each device decides by its own epsilon whether squares are in range."""
    params, state = jbn.init(16)
    x = draw((DEVICES * 14, 16), 0.0, std=1e-12)
    epsilons = np.float32([1e-5] * 4 + [1e-24] * 4)

    def function(sharded, _):
        x, epsilon = sharded
        y, _ = jbn.batch_norm(x, params, state, training=True, epsilon=epsilon[0], axis_name="d")
        return y, epsilon

    with compiled_as_for("tpu", monkeypatch):
        y, _ = jax.jit(spread(function, "shard_map", replicated=False))((x, epsilons), ())
    mean, var, _ = oracles.moments(x)
    want = (x - mean) / np.sqrt(var + np.float64(epsilons).repeat(14)[:, None])
    np.testing.assert_allclose(y, want, atol=OUTPUT)


@pytest.mark.parametrize("kind", ["none", "boolean", "weights"])
def test_more_devices_than_a_gather_is_good_for(kind):
    """Above 64 devices the payload is O(C); vmap can simulate any number of devices."""
    devices = 96
    mask = None if kind == "none" else make_mask((devices * 8, 1), kind)
    if mask is not None:
        mask[8:24] = 0  # two devices have nothing
    dy = draw((devices * 8, 16), 0.0, seed=5)
    if mask is not None:
        dy = np.where(mask > 0, dy, 0)  # the y of garbage has a derivative, too

    def parts(a):
        return None if a is None else a.reshape(devices, 8, *a.shape[1:])

    def mapped(x):
        over = jax.vmap(functools.partial(step, axis_name="d"), axis_name="d")
        y, state = over(parts(x), parts(mask))
        return y.reshape(x.shape), state

    run = jax.jit(functools.partial(with_gradient, mapped))

    device = np.arange(devices, dtype=np.float32).repeat(8)[:, None]
    for ratio in RATIOS:
        for spread_of_means in (0.0, 1.0, ratio):
            x = draw((devices * 8, 16), ratio) + np.float32(spread_of_means) * device
            dirty = x if mask is None else np.where(mask > 0, x, np.float32(1e30))
            y, state, dx = jax.device_get(run(dirty, dy))
            check(y, x, mask)
            for leaf in jax.tree.leaves(state):
                np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
            check_state(jax.tree.map(lambda leaf: leaf[0], state), x, mask)
            check_dx(dx, x, dy, mask)
