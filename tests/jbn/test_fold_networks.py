"""Whole networks folded: shaped like the network without norms, with the same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.models import BNInception, resnet50

# Rounding of 53 and 69 layers, relative to the largest output.
FOLDED = 1e-5

# name: (network, size of its images, number of batch norms)
NETWORKS = {"resnet50": (resnet50(norm="batch"), 32, 53), "BNInception": (BNInception(), 32, 69)}


def trained(tree):
    """Return variables as after training, chosen so that layers preserve the signal's size."""
    rng = np.random.default_rng(0)

    def one(leaf):
        if leaf.ndim == 1:  # Scales, biases, means, variances.
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(deviation * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(one, tree)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_norm_is_left(name):
    model, size, norms = NETWORKS[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, size, size, 3)), jnp.float32)
    variables = trained(jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False)))
    assert len(jax.tree.leaves(variables["batch_stats"])) == 2 * norms

    folded = jbn.fold_model(model, x, variables=variables, training=False)
    plain = model.copy(norm=None, use_bias=True)
    want = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, training=False))
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, want)
    got, want = (
        jax.jit(lambda v, model=model: model.apply(v, x, training=False))(v)
        for model, v in ((plain, folded), (model, variables))
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=FOLDED * np.abs(want).max())
