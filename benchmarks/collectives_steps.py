"""The training steps of `benchmarks/collectives.py`, with jbn or Flax, lowered in every mode."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

import jbn

MAPPED = ("pmap", "shard_map", "shard_map, unchecked")
MODES = (*MAPPED, "jit")
AXIS = "devices"
PER_DEVICE = 2  # Examples.
Norm = Callable[[Array, Any, Any], tuple[Array, Any]]
Groups = Sequence[Sequence[int]]


# ---- Training steps ------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One way to normalize in training: parameters, state, `(x, params, state) -> (y, state)`."""

    params: Any
    state: Any
    apply: Norm


class Target(NamedTuple):
    """Devices to compile for, which need not be present, and their platform: cpu, tpu or cuda."""

    platform: str
    devices: Sequence[Any]


Make = Callable[[int, str | None], Layer]  # (features, axis name or None) -> layer.


def with_jbn(
    features: int,
    axis_name: str | None,
    *,
    masked: bool = False,
    groups: Groups | None = None,
    **options: Any,
) -> Layer:
    """Normalize with jbn."""

    def apply(x: Array, params: Any, state: Any) -> tuple[Array, Any]:
        mask = some(x) if masked else None
        names = {"axis_name": axis_name, "axis_index_groups": groups}
        return jbn.batch_norm(x, params, state, training=True, mask=mask, **names, **options)

    return Layer(*jbn.init(features), apply)


def with_flax(features: int, axis_name: str | None, *, masked: bool = False) -> Layer:
    """Normalize with Flax."""
    layer = linen.BatchNorm(use_running_average=False, axis_name=axis_name)

    def apply(x: Array, params: Any, state: Any) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": state}
        mask = some(x) if masked else None
        y, moved = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
        return y, moved["batch_stats"]

    params = {"scale": jnp.ones(features), "bias": jnp.zeros(features)}
    return Layer(params, {"mean": jnp.zeros(features), "var": jnp.ones(features)}, apply)


def some(x: Array) -> Array:
    """Mask some examples by their values, so that the compiler cannot know how many."""
    return x[:, :1] > -0.5


def lower(
    mode: str,
    make: Make,
    *,
    devices: int,
    layers: int,
    features: int,
    backward: bool = True,
    examples: int = PER_DEVICE,
    target: Target | None = None,
) -> Any:
    """Lower the training step of a network with `layers` normalized layers.

    Args:
      mode: one of MODES.
      make: makes the layer.
      devices: how many; more than there are require shard_map and cannot be compiled.
      layers: L.
      features: C.
      backward: False leaves out the gradient and returns the parameters unchanged.
      examples: per device.
      target: what to compile for; None is this CPU.
    """
    platform, places = target or Target("cpu", jax.devices())
    norm = make(features, None if mode == "jit" else AXIS)
    kernel = jax.ShapeDtypeStruct((features, features), jnp.float32)
    params = [{"kernel": kernel, "norm": norm.params} for _ in range(layers)]
    states = [norm.state] * layers
    x = jax.ShapeDtypeStruct((devices * examples, features), jnp.float32)

    if mode == "pmap":
        x = jax.ShapeDtypeStruct((devices, examples, features), jnp.float32)
        run = functools.partial(step, norm.apply, mean=over_axis, backward=backward)
        mapped = jax.pmap(run, axis_name=AXIS, in_axes=(None, None, 0), devices=places[:devices])
        return mapped.lower(params, states, x)

    mesh: Any = AbstractMesh((devices,), (AXIS,))
    if devices <= len(places):
        mesh = Mesh(np.array(places[:devices]), (AXIS,))

    def placed(tree: Any, spec: P) -> Any:
        def place(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(place, tree)

    arguments = placed(params, P()), placed(states, P()), placed(x, P(AXIS))
    if mode == "jit":
        run = functools.partial(step, norm.apply, mean=lambda tree: tree, backward=backward)
        return jax.jit(run).lower(*arguments)
    checked = mode == "shard_map"
    vary = varying if checked else lambda tree: tree

    def body(params: Any, states: Any, x: Array) -> Any:
        run = functools.partial(step, norm.apply, mean=over_axis, vary=vary, backward=backward)
        params, states, value = run(params, states, x)
        # One state per device, as in pmap, because they differ with index groups.
        return params, jax.tree.map(lambda leaf: leaf[None], states), value

    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(P(), P(), P(AXIS)),
        out_specs=(P(), P(AXIS), P()),
        check_vma=checked,
    )
    return jax.jit(mapped).trace(*arguments).lower(lowering_platforms=(platform,))


def step(
    norm: Norm,
    params: Any,
    states: Any,
    x: Array,
    *,
    mean: Callable[[Any], Any],
    vary: Callable[[Any], Any] = lambda tree: tree,
    backward: bool = True,
) -> Any:
    """Take one step of SGD; `mean` averages over the devices."""

    def loss(params: Any) -> tuple[Array, Any]:
        h, moved = x, []
        for layer, state in zip(params, states, strict=True):
            y, state = norm(h @ layer["kernel"], layer["norm"], state)
            moved.append(state)
            h = jnp.tanh(y)
        return jnp.mean((h.astype(jnp.float32) - 1) ** 2), moved

    if not backward:
        value, moved = loss(params)
        return params, moved, mean(value)
    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(vary(params))
    value, gradient = mean((value, gradient))
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), moved, value


def over_axis(tree: Any) -> Any:
    """Average over the devices."""
    return jax.lax.pmean(tree, AXIS)


def varying(tree: Any) -> Any:
    """Give each device its own copy to differentiate; else JAX sums each parameter separately."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)
