"""Code as users write it: type-checked by tests/jbn/test_types.py, but never run."""

from typing import assert_type

import jax
import jax.numpy as jnp
from flax import nnx

import jbn
import jbn.nnx

x = jnp.ones((8, 64))

params, state = jbn.init(64)
assert_type(params, jbn.BatchNormParams[jax.Array])
assert_type(state, jbn.BatchNormState)
params.scale.sum()
state.mean.sum()

y, moved = jbn.batch_norm(x, params, state, training=True)
assert_type(y, jax.Array)
assert_type(moved, jbn.BatchNormState)
moved.mean.sum()
y, none = jbn.batch_norm(x, params, None, training=True)
assert_type(none, None)
y, moved = jbn.ghost_batch_norm(x, params, state, training=True, batch_size=4)
y, moved = jbn.batch_renorm(x, params, state, training=True, r_max=3.0, d_max=5.0)
moved.var.sum()

without, _ = jbn.init(64, use_scale=False)
jbn.batch_norm(x, without, state, training=False)

moments = jbn.moments(x)
assert_type(moments, jbn.Moments | jbn.WeightedMoments)
assert_type(jbn.update(state, moments, momentum=jbn.cumulative), jbn.BatchNormState)
moments.mean.sum()

kernel, bias = jbn.fold(jnp.ones((8, 64)), None, params, state)
(kernel * bias).sum()

whitened, whitening = jbn.whiten(x)
assert_type(whitening, jbn.Whitening)
jbn.apply_whitening(x, whitening).sum()

layer = jbn.nnx.BatchNorm(64, rngs=nnx.Rngs(0))
assert_type(layer(x), jax.Array)
if layer.scale is not None:
    layer.scale[...].sum()
assert_type(jbn.nnx.population(lambda model, batch: model(batch), layer, [x]), nnx.State)
