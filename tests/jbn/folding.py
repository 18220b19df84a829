"""Models to fold, with variables as after training, for the tests of `jbn.fold_model`."""

import jax
import numpy as np
from flax import nnx

import jbn
import jbn.linen
from jbn.models import MLP


def values(shape, seed=0):
    return jax.device_put(np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32))


def trained(tree, seed=1):
    """Return variables as after training: nothing is 0 or 1, and variances are positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put(rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)), tree
    )


def mlp(norm=jbn.linen.BatchNorm):
    model = MLP(hidden=(6, 5), norm=norm)
    x = values((8, 4))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False))
    return model, trained(shapes), x


class Net(nnx.Module):
    """Two layers and a norm, called by the function `order`."""

    def __init__(self, order, *, tie=False, axis=-1, use_running_average=True):
        rngs = nnx.Rngs(0)
        self.first, self.second = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
        if tie:
            self.first.kernel = self.second.kernel
        self.norm = nnx.BatchNorm(4, axis=axis, use_running_average=use_running_average, rngs=rngs)
        self.order = order

    def __call__(self, x):
        return self.order(self, x)
