"""Exact for any mean over eight devices, as on one, against float64."""

import functools

import jax
import numpy as np
import pytest
from large_means import (
    ADVERSARIES,
    DY,
    RATIOS,
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
from meshes import DEVICES, MODES, compiled, one_of, shard, spread


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
    # One device is far from the other seven.
    x = draw((1024, 64), 0.0) + np.float32(1e5) * (device == 5)
    check(run(x, DY)[0], x)


# Every mode and both kinds of masks, but not all pairs: `test_devices` has those, and a large mean
# does not affect how devices are named.
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


@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries_over_devices(name):
    """Device i of shard_map holds the rows from i * 128 on: outliers are on one device only."""
    run, _ = over_devices("shard_map")
    for ratio in RATIOS:
        x = adversary(name, ratio)
        check(run(x, DY)[0], x)
