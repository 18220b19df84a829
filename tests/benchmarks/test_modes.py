"""The table of `benchmarks/modes.py`: each way to spread a batch equals one device.

`test_devices.py` compares the basic ways with float64. Here more ways, and all of their results,
are compared with jbn itself on one device.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import UNCACHED, own_environment
from jax.sharding import PartitionSpec as P

import jbn
from benchmarks import modes, modes_spreads, modes_steps
from benchmarks.modes import GROUPS, MASKS, TOLERANCE, WAYS, Way
from benchmarks.modes_spreads import IN_JIT, SPREADS
from benchmarks.modes_steps import EPSILON, MOMENTUM

FAR = 100 * TOLERANCE


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_equals_one_device(way, groups):
    for mask in MASKS:  # In one test, because boolean masks share a compilation.
        errors = modes.measure(way, mask, groups)
        if isinstance(errors, str):
            assert (way, groups) in MISSING
            continue
        assert set(errors) == compared(mask)
        over = {name: error for name, error in errors.items() if not error <= TOLERANCE}
        assert not over, f"{mask}: {over}"


# The only cells that are missing from the table.
MISSING = {
    *((way, "groups") for way in WAYS if way.startswith(IN_JIT)),
    *(("shard_map of vmap, over both", groups) for groups in GROUPS),
}


def compared(mask):
    new = {f"new {name}" for name in ("mean", "var", "count")}
    gradients = {f"d {name}" for name in ("x", "scale", "bias", "mean", "var")}
    gradients |= {"d mask"} if mask == "float weights" else set()
    return {"y"} | gradients | new | {f"copies of {name} that differ" for name in new}


def test_the_table_is_whole():
    assert set(WAYS) >= {
        "pmap",
        "shard_map",
        "shard_map unchecked",
        "vmap",
        "jit over sharded arrays",
        "pmap of scan",
        "shard_map of scan",
        "scan of shard_map",
        "shard_map of checkpoint",
        "shard_map of accumulation",
        "jit over sharded arrays of accumulation",
        "jit over sharded arrays, Explicit mesh",
        "jit over sharded arrays, Explicit mesh, features too",
        "jit over sharded arrays, Auto mesh",
        "jit over sharded arrays, Auto mesh, features too",
        "both of two axes, shard_map",
        "both of two axes, shard_map unchecked",
        "one of two axes, shard_map",
        "one of two axes, shard_map unchecked",
        "shard_map of vmap of models",
        "shard_map unchecked of vmap, over both",
    }
    assert set(MASKS) == {
        "no mask",
        "unequal counts",
        "one shard masked",
        "all masked",
        "float weights",
    }
    assert set(GROUPS) == {"no groups", "groups"}
    missing = {
        (way, groups)
        for way in WAYS
        for groups in GROUPS
        if isinstance(modes.missing(WAYS[way], groups), str)
    }
    assert missing == MISSING


def test_masks_are_what_they_are_called():
    counts = {}
    for name in MASKS:
        arguments, mask, _, _ = modes.inputs(name, 1, ())
        weights = arguments.get("mask", mask)
        if weights is not None:
            counts[name] = np.sum(modes_spreads.split(weights), (1, 2, 3, 4)).tolist()
    assert len(set(counts["unequal counts"])) > 4
    assert all(counts["unequal counts"])
    assert [count == 0 for count in counts["one shard masked"]] == [
        i == modes.EMPTY for i in range(modes_spreads.DEVICES)
    ]
    assert not any(counts["all masked"])
    assert len(set(counts["float weights"])) == modes_spreads.DEVICES


def test_one_device_equals_eight_that_share_a_running_mean_on_a_tpu(monkeypatch):
    """On a TPU, the running mean is everyone's pivot if `shard_map` knows that it is shared."""
    taken = []

    def take(*arguments, default, **platforms):
        taken.append(platforms.get("tpu", default))
        return taken[-1](*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", take)
    # A new axis name forces JAX to trace again.
    spread = modes_spreads.Spread(
        modes_spreads.by_shard_map(True, [("of a TPU", modes_spreads.DEVICES)]), "of a TPU"
    )
    monkeypatch.setitem(WAYS, "as on a TPU", Way(spread))
    for mask in MASKS:
        errors = modes.measure("as on a TPU", mask, "no groups")
        assert max(errors.values()) <= TOLERANCE, f"{mask}: {errors}"
    assert [branch.func.__name__ for branch in taken].count("_of_all") == 2  # No float weights.


# The table can fail --------------------------------------------------------------------------


def unweighted(name, groups):
    """Average the devices' means and mean squares without their counts, as Flax does."""

    def step(x, mask, params, state):
        weights = jnp.ones_like(x) if mask is None else mask.astype(x.dtype)
        n = jnp.maximum(jnp.sum(weights, (0, 1, 2)), 1)
        first, second = (jnp.sum(weights * value, (0, 1, 2)) / n for value in (x, x**2))
        mean, second = jax.lax.pmean((first, second), name)
        batch = jbn.Moments(mean, second - mean**2, jax.lax.psum(n, name))
        y = jbn.normalize(x, batch.mean, batch.var, params, epsilon=EPSILON)
        return y, jbn.update(state, batch, momentum=MOMENTUM)

    return step


def constant_statistics(name, groups):
    """Leave the statistics out of the gradient."""

    def step(x, mask, params, state):
        batch = jax.lax.stop_gradient(jbn.moments(x, mask=mask, axis_name=name))
        y = jbn.normalize(x, batch.mean, batch.var, params, epsilon=EPSILON)
        return y, jbn.update(state, batch, momentum=MOMENTUM)

    return step


def local_state(name, groups):
    """Normalize by all devices, but update each device's state by its own part."""

    def step(x, mask, params, state):
        y, _ = modes_steps.norm(name)(x, mask, params, state)
        return y, jbn.update(state, jbn.moments(x, mask=mask), momentum=MOMENTUM)

    return step


def moved_twice(name, groups):
    """Update the state twice, as a rematerialized forward pass might."""

    def step(x, mask, params, state):
        once = modes_steps.norm(name)
        return once(x, mask, params, once(x, mask, params, state)[1])

    return step


@pytest.mark.parametrize(
    ("wrong", "mask", "right_in", "wrong_in"),
    [
        (unweighted, "no mask", {"y", "d x", "new mean"}, set()),
        (unweighted, "unequal counts", {"new count"}, {"y", "d x", "d scale", "new mean"}),
        (unweighted, "one shard masked", {"new count"}, {"y", "d x", "d scale", "new mean"}),
        (constant_statistics, "no mask", {"y", "d scale", "new mean", "new var"}, {"d x"}),
        (local_state, "no mask", {"y", "new count"}, {"d x", "copies of new mean that differ"}),
        (moved_twice, "no mask", {"y"}, {"new mean", "new var", "new count"}),
    ],
)
def test_the_table_can_fail(monkeypatch, wrong, mask, right_in, wrong_in):
    monkeypatch.setitem(WAYS, "wrong", Way(SPREADS["shard_map unchecked"], wrong))
    errors = modes.measure("wrong", mask, "no groups")
    assert all(errors[name] <= TOLERANCE for name in right_in), errors
    assert all(errors[name] > FAR for name in wrong_in), errors


# Unsupported combinations ----------------------------------------------------------------------


def test_groups_in_jit_over_sharded_arrays_say_what_to_do():
    with pytest.raises(ValueError, match="2-D mesh"):
        jax.jit(modes_steps.norm(None, [[0, 1], [2, 3]]))(jnp.ones((8, 5)), None, *jbn.init(5))


@pytest.mark.parametrize("names", ["v", ("d", "v")])
def test_jax_has_no_psum_over_a_vmap_inside_shard_map_checked(names):
    """When this fails, JAX has fixed it: drop NOT_IN_JAX from the table."""

    def run(check):
        total = jax.vmap(lambda v: jax.lax.psum(v, names), axis_name="v")
        spread = jax.shard_map(
            total,
            mesh=modes_spreads.mesh(("d", 8)),
            in_specs=P("d"),
            out_specs=P("d"),
            check_vma=check,
        )
        return spread(jnp.arange(16.0))

    assert run(check=False).shape == (16,)
    with pytest.raises((ValueError, AssertionError)):  # For "v" alone, an assert inside JAX fails.
        run(check=True)


@pytest.mark.parametrize("names", ["v", ("d", "v")])
def test_a_vmap_inside_shard_map_checked_says_what_to_do(names):
    step = jax.vmap(modes_steps.norm(names), axis_name="v", in_axes=(1, None, None, None))
    spread = jax.shard_map(
        lambda x: step(x, None, *jbn.init(5))[0],
        mesh=modes_spreads.mesh(("d", 8)),
        in_specs=P("d"),
        out_specs=P(None, "d"),
    )
    with pytest.raises(ValueError, match="2-D mesh"):
        jax.eval_shape(spread, jnp.ones((16, 2, 5)))


# Report ----------------------------------------------------------------------------------------


def test_report(tmp_path, monkeypatch):
    """Runs in its own process, which makes its own eight devices."""
    env = {k: v for k, v in own_environment(**UNCACHED).items() if k != "JAX_PLATFORMS"}
    command = ["-m", "benchmarks.modes", "--preset", "smoke", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert IN_JIT in done.stdout
    result = json.loads((tmp_path / "modes.json").read_text())
    assert list(result["cells"]) == list(modes.SMOKE_WAYS)
    for cells in result["cells"].values():
        assert len(cells) == len(result["columns"]) == len(MASKS) * len(GROUPS)
    text = (tmp_path / "modes.md").read_text()
    assert "Tolerance: 2e-05" in text
    assert f"(1) {modes_spreads.NO_AXIS}." in text

    def measured(way, mask, groups):
        return result["cells"][way][mask if groups == "no groups" else f"{mask}; groups"]

    monkeypatch.setattr(modes, "measure", measured)
    monkeypatch.setattr(modes, "TOLERANCE", 1e-9)
    with pytest.raises(SystemExit, match="jit over sharded arrays, unequal counts"):
        modes.main(modes.Options(preset="smoke", output=tmp_path))
