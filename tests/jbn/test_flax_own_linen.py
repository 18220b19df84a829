"""Flax's own test cases for linen's BatchNorm, run on Flax's layer and on ours.

They are rewritten from what the originals check, and each docstring names the case of Flax 0.12.8
(tests/...). Where it says "two examples", Flax trains on batches of one: its y is then just the
bias, but our layer raises, so these cases run with two. `test_batches_of_one` in
test_flax_own_nnx.py shows both behaviors.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

import jbn.linen

linen_layers = pytest.mark.parametrize("norm", [nn.BatchNorm, jbn.linen.BatchNorm])
allclose = np.testing.assert_allclose


def normal(*shape):
    return jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@linen_layers
@pytest.mark.parametrize(
    ("dtype", "masked"), [(jnp.float32, False), (jnp.float32, True), (jnp.complex64, True)]
)
def test_linen_statistics(norm, dtype, masked):
    """linen_test.py: test_batch_norm, test_batch_norm_complex."""
    rng = np.random.default_rng(0)
    x, mask, where = rng.normal(size=(4, 3, 2)).astype(dtype), None, True
    if dtype == jnp.complex64:
        x.imag = rng.normal(size=x.shape)
    if masked:
        mask = where = rng.integers(2, size=(4, 3, 1)).astype(bool)
        x = np.where(mask, x, np.nan)
    options = {"dtype": dtype} if dtype == jnp.complex64 else {}
    layer = norm(momentum=0.9, use_running_average=False, **options)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x, mask=mask)
    y = np.asarray(y)
    allclose(y.mean((0, 1), where=where), [0, 0], atol=1e-4)
    allclose(y.var((0, 1), where=where), [1, 1], rtol=1e-4)
    assert y.dtype == dtype
    apply = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))
    _, moved = apply(variables, x, mask=mask)
    stats = moved["batch_stats"]
    allclose(stats["mean"], 0.1 * x.mean((0, 1), where=where), atol=1e-4)
    allclose(stats["var"], 0.9 + 0.1 * x.var((0, 1), where=where), rtol=1e-4)


@linen_layers
def test_linen_called_twice_in_init(norm):
    """linen_test.py: test_batch_norm_multi_init."""

    class Foo(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = norm(name="norm", use_running_average=False, axis_name="batch")
            x = layer(x)
            return x, layer(x)

    x = normal(2, 4)
    (first, second), _ = jax.jit(Foo().init_with_output)(jax.random.key(0), x)
    allclose(first, second, rtol=0.005)


@linen_layers
def test_linen_vmap(norm):
    """linen_transforms_test.py: test_vmap_batchnorm."""

    class Model(nn.Module):
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x):
            return norm(axis_name=self.axis_name, use_running_average=False)(nn.Dense(3)(x))

    mapped = nn.vmap(
        Model,
        in_axes=(0,),
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        axis_name="batch",
    )
    x = normal(5, 4, 4)
    variables = jax.jit(Model().init)(jax.random.key(1), np.zeros((4, 4), np.float32))

    @jax.jit
    def both(x):
        want, _ = Model().apply(variables, x.reshape(-1, 4), mutable=["batch_stats"])
        return want, mapped(axis_name="batch").apply(variables, x, mutable=["batch_stats"])[0]

    want, got = both(x)
    allclose(got, want.reshape(5, 4, 3), atol=1e-5)


@linen_layers
def test_linen_bind(norm):
    """linen_module_test.py: test_bind_stateful. Two examples."""

    class Foo(nn.Module):
        def setup(self):
            self.a, self.norm, self.b = nn.Dense(3), norm(), nn.Dense(1)

    def forward(foo, x):
        return foo.b(foo.norm(foo.a(x), use_running_average=False))

    foo, x = Foo(), jnp.ones((2, 4))
    first, variables = nn.init_with_output(forward, foo)(jax.random.key(0), x)
    bound = foo.bind(variables, mutable="batch_stats")
    np.testing.assert_array_equal(forward(bound, x), first)
    again, moved = nn.apply(forward, foo, mutable="batch_stats")(variables, x)
    np.testing.assert_array_equal(again, first)
    want, got = (jax.tree.leaves(tree["batch_stats"]) for tree in (moved, bound.variables))
    jax.tree.map(allclose, got, want)


@linen_layers
def test_linen_mode_comes_first(norm):
    """checkpoints_test.py: the models of CheckpointsTest write BatchNorm(True)."""
    layer, x = norm(True), jnp.ones((2, 3))
    allclose(layer.apply(layer.init(jax.random.key(0), x), x), x, rtol=1e-4)


@linen_layers
def test_linen_tabulate(norm):
    """summary_test.py: test_tabulate."""
    table = norm(use_running_average=True).tabulate(jax.random.key(0), jnp.ones((2, 128)))
    assert "BatchNorm" in table
    assert "Total Parameters: 512" in table


@linen_layers
def test_linen_inside_nnx(norm):
    """nnx/bridge/wrappers_test.py: test_linen_to_nnx_submodule."""

    class Outer(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dense = nnx.Linear(4, 3, rngs=rngs)
            self.norm = bridge.ToNNX(norm(use_running_average=True), rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    x, model = normal(2, 4), Outer()
    bridge.lazy_init(model, x)
    graphdef, state = nnx.split(model)
    assert "norm" in state
    allclose(model(x), model.dense(x), rtol=1e-5)
    assert nnx.graphdef(model) == graphdef
