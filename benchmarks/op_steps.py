"""The loops of steps that `benchmarks/op.py` times: JAX libraries, torch, and a copy."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from benchmarks import peers
from benchmarks.common import Run
from benchmarks.peers import Candidate, Shape


class Case(NamedTuple):
    """The shape and memory layout of a batch."""

    shape: Shape  # C last.
    channels_first: bool = False
    padded: bool = False

    @property
    def label(self) -> str:
        """The shape in a form such as 256x100 or 256x64x28x28-first."""
        n, *between, features = self.shape
        sizes = (n, features, *between) if self.channels_first else self.shape
        kind = "-first" if self.channels_first else "-padded" if self.padded else ""
        return label(sizes) + kind


CALM, OFF_CENTER = 0.5, 100.0  # Mean / std of x.


# ---- Loops of steps ------------------------------------------------------------------------------


def jax_run(candidate: Candidate, case: Case, dtype: Any, ratio: float, backward: bool) -> Run:
    """Make the loop of a JAX library; see the docstring of `benchmarks/op.py`."""
    loop = jax.jit(
        functools.partial(steps, candidate.apply, ratio=ratio, backward=backward), donate_argnums=0
    )
    carry = start(candidate, case.shape, dtype, ratio)
    mask = padding(case.shape) if case.padded else None

    def run(count: int) -> None:
        nonlocal carry
        carry = jax.block_until_ready(loop(carry, count, mask))

    return run


def start(candidate: Candidate, shape: Shape, dtype: Any, ratio: float) -> Any:
    """Make x of std 1, scale 1, bias `ratio`, and the running statistics."""
    x = layout(batch(shape, ratio), candidate).astype(dtype)
    features = shape[-1:]
    scale = jnp.ones(features, candidate.param_dtype)
    bias = jnp.full(features, ratio, candidate.param_dtype)
    return jax.tree.map(jnp.copy, (x, scale, bias, candidate.stats))  # Copies can be donated.


def steps(
    apply: peers.Apply,
    carry: Any,
    count: Array,
    mask: Array | None = None,
    *,
    ratio: float,
    backward: bool,
) -> Any:
    """Take `count` steps; to be jitted."""
    if mask is not None:
        apply = functools.partial(apply, mask=mask)

    def forward_step(i: Array, carry: Any) -> Any:
        x, scale, bias, stats = carry
        y, stats = apply(x, scale, bias, stats)
        return y.astype(x.dtype), scale, bias, stats

    def backward_step(i: Array, carry: Any) -> Any:
        x, scale, bias, stats = carry

        def forward(x: Array, scale: Array, bias: Array) -> tuple[Array, Any]:
            return apply(x, scale, bias, stats)

        y, backward, stats = jax.vjp(forward, x, scale, bias, has_aux=True)
        dy = lax.cond(i < 0, jnp.negative, lambda y: y, y)
        dx, dscale, dbias = backward(dy)
        # SGD on sum(y^2) / 2n - scale - ratio * bias, whose minimum is at scale 1, bias `ratio`.
        n = x.size // scale.size
        scale -= (0.1 * (dscale / n - 1)).astype(scale.dtype)
        bias -= (0.1 * (dbias / n - ratio)).astype(bias.dtype)
        return (dy + dx / 2).astype(x.dtype), scale, bias, stats

    return lax.fori_loop(0, count, backward_step if backward else forward_step, carry)


def padding(shape: Shape) -> Array:
    """Make a mask `(N, T, 1)` of sequences `(N, T, C)` with random lengths."""
    n, length, _ = shape
    lengths = jax.random.randint(jax.random.key(1), (n, 1, 1), 1, length + 1)
    return jnp.arange(length)[None, :, None] < lengths


def copy_run(shape: Shape, dtype: Any) -> Run:
    """Make the loop that copies x, adding i so that no two steps are the same."""

    def copy(carry: tuple[Array, Array], count: Array) -> tuple[Array, Array]:
        return lax.fori_loop(0, count, lambda i, c: (c[0], c[0] + i.astype(dtype)), carry)

    loop = jax.jit(copy, donate_argnums=0)
    carry = (jnp.ones(shape, dtype), jnp.zeros(shape, dtype))

    def run(count: int) -> None:
        nonlocal carry
        carry = jax.block_until_ready(loop(carry, count))

    return run


def torch_run(shape: Shape, dtype: str, channels_last: bool, backward: bool, device: str) -> Run:
    """Make the loop of torch, out of place, in Python."""
    import torch

    x = torch.from_numpy(np.array(batch(shape, CALM))).to(device, getattr(torch, dtype))
    x = torch_layout(x, channels_last)
    mean, var = (fill(shape[-1], device=device) for fill in (torch.zeros, torch.ones))
    scale = torch.ones(shape[-1], device=device, requires_grad=backward)
    bias = torch.full((shape[-1],), CALM, device=device, requires_grad=backward)
    x.requires_grad_(backward)

    def run(count: int) -> None:
        for _ in range(count):
            y = torch.nn.functional.batch_norm(x, mean, var, scale, bias, True, 0.01, 1e-5)
            if backward:
                torch.autograd.grad(y, (x, scale, bias), y.detach())
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def torch_layout(x: Any, channels_last: bool) -> Any:
    """Convert `(N, ..., C)` to torch's `(N, C, ...)`, with C last in memory or not."""
    if x.ndim == 2:
        return x
    x = x.movedim(-1, 1)  # C is still last in memory.
    return x if channels_last else x.contiguous()


def layout(x: Array, candidate: Candidate) -> Array:
    """Move C to the axis where the library expects it."""
    return jnp.moveaxis(x, -1, 1) if candidate.channels_first else x


def batch(shape: Shape, ratio: float, seed: int = 0) -> Float[Array, "..."]:
    """Draw x of std 1 and mean `ratio`, float32."""
    return ratio + jax.random.normal(jax.random.key(seed), shape)


# ---- Report --------------------------------------------------------------------------------------


def label(shape: Iterable[int]) -> str:
    """Write a shape as 256x100."""
    return "x".join(map(str, shape))
