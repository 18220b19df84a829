"""Batch normalization by statistics other than the whole batch's: ghost batches, renorm, blends.

Each is `batch_norm` with other vectors: y = (deviation * per_unit) * a + b about the pivot of
`_center`, so all keep its precision and its one array for the backward pass.

Two more need no function of their own. *Frozen* statistics:
`jbn.normalize(x, state.mean, state.var, params)`, with gradients for x, params and, if requested,
mean and var, but not through these to a batch. *Batch and running statistics pooled*, the running
ones with the weight of `k` values (Schneider et al., "Improving robustness against common
corruptions by covariate shift adaptation", 2020):

  >>> import jax.numpy as jnp, jbn
  >>> params, state = jbn.init(1)
  >>> x, k = jnp.array([[2.0], [6.0]]), 2.0
  >>> running = jbn.Moments(state.mean, state.var, jnp.full_like(state.var, k))
  >>> both = jbn.merge_moments(jbn.moments(x), running)
  >>> y = jbn.normalize(x, both.mean, both.var, params)
  >>> float(both.mean[0]), float(both.var[0])
  (2.0, 6.5)
"""

from jbn._variants._example import normalize_with_example as normalize_with_example
from jbn._variants._ghost import ghost_batch_norm as ghost_batch_norm
from jbn._variants._renorm import Limit as Limit
from jbn._variants._renorm import batch_renorm as batch_renorm
from jbn._variants._renorm import check_limit as check_limit
