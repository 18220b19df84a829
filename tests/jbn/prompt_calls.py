"""Every function and layer, called outside jit with or without its gradient."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

import jbn
import jbn.linen
from benchmarks.modes_spreads import DEVICES, mesh
from jbn import linen
from jbn.models import MLP


def batch(k):
    """Make the arrays and Python values of call k; they all differ between calls 0 and 1."""
    rng = np.random.default_rng(k)

    def normal(*shape):
        return jax.device_put(rng.normal(k, 1 + k, shape).astype(np.float32))

    number = [0.9, 0.8][k]
    return types.SimpleNamespace(
        x=normal(16, 6),
        images=normal(4, 3, 3, 6),
        shards=normal(DEVICES, 4, 6),
        params=jbn.BatchNormParams(normal(6), normal(6)),
        state=jbn.BatchNormState(normal(6), normal(6) ** 2, jnp.int32(k)),
        mask=jnp.asarray(rng.random((16, 1)) < 0.7),
        weights=jax.device_put(rng.random((16, 6)).astype(np.float32)),
        masks=jnp.asarray(rng.random((DEVICES, 4, 6)) < 0.7),
        kernel=normal(5, 6),
        momentum=jnp.float32(number),
        epsilon=jnp.float32(1e-3 * (k + 1)),
        number=number,
    )


def train(x, v, function=jbn.batch_norm, **options):
    return function(x, v.params, v.state, training=True, **options)


def mapped(x, v, transform, **options):
    """Call under a named axis, with a mask."""

    def body(x, mask, params, state):
        return jbn.batch_norm(x, params, state, training=True, mask=mask, axis_name="d", **options)

    return transform(body)(x, v.masks, v.params, v.state)


def vmapped(body):
    return jax.vmap(body, axis_name="d", in_axes=(0, 0, None, None))


def sharded(body):
    specs = (P("d"), P("d"), P(), P())
    return jax.shard_map(body, mesh=mesh(("d", DEVICES)), in_specs=specs, out_specs=(P("d"), P()))


def synchronized(x, v):
    local = jax.vmap(lambda x: jbn.batch_norm(x, v.params, v.state, training=True)[1])(x)
    return jax.vmap(lambda state: jbn.synchronize(state, axis_name="d"), axis_name="d")(local)


def schedule(count):
    return 0.9 * jnp.minimum(count, 10) / 10


ghost = functools.partial(train, function=jbn.ghost_batch_norm, batch_size=6)
renorm = functools.partial(train, function=jbn.batch_renorm)
GROUPS = [[0, 3, 5], [1, 2, 4, 6, 7]]
FUNCTIONS = {
    "batch_norm": train,
    "batch_norm of images": lambda x, v: train(v.images * x[0, 0], v),
    "batch_norm, numbers": lambda x, v: train(x, v, momentum=v.number, epsilon=1 - v.number),
    "batch_norm, arrays": lambda x, v: train(x, v, momentum=v.momentum, epsilon=v.epsilon),
    "batch_norm, cumulative": lambda x, v: train(x, v, momentum=jbn.cumulative),
    "batch_norm, debiased": lambda x, v: train(x, v, momentum=jbn.debiased(0.9)),
    "batch_norm, own schedule": lambda x, v: train(x, v, momentum=schedule),
    "batch_norm, mask": lambda x, v: train(x, v, mask=v.mask),
    "batch_norm, weights": lambda x, v: train(x, v, mask=v.weights),
    "batch_norm, bfloat16": lambda x, v: train(x.astype(jnp.bfloat16), v),
    "batch_norm, evaluation": lambda x, v: jbn.batch_norm(x, v.params, v.state, training=False),
    "batch_norm, vmap": lambda x, v: mapped(v.shards * x[0, 0], v, vmapped),
    "batch_norm, vmap of groups": lambda x, v: mapped(
        v.shards * x[0, 0], v, vmapped, axis_index_groups=GROUPS
    ),
    "batch_norm, shard_map": lambda x, v: mapped(v.shards * x[0, 0], v, sharded),
    "ghost_batch_norm": ghost,
    "ghost_batch_norm, weights": lambda x, v: ghost(x, v, mask=v.weights, momentum=v.number),
    "batch_renorm": lambda x, v: renorm(x, v, r_max=1 / v.number, d_max=v.number),
    "batch_renorm, arrays": lambda x, v: renorm(x, v, r_max=1 / v.momentum, d_max=v.momentum),
    "batch_renorm, schedule": lambda x, v: renorm(
        x, v, r_max=lambda count: 1 + schedule(count), d_max=schedule, momentum=jbn.cumulative
    ),
    "normalize": lambda x, v: jbn.normalize(x, v.state.mean, v.state.var, v.params),
    "normalize_with_example": lambda x, v: jbn.normalize_with_example(
        v.images * x[0, 0], v.state.mean, v.state.var, v.params, weight=v.number
    ),
    "moments": lambda x, v: jbn.moments(x),
    "moments, weights": lambda x, v: jbn.moments(x, mask=v.weights),
    "merge_moments": lambda x, v: jbn.merge_moments(jbn.moments(x[:8]), jbn.moments(x[8:])),
    "update": lambda x, v: jbn.update(v.state, jbn.moments(x), momentum=v.number),
    "synchronize": lambda x, v: synchronized(v.shards * x[0, 0], v),
    "layer_norm": lambda x, v: jbn.layer_norm(x, v.params, epsilon=1 - v.number),
    "group_norm": lambda x, v: jbn.group_norm(x, v.params, groups=2, epsilon=v.epsilon),
    "instance_norm": lambda x, v: jbn.instance_norm(v.images * x[0, 0], v.params),
    "weight_norm": lambda x, v: jbn.weight_norm(x, v.params.scale),
    "weight_norm_init": lambda x, v: jbn.weight_norm_init(v.kernel, x),
    "whiten": lambda x, v: jbn.whiten(x, groups=2, epsilon=1 - v.number),
    "whiten, cholesky": lambda x, v: jbn.whiten(x, epsilon=v.epsilon, method="cholesky"),
    "fold": lambda x, v: jbn.fold(v.kernel * x[0, 0], None, v.params, v.state),
}
LINEN = {
    "BatchNorm": lambda: jbn.linen.BatchNorm(use_running_average=False),
    "BatchNorm, evaluation": lambda: jbn.linen.BatchNorm(use_running_average=True),
    "BatchNorm, debiased": lambda: jbn.linen.BatchNorm(
        use_running_average=False, momentum=jbn.debiased(0.9)
    ),
    "GhostBatchNorm": lambda: linen.GhostBatchNorm(use_running_average=False, batch_size=6),
    "BatchRenorm": lambda: linen.BatchRenorm(use_running_average=False),
    "LayerNorm": linen.LayerNorm,
    "GroupNorm": lambda: linen.GroupNorm(groups=2),
    "InstanceNorm": linen.InstanceNorm,
    "MLP": lambda: Trained(MLP(hidden=(6, 6), norm=jbn.linen.BatchNorm)),
}
NNX = {
    "BatchNorm": {},
    "BatchNorm, evaluation": {"use_running_average": True},
    "BatchNorm, cumulative": {"momentum": jbn.cumulative},
}


class Trained(nn.Module):
    """A model in training mode."""

    model: nn.Module

    def __call__(self, x):
        return self.model(x, training=True)


def loss(outputs):
    """Sum all floating-point entries, each with a different factor."""
    return weighted_sum(
        [a for a in jax.tree.leaves(outputs) if jnp.issubdtype(a.dtype, jnp.floating)]
    )


@jax.jit
def weighted_sum(leaves):
    return sum((a.astype(jnp.float32) * factors(a.shape)).sum() for a in leaves)


def factors(shape):
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


def prompt(function, *arguments):
    return function(*arguments)


def run(name, v, gradient, how=prompt):
    """Call a function, or its gradient with respect to x and the parameters."""
    function = FUNCTIONS[name]
    if not gradient:
        return function(v.x, v)

    def loss_of_call(x, params):
        return loss(function(x, types.SimpleNamespace(**{**vars(v), "params": params})))

    return how(jax.value_and_grad(loss_of_call, (0, 1)), v.x, v.params)


def layer_input(name, v):
    """Return an input that the layer can normalize: instance norm needs positions."""
    return v.images if name == "InstanceNorm" else v.x


def run_linen(layer, variables, x, gradient, how=prompt):
    def loss_of_call(params):
        all_variables = {**variables, "params": params}
        y, moved = layer.apply(all_variables, x, mutable=["batch_stats"])
        return loss(y), (y, moved)

    if gradient:
        return how(jax.value_and_grad(loss_of_call, has_aux=True), variables["params"])
    return loss_of_call(variables["params"])[1]


def run_nnx(layer, x, gradient):
    if gradient:
        return nnx.value_and_grad(lambda layer: loss(layer(x)))(layer)
    return layer(x)
