"""Exactness of `fold_model`: factors near 1, norms that are kept, norms in containers."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from folding import trained, values

import jbn
import jbn.linen
import jbn.nnx


class Scaled(nn.Module):
    """A norm, a factor that bfloat16 still distinguishes from 1, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = jbn.linen.BatchNorm(use_running_average=True, dtype=jnp.bfloat16)(x)
        return nn.Dense(3)(0.97 * x.astype(jnp.float32))


def test_a_factor_near_one_is_no_mean_in_half_precision():
    x = jnp.ones((4, 5))
    variables = Scaled().init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="BatchNorm_0"):
        jbn.fold_model(Scaled(), x, variables=variables)


KEPT = {  # A kept norm may divide by more than 1; the layer compensates for it.
    "Flax": nn.BatchNorm,
    "jbn": jbn.linen.BatchNorm,
    "no scale": functools.partial(jbn.linen.BatchNorm, use_scale=False),
}


class OneNorm(nn.Module):
    """A norm after a dense layer without a bias, or before one."""

    norm: Any
    is_first: bool

    @nn.compact
    def __call__(self, x):
        norm = self.norm(use_running_average=True, name="norm")
        if self.is_first:
            return nn.Dense(3, name="dense")(norm(x))
        return norm(nn.Dense(3, use_bias=False, name="dense")(x))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("norm", KEPT)
def test_norms_that_are_kept_are_identities_for_any_epsilon(norm, is_first):
    for epsilon in (1.0, 10.0):
        model = OneNorm(functools.partial(KEPT[norm], epsilon=epsilon), is_first)
        x = values((8, 5))
        variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
        kept = jbn.fold_model(model, x, variables=variables, keep_norms=True)
        want = model.apply(variables, x)
        np.testing.assert_allclose(model.apply(kept, x), want, rtol=1e-5, atol=1e-5)
        assert (kept["batch_stats"]["norm"]["var"] >= 0).all()


def test_norms_that_are_kept_in_nnx_are_identities_for_any_epsilon():
    x, rngs = values((8, 5)), nnx.Rngs(0)
    norm = jbn.nnx.BatchNorm(3, epsilon=10.0, use_running_average=True, rngs=rngs)
    model = nnx.Sequential(nnx.Linear(5, 3, rngs=rngs), norm)
    nnx.update(model, trained(nnx.state(model)))
    kept = jbn.fold_model(model, x, keep_norms=True)
    np.testing.assert_allclose(kept(x), model(x), rtol=1e-5, atol=1e-5)


class Held(NamedTuple):
    """Layers by name."""

    first: Any
    norm: Any


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda layers: dict(enumerate(layers)),
    "named tuple": lambda layers: Held(*layers),
    "nested": lambda layers: [[layers[0]], {"norm": (layers[1],)}],
}


class InAContainer(nnx.Module):
    """Layers in a container that is not a module."""

    def __init__(self, container, rngs):
        norm = jbn.nnx.BatchNorm(5, use_running_average=True, rngs=rngs)
        self.layers = nnx.data(container([nnx.Linear(5, 5, rngs=rngs), norm]))

    def __call__(self, x):
        for layer in jax.tree.leaves(
            self.layers, is_leaf=lambda node: isinstance(node, nnx.Module)
        ):
            x = layer(x)
        return x


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_norm_is_replaced_in_its_container(container):
    model, x = InAContainer(CONTAINERS[container], nnx.Rngs(0)), values((4, 5))
    nnx.update(model, trained(nnx.state(model)))
    folded = jbn.fold_model(model, x)
    assert jax.tree.structure(folded.layers) != jax.tree.structure(model.layers)
    assert not [m for _, m in nnx.iter_modules(folded) if isinstance(m, jbn.nnx.BatchNorm)]
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_nested_list_is_an_array():
    model, x = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)]), values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    want = jbn.fold_model(model, x, variables=variables)
    got = jbn.fold_model(model, np.asarray(x).tolist(), variables=variables)
    jax.tree.map(np.testing.assert_array_equal, got, want)
