"""The calls that `benchmarks/eager.py` times: operations of jbn, Flax, Haiku, Equinox and torch."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

import jbn
import jbn.linen
import jbn.nnx
from benchmarks.modes_spreads import DEVICES, mesh
from jbn.models import MLP

ROWS, FEATURES, GROUPS, BATCHES = 256, 64, 32, 8
POSITIONS = 16  # Positions of an example, for instance norm.
Call = Callable[[], Any]
# Operation -> way -> call; the timer waits for its result.
Calls = dict[str, dict[str, Call]]


def normal(seed: int, *shape: int) -> jax.Array:
    """Draw N(1, 1)."""
    return 1 + jax.random.normal(jax.random.key(seed), shape)


def gradient(function: Callable[..., Any], *arguments: Any) -> Call:
    """Make value_and_grad of sum(y * cotangent) with respect to all arguments."""
    cotangent = normal(9, *jax.eval_shape(function, *arguments).shape)
    by = tuple(range(len(arguments)))
    return lambda: jax.value_and_grad(lambda *a: (function(*a) * cotangent).sum(), by)(*arguments)


# ---- Ours ----------------------------------------------------------------------------------------


def jbn_calls() -> Calls:
    """Return calls of jbn's functions."""
    x, images = normal(0, ROWS, FEATURES), normal(1, ROWS // POSITIONS, POSITIONS, FEATURES)
    params, state = jbn.init(FEATURES)
    mask = jnp.arange(ROWS)[:, None] < ROWS - 20
    moments, batches = jbn.moments(x), normal(2, BATCHES, ROWS, FEATURES)
    schedule = jbn.debiased(0.9)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), state)

    def train(x: Any, params: Any = params, **options: Any) -> Any:
        return jbn.batch_norm(x, params, state, training=True, **options)

    def population_step(state: Any, x: Any) -> Any:
        return jbn.batch_norm(x, params, state, training=True)[1]

    limits: dict[str, Any] = {"training": True, "r_max": 3.0, "d_max": 5.0}
    functions: dict[str, Call] = {
        "batch_norm, training": lambda: train(x),
        "batch_norm, gradient": gradient(lambda x, params: train(x, params)[0], x, params),
        "batch_norm, evaluation": lambda: jbn.batch_norm(x, params, state, training=False),
        "batch_norm, mask": lambda: train(x, mask=mask),
        "batch_norm, schedule": lambda: train(x, momentum=schedule),
        "batch_norm, vmap": lambda: vmapped(functools.partial(train, axis_name="d"))(split(x)),
        "batch_norm, shard_map": lambda: sharded(functools.partial(train, axis_name="d"))(split(x)),
        "normalize": lambda: jbn.normalize(x, state.mean, state.var, params),
        "moments": lambda: jbn.moments(x),
        "update": lambda: jbn.update(state, moments, momentum=0.9),
        "synchronize, vmap": lambda: vmapped(functools.partial(jbn.synchronize, axis_name="d"))(
            states
        ),
        "population of 8 batches": lambda: jbn.population(population_step, state, batches),
        "ghost_batch_norm": lambda: jbn.ghost_batch_norm(
            x, params, state, training=True, batch_size=32
        ),
        "batch_renorm": lambda: jbn.batch_renorm(x, params, state, **limits),
        "layer_norm": lambda: jbn.layer_norm(x, params),
        "layer_norm, gradient": gradient(jbn.layer_norm, x, params),
        "group_norm": lambda: jbn.group_norm(x, params, groups=GROUPS),
        "instance_norm": lambda: jbn.instance_norm(images, params),
        "whiten": lambda: jbn.whiten(x),
    }
    return {operation: {"jbn": call} for operation, call in functions.items()}


def nothing_calls() -> Calls:
    """Return calls that do nothing: a program, and layers that have a BatchNorm's variables."""
    x = normal(0, ROWS, FEATURES)
    params, state = jbn.init(FEATURES)
    program = jax.jit(lambda x, params, state: (x, state))
    calls: dict[str, Call] = {
        "batch_norm, training": lambda: program(x, params, state),
        "batch_norm, gradient": gradient(lambda x, params: program(x, params, state)[0], x, params),
    }
    found = [{operation: {"jit alone": call} for operation, call in calls.items()}]
    found += [linen_calls("linen alone", LinenNothing), nnx_calls("nnx alone", NnxNothing)]
    wanted = ("batch_norm, training", "batch_norm, gradient", "batch_norm, evaluation")
    return {
        operation: {way: call for part in found for way, call in part.get(operation, {}).items()}
        for operation in wanted
    }


class LinenNothing(nn.Module):
    """A layer with the variables of linen's BatchNorm that returns x."""

    use_running_average: bool | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        self.param("scale", nn.initializers.ones, shape)
        self.param("bias", nn.initializers.zeros, shape)
        if not (self.is_initializing() or self.use_running_average):
            mean.value, var.value = mean.value, var.value
        return x


class NnxNothing(nnx.Module):
    """A layer with the variables of nnx's BatchNorm that returns x."""

    def __init__(self, features: int, *, rngs: nnx.Rngs, use_running_average: bool = False):
        self.mean, self.var = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.ones(features))
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.use_running_average = use_running_average

    def __call__(self, x: Any, **options: Any) -> Any:
        if not self.use_running_average:
            self.mean[...], self.var[...] = self.mean[...], self.var[...]
        return x


def split(x: Any) -> Any:
    """Give x a leading device axis."""
    return x.reshape(DEVICES, -1, x.shape[-1])


def vmapped(one: Callable[..., Any]) -> Callable[..., Any]:
    """Map over the device axis on one device."""
    return jax.vmap(one, axis_name="d")


def sharded(one: Callable[..., Any]) -> Callable[..., Any]:
    """Map over devices; each returns its copy of the new state, all of them equal."""

    def body(x: Any) -> Any:
        return jax.tree.map(lambda a: a[None], one(x[0]))

    return jax.shard_map(body, mesh=mesh(("d", DEVICES)), in_specs=P("d"), out_specs=P("d"))


# ---- Flax, and our layers in its place -----------------------------------------------------------


def linen_calls(name: str, norm: Callable[..., Any]) -> Calls:
    """Return calls of a linen BatchNorm and of a network with five of them."""
    x = normal(0, ROWS, FEATURES)
    mask = jnp.arange(ROWS)[:, None] < ROWS - 20
    layer, fixed = norm(use_running_average=False), norm(use_running_average=True)
    pooled = norm(use_running_average=False, axis_name="d")
    variables = layer.init(jax.random.key(0), x)
    stats = {"batch_stats": variables["batch_stats"]}
    model = MLP(hidden=(FEATURES,) * 5, norm=norm, activation=nn.relu)
    weights = model.init(jax.random.key(0), x, training=True)

    def train(layer: Any, x: Any, params: Any = variables["params"], **options: Any) -> Any:
        return layer.apply({"params": params, **stats}, x, mutable=["batch_stats"], **options)

    def network(x: Any, params: Any = weights["params"]) -> Any:
        variables = {**weights, "params": params}
        return model.apply(variables, x, training=True, mutable=["batch_stats"])

    calls: dict[str, Call] = {
        "batch_norm, training": lambda: train(layer, x),
        "batch_norm, gradient": gradient(
            lambda x, params: train(layer, x, params)[0], x, variables["params"]
        ),
        "batch_norm, evaluation": lambda: fixed.apply(variables, x),
        "batch_norm, mask": lambda: train(layer, x, mask=mask),
        "batch_norm, vmap": lambda: vmapped(functools.partial(train, pooled))(split(x)),
        "batch_norm, shard_map": lambda: sharded(functools.partial(train, pooled))(split(x)),
        "MLP of five": lambda: network(x),
        "MLP of five, gradient": gradient(
            lambda x, params: network(x, params)[0], x, weights["params"]
        ),
    }
    return {operation: {name: call} for operation, call in calls.items()}


def linen_others(name: str, norms: Any) -> Calls:
    """Return calls of linen's other norms: Flax's, or ours in their place."""
    x, images = normal(0, ROWS, FEATURES), normal(1, ROWS // POSITIONS, POSITIONS, FEATURES)
    calls: dict[str, Call] = {}
    for operation, layer, batch in (
        ("layer_norm", norms.LayerNorm(), x),
        ("group_norm", norms.GroupNorm(), x),  # 32 groups by default in both.
        ("instance_norm", norms.InstanceNorm(), images),
    ):
        variables = layer.init(jax.random.key(0), batch)
        calls[operation] = functools.partial(layer.apply, variables, batch)
        if operation == "layer_norm":
            calls["layer_norm, gradient"] = gradient(
                lambda x, variables, layer=layer: layer.apply(variables, x), x, variables
            )
    return {operation: {name: call} for operation, call in calls.items()}


def nnx_calls(name: str, norm: Callable[..., Any]) -> Calls:
    """Return calls of an nnx BatchNorm."""
    x = normal(0, ROWS, FEATURES)
    mask, cotangent = jnp.arange(ROWS)[:, None] < ROWS - 20, normal(9, ROWS, FEATURES)
    layer = norm(FEATURES, rngs=nnx.Rngs(0))
    fixed = norm(FEATURES, rngs=nnx.Rngs(0), use_running_average=True)

    def loss(layer: Any, x: Any) -> Any:
        return (layer(x) * cotangent).sum()

    calls: dict[str, Call] = {
        "batch_norm, training": lambda: layer(x),
        "batch_norm, gradient": lambda: nnx.value_and_grad(loss, argnums=(0, 1))(layer, x),
        "batch_norm, evaluation": lambda: fixed(x),
        "batch_norm, mask": lambda: layer(x, mask=mask),
    }
    return {operation: {name: call} for operation, call in calls.items()}


def nnx_others() -> Calls:
    """Return calls of Flax nnx's other norms."""
    x = normal(0, ROWS, FEATURES)
    layer = nnx.LayerNorm(FEATURES, rngs=nnx.Rngs(0))
    groups = nnx.GroupNorm(FEATURES, num_groups=GROUPS, rngs=nnx.Rngs(0))
    cotangent = normal(9, ROWS, FEATURES)

    def loss(layer: Any, x: Any) -> Any:
        return (layer(x) * cotangent).sum()

    calls: dict[str, Call] = {
        "layer_norm": lambda: layer(x),
        "layer_norm, gradient": lambda: nnx.value_and_grad(loss, argnums=(0, 1))(layer, x),
        "group_norm": lambda: groups(x),
    }
    return {operation: {"Flax nnx": call} for operation, call in calls.items()}


def with_schedule() -> Calls:
    """Return calls of our layers with a momentum schedule, which Flax does not have."""
    x = normal(0, ROWS, FEATURES)
    layer = jbn.linen.BatchNorm(use_running_average=False, momentum=jbn.debiased(0.9))
    variables = layer.init(jax.random.key(0), x)
    model = jbn.nnx.BatchNorm(FEATURES, momentum=jbn.debiased(0.9), rngs=nnx.Rngs(0))
    return {
        "batch_norm, schedule": {
            "jbn.linen": lambda: layer.apply(variables, x, mutable=["batch_stats"]),
            "jbn.nnx": lambda: model(x),
        }
    }


# ---- Other peers ---------------------------------------------------------------------------------


def haiku_calls() -> Calls:
    """Return calls of Haiku's layers."""
    import haiku as hk

    x = normal(0, ROWS, FEATURES)

    def transformed(make: Callable[[], Any], **options: Any) -> tuple[Any, Any, Any]:
        layer = hk.without_apply_rng(hk.transform_with_state(lambda x: make()(x, **options)))
        return layer, *layer.init(jax.random.key(0), x)

    def batch_norm() -> Any:
        return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.99)

    train, params, state = transformed(batch_norm, is_training=True)
    evaluate = hk.without_apply_rng(hk.transform_with_state(lambda x: batch_norm()(x, False)))
    layer, layer_params, _ = transformed(lambda: hk.LayerNorm(-1, True, True))
    group, group_params, _ = transformed(lambda: hk.GroupNorm(GROUPS))
    calls: dict[str, Call] = {
        "batch_norm, training": lambda: train.apply(params, state, x),
        "batch_norm, gradient": gradient(
            lambda x, params: train.apply(params, state, x)[0], x, params
        ),
        "batch_norm, evaluation": lambda: evaluate.apply(params, state, x),
        "layer_norm": lambda: layer.apply(layer_params, {}, x),
        "group_norm": lambda: group.apply(group_params, {}, x),
    }
    return {operation: {"Haiku": call} for operation, call in calls.items()}


def equinox_calls() -> Calls:
    """Return calls of Equinox's layers as documented: on one example, mapped over the batch."""
    import equinox as eqx

    x = normal(0, ROWS, FEATURES)
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        FEATURES, axis_name="batch", mode="batch"
    )
    fixed = eqx.nn.inference_mode(layer)
    one, groups = eqx.nn.LayerNorm(FEATURES), eqx.nn.GroupNorm(GROUPS, FEATURES)

    def train(layer: Any, x: Any) -> Any:
        return jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    params, static = eqx.partition(layer, eqx.is_inexact_array)
    calls: dict[str, Call] = {
        "batch_norm, training": lambda: train(layer, x),
        "batch_norm, gradient": gradient(
            lambda x, params: train(eqx.combine(params, static), x)[0], x, params
        ),
        "batch_norm, evaluation": lambda: train(fixed, x),
        "layer_norm": lambda: jax.vmap(one)(x),
        "group_norm": lambda: jax.vmap(groups)(x),
    }
    return {operation: {"Equinox": call} for operation, call in calls.items()}


def torch_calls() -> Calls:
    """Return calls of torch's functions, which are always eager."""
    import torch

    functional = torch.nn.functional
    x = torch.from_numpy(np.array(normal(0, ROWS, FEATURES)))
    images = x.reshape(-1, POSITIONS, FEATURES).permute(0, 2, 1)
    learned = x.clone().requires_grad_()
    scale, bias = (fill(FEATURES, requires_grad=True) for fill in (torch.ones, torch.zeros))
    mean, var = torch.zeros(FEATURES), torch.ones(FEATURES)
    cotangent = torch.from_numpy(np.array(normal(9, ROWS, FEATURES)))

    def differentiate() -> Any:
        y = functional.batch_norm(learned, mean, var, scale, bias, True, 0.01, 1e-5)
        return torch.autograd.grad((y * cotangent).sum(), (learned, scale, bias))

    def without_gradient(function: Callable[..., Any], *args: Any) -> Call:
        def call() -> Any:
            with torch.no_grad():
                return function(*args)

        return call

    calls: dict[str, Call] = {
        "batch_norm, training": without_gradient(
            functional.batch_norm, x, mean, var, scale, bias, True, 0.01
        ),
        "batch_norm, gradient": differentiate,
        "batch_norm, evaluation": without_gradient(
            functional.batch_norm, x, mean, var, scale, bias, False
        ),
        "layer_norm": without_gradient(functional.layer_norm, x, (FEATURES,), scale, bias),
        "group_norm": without_gradient(functional.group_norm, x, GROUPS, scale, bias),
        "instance_norm": without_gradient(
            functional.instance_norm, images, None, None, scale, bias
        ),
    }
    return {operation: {"torch": call} for operation, call in calls.items()}
