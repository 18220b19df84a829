"""Batch normalization in training with jbn and each peer, behind one signature."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array

import jbn
from benchmarks.common import installed

Shape = tuple[int, ...]
Stats = Any
Apply = Callable[..., tuple[Array, Stats]]


class Candidate(NamedTuple):
    """One way to normalize `(N, ..., C)`, or `(N, C, ...)` where `channels_first`.

    `apply(x, scale, bias, stats) -> (y, new stats)`, with scale and bias `(C,)` in `param_dtype`,
    and with `mask=` if `has_mask`.
    """

    apply: Apply
    stats: Stats
    param_dtype: Any = jnp.float32
    channels_first: bool = False
    has_mask: bool = False


# (shape with C last, dtype, channels_first=) -> Candidate. Equinox is always channels-first.
Make = Callable[..., Candidate]


def with_jbn(shape: Shape, dtype: Any, *, channels_first: bool = False) -> Candidate:
    """Normalize with jbn: float32 parameters and statistics for any x."""

    def apply(
        x: Array, scale: Array, bias: Array, stats: Stats, mask: Array | None = None
    ) -> tuple[Array, Stats]:
        params = jbn.BatchNormParams(scale, bias)
        axis = 1 if channels_first else -1
        return jbn.batch_norm(x, params, stats, training=True, axis=axis, mask=mask)

    stats = jbn.init(shape[-1])[1]
    return Candidate(apply, stats, channels_first=channels_first, has_mask=True)


def with_flax(
    shape: Shape, dtype: Any, *, channels_first: bool = False, fast: bool = True
) -> Candidate:
    """Normalize with Flax, by E[x^2] - E[x]^2 if fast. Without dtype=, y would be float32."""
    axis = 1 if channels_first else -1
    layer = linen.BatchNorm(
        use_running_average=False, axis=axis, dtype=dtype, use_fast_variance=fast
    )

    def apply(
        x: Array, scale: Array, bias: Array, stats: Stats, mask: Array | None = None
    ) -> tuple[Array, Stats]:
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        y, moved = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
        return y, moved["batch_stats"]

    stats = {"mean": jnp.zeros(shape[-1]), "var": jnp.ones(shape[-1])}
    return Candidate(apply, stats, channels_first=channels_first, has_mask=True)


def with_haiku(shape: Shape, dtype: Any, *, channels_first: bool = False) -> Candidate:
    """Normalize with Haiku, whose parameters and statistics have x's dtype."""
    import haiku as hk

    axis = 1 if channels_first else -1
    data_format = "channels_first" if channels_first else "channels_last"

    def normalize(x: Array) -> Array:
        layer = hk.BatchNorm(True, True, decay_rate=0.99, data_format=data_format)
        return layer(x, is_training=True)

    layer = hk.without_apply_rng(hk.transform_with_state(normalize))

    def apply(x: Array, scale: Array, bias: Array, stats: Stats) -> tuple[Array, Stats]:
        per_feature = [1] * x.ndim
        per_feature[axis] = scale.size
        params = {"scale": scale.reshape(per_feature), "offset": bias.reshape(per_feature)}
        return layer.apply({"batch_norm": params}, stats, x)

    example = jnp.moveaxis(jnp.ones(shape, dtype), -1, axis)
    _, stats = layer.init(jax.random.key(0), example)
    return Candidate(apply, stats, param_dtype=dtype, channels_first=channels_first)


def with_equinox(shape: Shape, dtype: Any, *, channels_first: bool = True) -> Candidate:
    """Normalize with Equinox as documented: examples are `(C, ...)`, the batch is a named vmap."""
    import equinox as eqx

    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        shape[-1], axis_name="batch", mode="batch", dtype=dtype
    )

    def apply(x: Array, scale: Array, bias: Array, stats: Stats) -> tuple[Array, Stats]:
        this = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (scale, bias))
        return jax.vmap(this, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, stats)

    return Candidate(apply, state, param_dtype=dtype, channels_first=True)


def without(shape: Shape, dtype: Any) -> Candidate:
    """Apply only scale and bias, without normalizing."""

    def apply(
        x: Array, scale: Array, bias: Array, stats: Stats, mask: Array | None = None
    ) -> tuple[Array, Stats]:
        return affine(x, scale, bias), stats

    return Candidate(apply, (), has_mask=True)


def affine(x: Array, scale: Array, bias: Array) -> Array:
    """Compute scale * x + bias in at least float32, as the libraries do; return it in x's dtype."""
    scale, bias = (jnp.expand_dims(v, range(x.ndim - 1)) for v in (scale, bias))
    return (x.astype(scale.dtype) * scale + bias).astype(x.dtype)


def candidates() -> dict[str, Make]:
    """Return the installed implementations by name, and print a line for each missing one."""
    found: dict[str, Make] = {
        "jbn": with_jbn,
        "Flax": with_flax,
        "Flax, two-pass": functools.partial(with_flax, fast=False),
    }
    for name, module, make in (
        ("Haiku", "haiku", with_haiku),
        ("Equinox", "equinox", with_equinox),
    ):
        if installed(module):
            found[name] = make
        else:
            print(f"{name} is not installed; skipping it.")
    return found


def torch_device() -> str | None:
    """Return torch's device to compare with this JAX; print why if there is none."""
    if not installed("torch"):
        print("torch is not installed; skipping it.")
        return None
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        print(f"this torch does not run on {jax.default_backend()}; skipping it.")
        return None
    return device
