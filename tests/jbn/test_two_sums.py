"""Pooling by two sums of O(C), which is used above 64 devices.

Here the limit is 2, and eight devices must still equal one: tests of test_devices.py,
test_devices_two_axes.py and test_numerics_devices.py run again on that path.
"""

import jax
import numpy as np
import pytest
import test_devices
import test_devices_two_axes
import test_numerics_devices
from meshes import DEVICES, MAPPED, compiled, gather_limit, spread

import jbn


@pytest.fixture(autouse=True, scope="module")
def two_sums():
    with gather_limit(2):
        yield


@pytest.mark.parametrize("mode", MAPPED)
def test_what_was_traced_by_another_limit_is_not_found(mode):
    def moments(x, whole):
        return x, jbn.moments(x, axis_name="d")

    run = compiled(spread(moments, mode, replicated=True), mode)
    x = np.zeros((2 * DEVICES, 3), np.float32)

    def program(limit):
        with gather_limit(limit):
            return str(jax.make_jaxpr(run)(x, (x,)))

    by_sums, by_gather = program(2), program(64)
    assert by_sums != by_gather
    assert by_sums == program(2)
    assert by_gather == program(64)


@pytest.mark.parametrize("kind", list(test_devices.KINDS))
@pytest.mark.parametrize("mode", MAPPED)
def test_two_sums_equal_one_device(mode, kind):
    """Values, state, all gradients; with unequal masks, an empty shard, nothing left, weights."""
    test_devices.test_eight_devices_equal_one(mode, kind)


@pytest.mark.parametrize(
    ("groups", "kind"),
    [("halves, shuffled", kind) for kind in test_devices.KINDS] + [("singles", "weights")],
)
@pytest.mark.parametrize("mode", MAPPED)
def test_two_sums_in_groups(mode, groups, kind):
    test_devices.test_groups_equal_one_device_for_each(mode, groups, kind)


@pytest.mark.parametrize("mode", MAPPED)
def test_two_sums_and_a_gradient_inside(mode):
    test_devices.test_gradient_taken_inside_the_mapped_function(mode)


@pytest.mark.parametrize("mode", MAPPED)
def test_two_sums_in_forward_mode_and_second_order(mode):
    test_devices.test_forward_mode_through_the_axis(mode)
    test_devices.test_second_order_through_the_axis(mode)


@pytest.mark.parametrize("named", ["a", "b, a"])
@pytest.mark.parametrize("mode", test_devices_two_axes.TWO)
def test_two_sums_over_two_axes(mode, named):
    test_devices_two_axes.test_one_or_both_of_two_axes(mode, named)


@pytest.mark.parametrize("mode", MAPPED)
def test_two_sums_at_large_means(mode):
    """Within 4e-6 up to mean/std 1e5, even if devices' means are 1e5 apart; gradients, too."""
    test_numerics_devices.test_eight_devices(mode)
    test_numerics_devices.test_eight_devices_with_different_means(mode)


@pytest.mark.parametrize("kind", ["boolean", "weights"])
@pytest.mark.parametrize("mode", MAPPED)
def test_two_sums_at_large_means_with_masks(mode, kind):
    test_numerics_devices.test_eight_devices_with_masks(mode, kind)


@pytest.mark.parametrize("name", list(test_numerics_devices.ADVERSARIES))
def test_two_sums_of_adversaries(name):
    test_numerics_devices.test_adversaries_over_devices(name)
