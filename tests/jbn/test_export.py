"""`jax.export` with a symbolic batch: one program for all batch sizes, equal to a direct call.

Programs to be served are exported this way; the number of examples is then a symbol.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import jbn.linen

C = 8
PARAMS, STATE = jbn.init(C)
WHITENING = jbn.whiten(jnp.asarray(np.random.default_rng(1).normal(size=(50, C)), jnp.float32))[1]
# Programs for one size and for any size differ by rounding; values and gradients are of order 1.
ATOL = 1e-5


def layer(module):
    def call(x):
        variables = {
            "params": PARAMS._asdict(),
            "batch_stats": {"mean": STATE.mean, "var": STATE.var},
        }
        return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    return call


def gradient(function):
    return jax.grad(lambda x: jnp.sum(function(x)[0] ** 3))


def batch_norm(x, state=STATE, training=True, **options):
    return jbn.batch_norm(x, PARAMS, state, training=training, **options)


def ghost(x, state=STATE, **options):
    return jbn.ghost_batch_norm(x, PARAMS, state, training=True, batch_size=4, **options)


FUNCTIONS = {
    "batch_norm": batch_norm,
    "batch_norm, inference": lambda x: batch_norm(x, training=False),
    "batch_norm, mask": lambda x: batch_norm(x, mask=x[..., :1] > 0),
    "batch_norm, weights": lambda x: batch_norm(x, mask=jnp.abs(x[..., :1])),
    "batch_norm, no state": lambda x: batch_norm(x, None),
    "batch_norm, gradient": gradient(batch_norm),
    "ghost_batch_norm": ghost,
    "ghost_batch_norm, mask": lambda x: ghost(x, mask=x[..., :1] > 0),
    "ghost_batch_norm, no state": lambda x: ghost(x, None),
    "ghost_batch_norm, gradient": gradient(ghost),
    "batch_renorm": lambda x: jbn.batch_renorm(
        x, PARAMS, STATE, training=True, r_max=3.0, d_max=5.0
    ),
    "moments": jbn.moments,
    "normalize": lambda x: jbn.normalize(x, STATE.mean, STATE.var),
    "normalize_with_example": lambda x: jbn.normalize_with_example(
        x, STATE.mean, STATE.var, weight=0.5
    ),
    "layer_norm": jbn.layer_norm,
    "group_norm": lambda x: jbn.group_norm(x, groups=2),
    "instance_norm": jbn.instance_norm,
    "whiten": jbn.whiten,
    "whiten, gradient": gradient(jbn.whiten),
    "whiten, cholesky": lambda x: jbn.whiten(x, groups=2, method="cholesky"),
    "apply_whitening": lambda x: jbn.apply_whitening(x, WHITENING),
    "linen.BatchNorm": layer(jbn.linen.BatchNorm()),
    "linen.GhostBatchNorm": layer(jbn.linen.GhostBatchNorm(batch_size=4)),
    "linen.BatchRenorm": layer(jbn.linen.BatchRenorm()),
    "linen.LayerNorm": layer(jbn.linen.LayerNorm()),
    "linen.GroupNorm": layer(jbn.linen.GroupNorm(groups=2)),
    "linen.InstanceNorm": layer(jbn.linen.InstanceNorm()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_program_for_every_batch_size(name):
    function = jax.jit(FUNCTIONS[name])
    shape = jax.export.symbolic_shape(f"b, 3, {C}")
    exported = jax.export.export(function)(jax.ShapeDtypeStruct(shape, jnp.float32))
    # The program knows no size, so one is enough, except that ghost batches may leave a remainder.
    for examples in (12, 15) if name in ("ghost_batch_norm", "ghost_batch_norm, mask") else (15,):
        x = np.random.default_rng(0).normal(size=(examples, 3, C)).astype(np.float32)
        found, expected = jax.tree.leaves(exported.call(x)), jax.tree.leaves(function(x))
        for a, b in zip(found, expected, strict=True):
            # The programs sum in different orders: for gradients near 16, 1e-5 is ten roundings.
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=ATOL)


def test_one_value_of_a_batch_of_any_size_leaves_the_variance():
    """With a known size, one value is an error; here the size is known only at run time."""
    (size,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((size, C), jnp.float32)
    _, state = jax.export.export(jax.jit(batch_norm))(x).call(np.full((1, C), 2, np.float32))
    np.testing.assert_array_equal(state.var, STATE.var)
    np.testing.assert_allclose(state.mean, 0.01 * 2, rtol=1e-6)
