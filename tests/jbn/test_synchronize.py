"""Pooling of local statistics: means, the spread between devices, and whether devices agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import DEVICES, MAPPED, compiled, gather_limit, mesh, one_of, spread
from oracles import F32_STATISTICS, assert_close, exact
from strategies import values

import jbn

C = 5
GROUPS = [[6, 0, 3], [1, 2, 4, 5, 7]]


def local_states(complex_mean=False):
    """Return one state per device, with means so far apart that their spread is most of var."""
    rng = np.random.default_rng(0)
    mean = rng.normal(10, 3, (DEVICES, C))
    if complex_mean:
        mean = mean + 1j * rng.normal(size=mean.shape)
    return jbn.BatchNormState(
        mean.astype(np.complex64 if complex_mean else np.float32),
        rng.uniform(0.5, 2, (DEVICES, C)).astype(np.float32),
        rng.integers(1, 9, DEVICES).astype(np.int32),
    )


def pooled(state, counts, members=slice(None)):
    """Pool in float64 over the devices in `members`."""
    mean, var = exact(state.mean)[members], exact(state.var)[members]
    n = np.broadcast_to(exact(counts).reshape(DEVICES, -1), (DEVICES, C))[members]
    total = n.sum(0)
    center = (n * mean).sum(0) / total
    spread = (n * (var + np.abs(mean - center) ** 2)).sum(0) / total
    return center, spread, int(np.asarray(state.count)[members].max())


def run(mode, function, *sharded, replicated=True):
    """Run `function(*parts) -> tree` on each device; return the tree, or one per device."""

    # Each device has one row, which split and shard_map leave as an axis of length 1.
    def body(parts, whole):
        parts = jax.tree.map(lambda leaf: leaf[0], parts)
        return jnp.zeros(1), function(*parts)

    mapped = spread(body, mode, replicated=replicated)
    _, out = jax.device_get(compiled(mapped, mode)(sharded, np.zeros(1, np.float32)))
    return one_of(out, mode, replicated=replicated)


def assert_pooled(got, want):
    for name, a, b in zip(("mean", "var", "count"), got, want, strict=True):
        # var is a sum of squares of means of size 10.
        assert_close(a, b, F32_STATISTICS, name)


@pytest.mark.parametrize("limit", [64, 2])
@pytest.mark.parametrize("mode", MAPPED)
def test_pools_means_and_their_spread(mode, limit):
    """Pool by a gather, or by two sums as above 64 devices; shard_map proves replication."""
    state = local_states()

    def function(state):
        return jbn.synchronize(state, axis_name="d")

    with gather_limit(limit):
        got = run(mode, function, state)
    assert_pooled(got, pooled(state, state.count))
    assert (exact(got.var) > exact(state.var).mean(0) + 1).all()  # An average omits the spread.
    for a, b in zip(got, state, strict=True):
        assert a.dtype == b.dtype


@pytest.mark.parametrize("mode", MAPPED)
def test_counts_weigh_devices(mode):
    """Counts are given as one number per device, one per feature, or as those of moments."""
    state = local_states()
    counts = np.random.default_rng(1).integers(0, 5, (DEVICES, C)).astype(np.float32)
    counts[2], counts[:, 3], counts[4, 3] = 0, 0, 2  # None on device 2; feature 3 only on device 4.

    def function(state, counts):
        ways = counts[0], counts, jbn.Moments(state.mean, state.var, counts)
        return [jbn.synchronize(state, way, axis_name="d") for way in ways]

    got = run(mode, function, state, counts)
    for found, weights in zip(got, (counts[:, 0], counts, counts), strict=True):
        assert_pooled(found, pooled(state, weights))


@pytest.mark.parametrize("mode", MAPPED)
def test_groups_pool_by_themselves(mode):
    state = local_states()

    def function(state):
        return jbn.synchronize(state, axis_name="d", axis_index_groups=GROUPS)

    got = run(mode, function, state, replicated=False)
    for members in GROUPS:
        want = pooled(state, state.count, members)
        for i in members:
            assert_pooled(jax.tree.map(lambda leaf, i=i: leaf[i], got), want)


def test_devices_without_weight():
    """A device that absorbed nothing has no weight; if none did, all have the same."""
    state = local_states()
    some = state._replace(count=np.where(np.isin(np.arange(DEVICES), [1, 5]), 0, state.count))
    none = state._replace(count=0 * state.count)

    def function(*states):
        return [jbn.synchronize(state, axis_name="d") for state in states]

    of_some, of_none = run("shard_map", function, some, none)
    assert_pooled(of_some, (*pooled(state, some.count)[:2], int(some.count.max())))
    assert_pooled(of_none, (*pooled(state, np.ones(DEVICES))[:2], 0))


@pytest.mark.parametrize("limit", [64, 2])
def test_a_negative_count_is_zero_and_nan_is_seen(limit):
    state = local_states()
    counts = np.array([[3], [-5], [2], [0], [1], [1], [-1], [4]], np.float32).repeat(C, 1)
    broken = counts.copy()
    broken[2, 1] = np.nan

    def function(state, *counts):
        return [jbn.synchronize(state, n, axis_name="d") for n in counts]

    with gather_limit(limit):
        got, seen = run("shard_map", function, state, counts, broken)
    assert_pooled(got, pooled(state, np.maximum(counts, 0)))
    assert np.isnan(seen.mean).tolist() == np.isnan(seen.var).tolist() == [i == 1 for i in range(C)]


@pytest.mark.parametrize("mode", MAPPED)
def test_local_training_then_pooled_is_the_whole_batch(mode):
    """One cumulative batch per device, with sizes that differ by mask, gives the moments of all."""
    device = np.arange(DEVICES, dtype=np.float32)[:, None, None]
    x = np.asarray(values(0, (DEVICES, 12, C), mean=3.0)) + device
    # At least two values, since one has no variance.
    mask = np.arange(12)[None, :, None] <= 1 + device
    _, state = jbn.init(C)

    def function(x, mask):
        batch = jbn.moments(x, mask=mask)
        local = jbn.update(state, batch, momentum=jbn.cumulative, unbiased=False)
        return jbn.synchronize(local, batch, axis_name="d")

    got = run(mode, function, x, mask)
    inside = exact(x)[mask[..., 0]]
    assert_pooled(got, (inside.mean(0), inside.var(0), 1))


def test_over_one_or_both_of_two_axes():
    state = local_states()
    for names, axes in ((("a", "b"), (0, 1)), ("a", (0,)), ("b", (1,))):
        spec = P(*(name for name in ("a", "b") if name not in names))

        def body(state, names=names, spec=spec):
            own = jax.tree.map(lambda leaf: leaf[0], state)
            new = jbn.synchronize(own, axis_name=names)
            return jax.tree.map(lambda leaf: leaf.reshape((1,) * len(spec) + leaf.shape), new)

        mapped = jax.shard_map(
            body, mesh=mesh(("a", 4), ("b", 2)), in_specs=P(("a", "b")), out_specs=spec
        )
        got = jax.device_get(jax.jit(mapped)(state))
        cells = np.arange(DEVICES).reshape(4, 2)
        rows = cells.reshape(-1, 1) if len(axes) == 2 else np.moveaxis(cells, axes[0], 0)
        for i in range(rows.shape[1]):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], got) if len(axes) == 1 else got
            assert_pooled(one, pooled(state, state.count, rows[:, i]))


def test_pytrees_flax_collections_and_complex_means():
    state, other = local_states(), local_states(complex_mean=True)
    plain = {"mean": state.mean, "var": state.var}
    tree = {"a": [state, other], "b": {"norm": plain}, "c": {"norm": state._asdict()}}
    got = run("shard_map", lambda tree: jbn.synchronize(tree, axis_name="d"), tree)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    assert_pooled(got["a"][0], pooled(state, state.count))
    assert_pooled(got["a"][1], pooled(other, other.count))
    assert_pooled(jbn.BatchNormState(**got["c"]["norm"]), pooled(state, state.count))
    alike = got["b"]["norm"]
    assert_pooled((alike["mean"], alike["var"], 0), (*pooled(state, np.ones(DEVICES))[:2], 0))


@pytest.mark.parametrize("mode", MAPPED)
def test_is_synchronized_inside(mode):
    state = local_states()
    broken = state._replace(mean=np.where(np.arange(C) == 1, np.float32(np.nan), state.mean))

    def function(state, broken):
        def agree(state, groups=None):
            return jbn.is_synchronized(state, axis_name="d", axis_index_groups=groups)

        return (
            agree(state),
            agree(jbn.synchronize(state, axis_name="d")),
            agree(jbn.synchronize(broken, axis_name="d")),
            agree(state, GROUPS),
            agree(jbn.synchronize(state, axis_name="d", axis_index_groups=GROUPS), GROUPS),
            agree(jbn.synchronize(state, axis_name="d", axis_index_groups=GROUPS)),
        )

    got = run(mode, function, state, broken)
    assert [bool(value) for value in got] == [False, True, True, False, True, False]


@pytest.mark.parametrize("leaf", ["mean", "var", "count"])
def test_one_value_on_one_device_is_enough_to_differ(leaf):
    _, state = jbn.init(C)
    stack = jax.tree.map(lambda a: np.stack([a] * DEVICES), state)
    agree = jax.vmap(lambda s: jbn.is_synchronized(s, axis_name="d"), axis_name="d")
    assert agree(stack).all()
    assert jbn.is_synchronized(stack, stacked=True) is True
    moved = getattr(stack, leaf).copy()
    moved[(7, *(0,) * (moved.ndim - 1))] += 1
    stack = stack._replace(**{leaf: moved})
    assert not agree(stack).any()
    assert jbn.is_synchronized(stack, stacked=True) is False


def test_copies_that_claim_to_be_replicated():
    """Without check_vma, out_specs=P() trusts any device's copy."""
    state = local_states()

    def local(state):
        return jax.tree.map(lambda leaf: leaf[0], state)

    def together(state):
        return jbn.synchronize(local(state), axis_name="d")

    for body, agree in ((local, False), (together, True)):
        mapped = jax.shard_map(
            body, mesh=mesh(("d", DEVICES)), in_specs=P("d"), out_specs=P(), check_vma=False
        )
        assert jbn.is_synchronized(jax.jit(mapped)(state)) is agree


def test_errors():
    _, state = jbn.init(C)
    stack = jax.tree.map(lambda a: jnp.stack([a] * 2), state)

    def over(function):
        return jax.vmap(function, axis_name="d")(stack)

    with pytest.raises(ValueError, match="axis_name"):
        jbn.synchronize(state, axis_name=None)
    with pytest.raises(ValueError, match="not"):
        jbn.synchronize(state, axis_name="d")
    with pytest.raises(ValueError, match=r"one per feature, got \(3,\)"):
        over(lambda s: jbn.synchronize(s, jnp.ones(3), axis_name="d"))
    with pytest.raises(TypeError, match="not the parameters"):
        over(lambda s: jbn.synchronize([s.mean], axis_name="d"))
    with pytest.raises(ValueError, match="exactly once"):
        over(lambda s: jbn.is_synchronized(s, axis_name="d", axis_index_groups=[[0]]))
