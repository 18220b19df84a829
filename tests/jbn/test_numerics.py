"""Exact whatever the mean: the normalized output against float64 of the same float32 x."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import DEVICES, MAPPED, MODES, compiled, need_devices, one_of, shard, spread
from strategies import values

import jbn
from benchmarks import traffic

# The bound that the design states for mean / std from 0 to 1e5, in standard deviations. Where
# |y| is above 1 (an outlier has sqrt(m - 1)) it is relative, as float32 itself is.
OUTPUT = 4e-6
# The variance is a mean of squares of deviations, each with a float32 rounding or two.
VARIANCE = 4e-6
EPS = 2**-23  # A rounding of float32.
# A float32 mean: half a unit in the last place is 6e-8 of its size, and momentum 0 adds nothing.
MEAN = 1.2e-7
# dx = rstd (g - mean(g) - xhat mean(g xhat)): each term is O(1) with xhat's error of 4e-6 and the
# error of a float32 mean; relative to max(1, |dx|) for a variance of 1.
DX = 1e-5
RATIOS = (0.0, 1.0, 1.4, 2.0, 5.0, 1e2, 1e3, 1e4, 1e5)
SHAPES = {"1024x64": (1024, 64), "8192x256": (8192, 256), "64x28x28x32": (64, 28, 28, 32)}


def draw(shape, ratio, seed=0, std=1.0):
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(ratio * std, std, shape), np.float32)


DY = draw((1024, 64), 0.0, seed=5)


@functools.partial(jax.jit, static_argnames="axis_name")
def step(x, mask=None, state=None, axis_name=None):
    params, cold = jbn.init(x.shape[-1])
    return jbn.batch_norm(
        x, params, state or cold, training=True, mask=mask, axis_name=axis_name, momentum=0.0
    )


def train(x, mask=None, state=None):
    """Call `step` in one program, whatever the state."""
    return step(x, mask, state or jbn.init(x.shape[-1])[1])


def with_gradient(function, x, dy):
    """Return (y, state) of `function(x)`, and what it pulls `dy` of y back to."""
    (y, state), pullback = jax.vjp(function, x)
    return y, state, pullback((dy, jax.tree.map(jnp.zeros_like, state)))[0]


def check_dx(dx, x, dy, mask=None):
    features = x.shape[-1]
    problem = oracles.Problem(x, None, None, np.zeros(features), np.ones(features), mask=mask)
    want = problem.gradient(oracles.exact(dy))["x"]
    there = np.broadcast_to(True if mask is None else mask > 0, x.shape)
    assert oracles.error(np.asarray(dx)[there], want[there]) <= DX


def check(y, x, mask=None, tolerance=OUTPUT):
    mean, var, _ = oracles.moments(x, mask=mask)
    want = oracles.normalize(x, mean, var)
    if mask is not None:
        there = np.broadcast_to(np.asarray(mask) > 0, x.shape)
        y, want = np.asarray(y)[there], want[there]
    worst = oracles.error(y, want)
    assert worst <= tolerance, f"error {worst:.3g} is above {tolerance:.3g}"


def check_state(state, x, mask=None):
    mean, var, _ = oracles.moments(x, mask=mask)
    var = var * oracles.bessel(oracles.effective_count(x.shape, mask=mask))
    np.testing.assert_allclose(state.mean, mean, rtol=MEAN, atol=VARIANCE * np.sqrt(var).max())
    np.testing.assert_allclose(state.var, var, rtol=VARIANCE, atol=1e-30)


def test_the_textbook_formulas_miss_the_bound():
    """The bound means something: E[x^2] - E[x]^2 and the two-pass mean are both above it."""

    @jax.jit
    def textbook(x):
        mean = jnp.mean(x, 0, keepdims=True)
        two_pass = jnp.mean((x - mean) ** 2, 0, keepdims=True)
        of_squares = jnp.abs(jnp.mean(x * x, 0, keepdims=True) - mean**2)
        return [(x - mean) / jnp.sqrt(var + 1e-5) for var in (two_pass, of_squares)]

    x = draw((1024, 64), 1e3)
    for y in textbook(x):
        with pytest.raises(AssertionError, match="is above"):
            check(y, x)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_one_device_from_the_first_step_on(shape, ratio):
    x = draw(SHAPES[shape], ratio)
    y, state = train(x)
    check(y, x)
    check_state(state, x)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("std", [1e-2, 30.0])
def test_other_scales(std, sign):
    for ratio in RATIOS:
        x = sign * draw((1024, 64), ratio, std=std)
        y, state = train(x)
        check(y, x)
        check_state(state, x)


def test_a_warm_state_changes_nothing():
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        for mean in (ratio, -ratio, 1e6):
            means, ones = np.full(64, mean, np.float32), np.ones(64, np.float32)
            state = jbn.BatchNormState(means, ones, np.int32(1000))
            check(train(x, state=state)[0], x)


@functools.cache
def over_devices(mode):
    """Return (x, dy) -> (y, state, dx) and (x, mask) -> (y, state), spread over eight devices."""
    if mode == "jit":
        gradient = jax.jit(functools.partial(with_gradient, step))
        return lambda *arrays: gradient(*shard(arrays)), lambda *arrays: train(*shard(arrays))

    def function(sharded, _):
        return step(*sharded, axis_name="d")

    nothing = (np.zeros(()),)
    mapped = spread(function, mode, replicated=True)
    masked = compiled(mapped, mode)
    gradient = compiled(lambda x, dy: with_gradient(lambda x: mapped((x,), nothing), x, dy), mode)

    def run(x, dy):
        y, state, dx = gradient(x, dy)
        return y, one_of(state, mode, replicated=True), dx

    def run_masked(x, mask):
        y, state = masked((x, mask), nothing)
        return y, one_of(state, mode, replicated=True)

    return run, run_masked


@pytest.mark.parametrize("mode", MODES)
def test_eight_devices(mode):
    run, _ = over_devices(mode)
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        y, state, _ = run(x, DY)
        check(y, x)
        check_state(state, x)


@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_with_different_means(mode):
    run, _ = over_devices(mode)
    device = np.arange(DEVICES, dtype=np.float32).repeat(1024 // DEVICES)[:, None]
    for ratio in RATIOS:
        for spread_of_means in (0.5, 1.0, 1e2, ratio):
            x = draw((1024, 64), ratio) + np.float32(spread_of_means) * device
            y, state, dx = run(x, DY)
            check(y, x)
            check_state(state, x)
            if spread_of_means == 0.5:
                check_dx(dx, x, DY)
    # One device far from the seven others.
    x = draw((1024, 64), 0.0) + np.float32(1e5) * (device == 5)
    check(run(x, DY)[0], x)


# Every mode and either kind, but not every pair: those are in `test_devices`, and a large mean
# changes nothing in how the devices are named.
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("vmap", "weights"),
        ("shard_map", "weights"),
        ("pmap", "boolean"),
        ("shard_map_unchecked", "boolean"),
        ("jit", "weights"),
    ],
)
def test_eight_devices_with_masks(mode, kind):
    _, run = over_devices(mode)
    for ratio in (0.0, 1e3, 1e5):
        x = draw((1024, 64), ratio)
        mask = make_mask((1024, 1), kind)
        mask[:128] = 0  # the first device has nothing
        dirty = np.where(mask > 0, x, np.float32(1e30))
        y, state = run(dirty, mask)
        check(y, x, mask)
        check_state(state, x, mask)


def make_mask(shape, kind, seed=1):
    rng = np.random.default_rng(seed)
    keep = rng.random(shape) < 0.7
    keep.reshape(-1)[0] = False  # a masked first row is no pivot
    return keep if kind == "boolean" else np.where(keep, rng.uniform(0.1, 3, shape), 0).astype("f4")


def test_under_vmap():
    """Several problems at once, each with its own mean."""
    x = np.stack([draw((512, 16), ratio, seed=i) for i, ratio in enumerate(RATIOS)])
    y, state = jax.device_get(jax.jit(jax.vmap(step))(x))
    for i in range(len(RATIOS)):
        check(y[i], x[i])
        check_state(jax.tree.map(lambda leaf, i=i: leaf[i], state), x[i])


@pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan])
@pytest.mark.parametrize("kind", ["boolean", "weights"])
def test_masks(kind, garbage):
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        for shape in ((1024, 1), (1024, 64)):
            mask = make_mask(shape, kind)
            dirty = np.where(mask > 0, x, np.float32(garbage))
            y, state = train(dirty, mask)
            check(y, x, mask)
            check_state(state, x, mask)


def assert_no_variance(var, size):
    """Assert 0 up to the square of a float32 rounding of the values themselves."""
    assert np.all((np.asarray(var) >= 0) & (np.asarray(var) <= (6e-8 * size) ** 2 * 1e-3))


def test_a_single_row_left_is_its_own_mean():
    x = draw((1024, 64), 1e5)
    mask = np.arange(1024)[:, None] == 40
    y, state = train(x, mask)
    np.testing.assert_allclose(np.asarray(y)[40], np.zeros(64), atol=OUTPUT)
    np.testing.assert_allclose(state.mean, x[40], rtol=MEAN)
    np.testing.assert_array_equal(state.var, np.ones(64))  # One value says nothing of it.
    assert_no_variance(jbn.moments(x, mask=mask).var, 1e5)


# Adversaries -----------------------------------------------------------------------------------


def adversary(name, ratio, shape=(1024, 64)):
    x = draw(shape, ratio)
    if name == "first row is an outlier":
        x[0] = ratio + 1e4
    elif name == "first row is far away":
        x[0] = -ratio - 1e6
    elif name == "last row is an outlier":
        x[-1] = ratio - 1e4
    elif name == "sparse":
        x[:] = ratio
        x[shape[0] // 3] += np.maximum(1, ratio)
    elif name == "sparse in the first row":
        x[:] = ratio
        x[0] += np.maximum(1, ratio)
    elif name == "means from 0 to the ratio":
        x += np.linspace(0, ratio, shape[-1], dtype=np.float32)
    elif name == "drift along the batch":
        x += np.linspace(0, ratio, shape[0], dtype=np.float32)[:, None]
    elif name == "two clusters":
        x[::2] += np.float32(ratio)
        x[1::2] -= np.float32(2 * ratio)
    elif name == "half the features constant":
        x[:, ::2] = ratio + 0.1
    return x


ADVERSARIES = (
    "first row is an outlier",
    "first row is far away",
    "last row is an outlier",
    "sparse",
    "sparse in the first row",
    "means from 0 to the ratio",
    "drift along the batch",
    "two clusters",
    "half the features constant",
)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries(name):
    for ratio in RATIOS:
        x = adversary(name, ratio)
        y, _ = train(x)
        check(y, x)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries_over_devices(name):
    """shard_map's device i holds rows i * 128 and on: outliers are on one device only."""
    run, _ = over_devices("shard_map")
    for ratio in RATIOS:
        x = adversary(name, ratio)
        check(run(x, DY)[0], x)


@pytest.mark.parametrize("rows", [2, 96, 1000, 4096])
def test_a_constant_feature_is_bias(rows):
    """Only epsilon stands between its rounding and the output: rsqrt(1e-5) = 316."""
    bias = np.array([1.0, -2.0, 0.5], np.float32)
    params = jbn.BatchNormParams(np.full(3, 0.7, np.float32), bias)
    _, state = jbn.init(3)

    @jax.jit
    def run(x):
        def loss(x):
            y, new = jbn.batch_norm(x, params, state, training=True, momentum=0.0)
            return jnp.sum(y**2), (y, new)

        gradient, (y, new) = jax.grad(loss, has_aux=True)(x)
        return y, new, gradient

    for value in (0.0, 1e-30, 0.1, -300.3, 12345.678, 1e5, 1e15):
        x = np.full((rows, 3), value, np.float32)
        y, new, gradient = run(x)
        assert np.isfinite(np.asarray(gradient)).all()
        assert np.isfinite(np.asarray(y)).all()
        assert np.isfinite(np.asarray(new.var)).all()
        np.testing.assert_allclose(new.mean, x[0], rtol=MEAN)
        if value <= 1e5:
            assert oracles.error(y, np.broadcast_to(bias, x.shape)) <= OUTPUT
            assert_no_variance(new.var, value)


def test_inference_at_a_large_running_mean():
    """Subtract the mean first: y = x a + b would be off by 4e-3 at 1e5."""
    for ratio in RATIOS:
        x = draw((256, 16), ratio)
        mean = np.full(16, ratio, np.float32) + np.linspace(0, 1, 16, dtype=np.float32)
        var = np.linspace(0.5, 2, 16, dtype=np.float32)
        y = jax.jit(jbn.normalize)(x, mean, var)
        assert oracles.error(y, oracles.normalize(x, mean, var)) <= OUTPUT


# What other platforms run ----------------------------------------------------------------------

# A row each, for jbn's own jit keeps what it traced for a shape; above `_center._sums.SAMPLE_FROM`.
ROWS = {"tpu": 1040, "cuda": 1056}


@contextlib.contextmanager
def compiled_as_for(platform, monkeypatch, expected=None):
    """Compile for this CPU what another platform runs."""
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
        # Cold, warm, some deviations off, and from another world: NaN, too.
        for mean in (0.0, ratio, ratio + 1.4, ratio - 3.0, 1e5 - ratio, 1e30, np.nan):
            y, state, dx = run(x, dy, mask, cold._replace(mean=np.full(16, mean, "f4")))
            check(y, x, mask)
            if np.isfinite(mean):  # At momentum 0.
                check_state(state, x, mask)
            check_dx(dx, x, dy, mask)
        for name in ADVERSARIES:
            if mask is None or "sparse" not in name:  # the one row may be masked
                x = adversary(name, ratio, shape)
                check(run(x, dy, mask, cold)[0], x, mask)


@pytest.mark.parametrize("platform", ["cpu", *ROWS])
def test_constants_are_the_bias_at_any_scale(platform, monkeypatch):
    """But for 1e9 to 1e16, where their rounding is more than the root of epsilon, and in range."""
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
    """Three in any place do not move a ninther; all nine do."""
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
    """No square overflows: in a row that no sample sees, and nine zeros say nothing of a scale."""
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
    """The nine that are sampled are equal: beside no epsilon of a user's are the others small."""
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
        # y is rounded to bfloat16: half a unit in the last place, of eight bits.
        np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8, atol=2**-9)
        check_state(state, exact)


def test_other_platforms_under_vmap(platform):
    """A branch is of all problems at once."""
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
    """Unequal masks, and a running mean on each device."""
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
    """On a TPU it is the pivot of all, and where it is near one sum of a few vectors is enough."""
    rows = DEVICES * 12
    mask = None if kind == "none" else make_mask((rows, 1), kind)
    if mask is not None:
        mask[: rows // DEVICES] = False  # A device has nothing.
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
    digits = 2 * 4  # Four of ten bits, and their squares.
    assert [size for _, size in found.collectives] == [4 * (16 * forward + digits), 64 * backward]
    assert found.in_other_branches
    for ratio in RATIOS:
        x = draw((rows, 16), ratio)
        for mean in (0.0, ratio, ratio + 1.4, ratio - 3.0, 1e5 - ratio, 1e30, np.nan):
            y, state, dx = program(x, dy, cold._replace(mean=jnp.full(16, mean)))
            check(y, x, mask)
            if np.isfinite(mean):  # At momentum 0.
                check_state(state, x, mask)
            check_dx(dx, x, dy, mask)


def test_copies_of_a_running_mean_that_differ(devices, monkeypatch):
    """As check_vma=False lets them: their type says that they are the same, a checksum that not."""
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
        for part in state.mean.addressable_shards:  # At momentum 0.
            check_state(state._replace(mean=part.data), x)


def test_devices_that_may_branch_apart_do_not_wait_for_each_other(devices, monkeypatch):
    """By an epsilon of its own each tells for itself whether squares are in range."""
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
    """Above 64 devices the payload is O(C); vmap has as many devices as one likes."""
    devices = 96
    mask = None if kind == "none" else make_mask((devices * 8, 1), kind)
    if mask is not None:
        mask[8:24] = 0  # two devices have nothing
    dy = draw((devices * 8, 16), 0.0, seed=5)
    if mask is not None:
        dy = np.where(mask > 0, dy, 0)  # garbage has a y, and that a derivative

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


# The gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_at_large_means(masked):
    mask = make_mask((1024, 1), "weights") if masked else None

    @jax.jit
    def pull(x, scale):
        params, state = jbn.init(64)
        _, pullback = jax.vjp(
            lambda x, scale: jbn.batch_norm(
                x, params._replace(scale=scale), state, training=True, mask=mask
            )[0],
            x,
            scale,
        )
        return pullback(DY)

    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    for ratio in RATIOS:
        x = draw((1024, 64), ratio)
        dx, dscale = pull(x, scale)
        want = oracles.Problem(
            x=oracles.exact(x),
            scale=oracles.exact(scale),
            bias=None,
            mean=np.zeros(64),
            var=np.ones(64),
            mask=mask,
        ).gradient(oracles.exact(DY))
        assert oracles.error(dx, want["x"]) <= DX
        # A sum over 1024 rows of O(1): its size is 32, its error that of its terms.
        assert np.abs(np.asarray(dscale) - want["scale"]).max() <= 32 * DX


def test_half_precision_statistics_at_a_large_mean():
    """float16 at mean 300 and bfloat16 at mean 100: statistics of the numbers that came."""
    for dtype, mean in (("float16", 300.0), ("bfloat16", 100.0)):
        x = values(6, (4096, 8), dtype, mean=mean)
        y, state = train(x)
        check_state(state, oracles.exact(x))
        assert y.dtype == dtype
        want_mean, want_var, _ = oracles.moments(x)
        want = oracles.normalize(x, want_mean, want_var)
        assert oracles.error(y, want) <= oracles.output_tolerance(dtype)


def test_float64_keeps_its_precision():
    with jax.enable_x64(True):
        x = np.random.default_rng(7).normal(1e8, 1, (256, 4))
        params, state = jbn.init(4)
        y, _ = jbn.batch_norm(x, params, state, training=True)
        assert y.dtype == jnp.float64
        mean = x.mean(0) + (x - x.mean(0)).mean(0)
        want = (x - mean) / np.sqrt(((x - mean) ** 2).mean(0) + 1e-5)
        # A mean of 1e8 is itself rounded to 1.5e-8 in the oracle, so y is known that well.
        assert oracles.error(y, want) <= 3e-8


def test_sums_do_not_overflow():
    """Squares of 1e19 are at float32's end; deviations of 1e15 around it are not."""
    x = draw((1024, 64), 1.0) * np.float32(1e15)
    y, state = train(x)
    check(y, x)
    assert np.isfinite(np.asarray(state.var)).all()
