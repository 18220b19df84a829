"""Every function and layer with JAX in strict modes: no implicit promotion, no intermediate NaN.

Values are bitwise those of the lenient mode, since the programs are the same. `jax_debug_nans`
looks for NaN in every result of a compiled function.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
import jbn.linen
import jbn.nnx
from jbn import linen

SHAPE = (8, 3, 4)
# Two programs of one function; if a variance is 0, 1 / sqrt(epsilon) magnifies their rounding.
REORDERED = 5e-5
COMPLEX = ("batch_norm", "ghost_batch_norm", "moments", "axis_name")
# tests/conftest.py runs the tests of these in both modes, mostly outside jit.
CORE = ("batch_norm", "moments", "linen.BatchNorm", "nnx.BatchNorm", "inference", "normalize",
        "layer_norm", "group_norm", "instance_norm", "weight_norm", "update",
        "merge_moments")  # fmt: skip

KEPT = (np.arange(8) % 3 > 0)[:, None, None]
# Masks of the same shape and dtype share a program.
MASKS = {
    "none": (None,),
    "boolean": (np.repeat(KEPT, 3, 1), np.arange(24).reshape(8, 3, 1) == 7),
    "weights": (np.float32(KEPT * np.linspace(0.1, 2, 8)[:, None, None]), np.zeros_like(KEPT, "f")),
}


def draw(dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, SHAPE), dtype)


def make_masks(kind):
    return tuple(m if m is None else jnp.asarray(m) for m in MASKS[kind])


def trained(function, **options):
    def call(x, params, state, mask):
        keywords = {} if mask is None else {"mask": mask}
        return function(x, params, state, training=True, **options, **keywords)

    return call


def layer(make):
    def call(x, params, state, mask):
        module = make()
        variables = {"params": params._asdict(), "batch_stats": state._asdict()}
        # Initialization is not differentiated.
        module.init(jax.random.key(0), jax.lax.stop_gradient(x), mask=mask)
        return module.apply(variables, x, mask=mask, mutable=["batch_stats"])

    return call


def of_nnx(x, params, state, mask):
    module = jbn.nnx.BatchNorm(4, momentum=jbn.cumulative, rngs=nnx.Rngs(0))
    return module(x, mask=mask), module.mean[...], module.var[...], module.count[...]


def over_names(x, params, state, mask):
    def each(x, mask):
        return jbn.batch_norm(x, params, state, training=True, mask=mask, axis_name="d")

    split = (x.reshape(4, 2, 3, 4), None if mask is None else mask.reshape(4, 2, *mask.shape[1:]))
    return jax.vmap(each, axis_name="d", in_axes=(0, None if mask is None else 0))(*split)


def population(x, params, state, mask):
    def step(state, x):
        return jbn.batch_norm(x, params, state, training=True, mask=mask)[1]

    return jbn.population(step, state, [x, x])


FUNCTIONS = {
    "batch_norm": trained(jbn.batch_norm),
    "batch_norm, schedule": trained(jbn.batch_norm, momentum=jbn.debiased(0.9)),
    "ghost_batch_norm": trained(jbn.ghost_batch_norm, batch_size=3),
    "batch_renorm": trained(jbn.batch_renorm, r_max=jnp.float32(3), d_max=5.0),
    "moments": lambda x, params, state, mask: jbn.moments(x, mask=mask),
    "axis_name": over_names,
    "population": population,
    "linen.BatchNorm": layer(lambda: jbn.linen.BatchNorm(use_running_average=False)),
    "linen, schedule": layer(
        lambda: jbn.linen.BatchNorm(use_running_average=False, momentum=jbn.cumulative)
    ),
    "linen GhostBatchNorm": layer(
        lambda: linen.GhostBatchNorm(use_running_average=False, batch_size=3)
    ),
    "linen BatchRenorm": layer(
        lambda: linen.BatchRenorm(use_running_average=False, warmup_steps=2)
    ),
    "nnx.BatchNorm": of_nnx,
}
WITHOUT_MASK = {
    "inference": lambda x, p, s: jbn.batch_norm(x, p, s, training=False),
    "no state": lambda x, p, s: jbn.batch_norm(x, p, None, training=True),
    "normalize": lambda x, p, s: jbn.normalize(x, s.mean, s.var, p),
    "normalize_with_example": lambda x, p, s: jbn.normalize_with_example(
        x, s.mean, s.var, p, weight=0.5
    ),
    "layer_norm": lambda x, p, s: jbn.layer_norm(x, p),
    "group_norm": lambda x, p, s: jbn.group_norm(x, p, groups=2),
    "instance_norm": lambda x, p, s: jbn.instance_norm(x, p),
    "weight_norm": lambda x, p, s: jbn.weight_norm(x, p.scale),
    "weight_norm_init": lambda x, p, s: jbn.weight_norm_init(x, x),
    "whiten": lambda x, p, s: jbn.apply_whitening(x, jbn.whiten(x)[1]),
    "whiten by cholesky": lambda x, p, s: jbn.whiten(x, method="cholesky"),
    "merge_moments": lambda x, p, s: jbn.merge_moments(
        jbn.moments(x), jbn.moments(x, mask=jnp.ones((1, 1, 1)))
    ),
    "update": lambda x, p, s: jbn.update(s, jbn.moments(x), momentum=jbn.cumulative),
    "synchronize": lambda x, p, s: jax.jit(
        jax.vmap(lambda m: jbn.synchronize(s._replace(mean=m), axis_name="d"), axis_name="d")
    )(jnp.stack([s.mean, s.mean])),
    "fold": lambda x, p, s: jbn.fold(x, None, p, s),
    "moving_average": lambda x, p, s: jbn.moving_average(x, window=2),
}


def check(name, call, dtype, masks=(None,)):
    """Look for promotion and NaN in values and gradients by x and params, jitted and eager."""
    x, (params, state) = draw(dtype), jbn.init(4)
    if dtype == "complex64":
        state = state._replace(mean=state.mean.astype(dtype))

    def loss(x, params, mask):
        out = call(x, params, state, mask)
        leaves = [a for a in jax.tree.leaves(out) if jnp.issubdtype(a.dtype, jnp.inexact)]
        parts = [p for a in leaves for p in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
        floats = jnp.concatenate([part.astype(jnp.float32).reshape(-1) for part in parts])
        return jnp.sum(jnp.sin(floats)), out

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    with jax.numpy_dtype_promotion("strict"):
        strict = jax.jit(gradient).trace(x, params, masks[0])
    # Identical programs have identical values, so only one of them is compiled.
    assert str(strict.jaxpr) == str(jax.make_jaxpr(gradient)(x, params, masks[0]))
    compiled = strict.lower().compile()
    for mask in masks:
        with jax.debug_nans(True):
            want = compiled(x, params, mask)[1]
        # Outside jit, Python numbers are passed as arrays whatever the dtype of x, and the results
        # of one program are inputs of the next. The tests of the core are strict themselves.
        if dtype == "float32" and name not in CORE:
            with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
                got = call(x, params, state, mask)
            chex.assert_trees_all_equal_dtypes(got, want)
            chex.assert_trees_all_close(got, want, rtol=REORDERED, atol=REORDERED)


def tried():
    """List name, mask and dtype; for complex x, weights cover what a boolean mask would test."""
    for name in FUNCTIONS:
        for kind in MASKS:
            yield name, kind, "float32"
            yield name, kind, "bfloat16"
            if kind != "boolean" and name in COMPLEX:
                yield name, kind, "complex64"


@pytest.mark.parametrize(("name", "kind", "dtype"), list(tried()))
def test_functions_with_masks(name, kind, dtype):
    check(name, FUNCTIONS[name], dtype, make_masks(kind))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("name", WITHOUT_MASK)
def test_functions_without_masks(name, dtype):
    if dtype == "complex64" and name.startswith("whiten"):
        pytest.skip("real alone")
    check(name, lambda x, params, state, mask: WITHOUT_MASK[name](x, params, state), dtype)


# Nothing to normalize ----------------------------------------------------------------------------


def test_norms_of_examples_take_an_empty_batch():
    params, _ = jbn.init(4)
    x = jnp.zeros((0, 3, 4))
    assert jbn.layer_norm(x, params).shape == x.shape
    assert jbn.group_norm(x, params, groups=2).shape == x.shape
    assert jbn.instance_norm(x, params).shape == x.shape
    for make in (linen.LayerNorm, linen.InstanceNorm):
        variables = make().init(jax.random.key(0), jnp.zeros((2, 3, 4)))
        assert make().apply(variables, x).shape == x.shape


def test_without_a_state_a_mask_that_leaves_nothing_takes_a_fresh_one():
    params, state = jbn.init(4)
    x, mask = draw("float32"), jnp.zeros((8, 3, 1), bool)
    y, none = jbn.batch_norm(x, params, None, training=True, mask=mask)
    assert none is None
    np.testing.assert_array_equal(y, jbn.batch_norm(x, params, state, training=True, mask=mask)[0])
    mask = make_masks("weights")[0]
    y, _ = jbn.ghost_batch_norm(x, params, None, training=True, mask=mask, batch_size=3)
    want, _ = jbn.ghost_batch_norm(x, params, state, training=True, mask=mask, batch_size=3)
    np.testing.assert_array_equal(y, want)


def test_weight_norm_init_of_nothing_is_finite():
    scale, bias = jbn.weight_norm_init(jnp.zeros((3, 4)), jnp.zeros((8, 4)))
    np.testing.assert_allclose(scale, np.full(4, 1e-5**-0.5), rtol=1e-6)
    np.testing.assert_array_equal(bias, np.zeros(4))
