"""Layers that look like Flax's but compute something else: `fold_model` names them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from folding import trained, values

import jbn


class Custom(nn.Module):
    """A module that applies `body` to x."""

    body: object

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def norm():
    return nn.BatchNorm(use_running_average=True, name="norm")


def rounded(*args, **options):
    return jnp.round(jax.lax.dot_general(*args, **options))


def squared(*arrays, **options):
    return [array if array is None else array * array for array in arrays]


def squares(tree):
    return jax.tree.map(lambda leaf: leaf * leaf, tree)


def mapped(layer, collection):
    return nn.map_variables(layer, collection, squares, init=True)


OWN = {  # name: (what a model does, words in the message)
    "dot_general": (
        lambda x: norm()(nn.Dense(3, name="dense", dot_general=rounded)(x)),
        "norm: dense before it has a dot_general of its own",
    ),
    "class of dot_general": (
        lambda x: norm()(nn.Dense(3, name="dense", dot_general_cls=lambda: rounded)(x)),
        "norm: dense before it has a dot_general of its own",
    ),
    "promote_dtype": (
        lambda x: norm()(nn.Dense(3, name="dense", promote_dtype=squared)(x)),
        "norm: dense before it has a promote_dtype of its own",
    ),
    "scale mapped": (
        lambda x: mapped(nn.BatchNorm, "params")(use_running_average=True, name="norm")(
            nn.Dense(3)(x)
        ),
        "norm: has its variables changed or copied on the way",
    ),
    "statistics mapped": (
        lambda x: mapped(nn.BatchNorm, "batch_stats")(use_running_average=True, name="norm")(
            nn.Dense(3)(x)
        ),
        "norm: has its variables changed or copied on the way",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_arithmetic_of_its_own_is_named(name):
    body, words = OWN[name]
    model, x = Custom(body), values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    with pytest.raises(ValueError, match=words):
        jbn.fold_model(model, x, variables=variables)


@pytest.mark.parametrize(
    "option",
    [{"dot_general": rounded}, {"promote_dtype": lambda arrays, **options: squared(*arrays)}],
)
def test_arithmetic_of_its_own_in_nnx_is_named(option):
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs, **option), norm)
    with pytest.raises(ValueError, match=f"has a {next(iter(option))} of its own"):
        jbn.fold_model(model, values((8, 4)))


def test_jaxs_own_with_other_options_is_no_hindrance():
    precise = functools.partial(jax.lax.dot_general, precision=jax.lax.Precision.HIGHEST)
    model = Custom(lambda x: norm()(nn.Dense(3, name="dense", dot_general=precise)(x)))
    x = values((8, 4))
    variables = trained(jax.eval_shape(model.init, jax.random.key(0), x))
    folded = jbn.fold_model(model, x, variables=variables, keep_norms=True)
    want = model.apply(variables, x)
    np.testing.assert_allclose(model.apply(folded, x), want, rtol=1e-5, atol=1e-5)
