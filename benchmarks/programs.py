"""Programs to measure on accelerators: the operation alone, blocks around it, a whole network.

Each program is a function to jit and a function that makes its arguments, so it can be run where
the accelerator is present and compiled where it is not. Gradients are with respect to x and all
parameters, pulled back from a cotangent that depends on the output; a training step also updates
the parameters.

  op       batch normalization alone; the cotangent is y, as it was written to memory
  block    matmul or 3x3 convolution, batch normalization, ReLU, matmul or convolution
  masked   matmul, batch normalization with a padding mask, ReLU on (N, T, C)
  resnet50, bninception
           forward pass in training; or gradient and one step of SGD with momentum
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from benchmarks import peers
from benchmarks.peers import Shape
from jbn.linen import BatchNorm
from jbn.models import BNInception, resnet50

DTYPES = ("bfloat16", "float32")
NORMS = ("jbn", "Flax", "none")


class Program(NamedTuple):
    """`step(*make())`, with `step` to be jitted; `size` is the bytes of the array to normalize."""

    step: Callable[..., Any]
    make: Callable[[], tuple[Any, ...]]
    size: int


class Sizes(NamedTuple):
    """Shapes of the arrays to normalize; blocks have `features` on either side of them."""

    op: tuple[Shape, ...]
    matmul: Shape
    conv: Shape
    masked: Shape
    features: int
    images: Shape
    blocks: Shape  # Blocks per stage of the ResNet.


FULL = Sizes(
    op=((256, 56, 56, 64), (256, 14, 14, 1024), (32768, 1024)),
    matmul=(200_704, 256),
    conv=(128, 56, 56, 64),
    masked=(256, 512, 768),
    features=64,
    images=(128, 224, 224, 3),
    blocks=(3, 4, 6, 3),
)
SMOKE = Sizes(
    op=((4, 3, 3, 8),),
    matmul=(32, 8),
    conv=(2, 4, 4, 8),
    masked=(2, 8, 8),
    features=4,
    images=(2, 16, 16, 3),
    blocks=(1,),
)


def op(make: peers.Make, shape: Shape, dtype: str, backward: bool) -> Program:
    """Normalize alone."""
    candidate = make(shape, dtype)

    def arguments() -> tuple[Any, ...]:
        x = draw(shape, dtype)
        x = jnp.moveaxis(x, -1, 1) if candidate.channels_first else x
        return (x, *vectors(candidate, shape), candidate.stats)

    def forward(x: Array, scale: Array, bias: Array, stats: Any) -> tuple[Array, Any]:
        return candidate.apply(x, scale, bias, stats)

    def both(x: Array, scale: Array, bias: Array, stats: Any) -> Any:
        y, pullback, stats = jax.vjp(
            lambda x, scale, bias: forward(x, scale, bias, stats), x, scale, bias, has_aux=True
        )
        return pullback(lax.optimization_barrier(y)), stats

    return Program(both if backward else forward, arguments, nbytes(shape, dtype))


def block(make: peers.Make, kind: str, sizes: Sizes, dtype: str, backward: bool) -> Program:
    """Normalize between two affine maps ("matmul" or "conv"), or after one ("masked")."""
    shape = {"matmul": sizes.matmul, "conv": sizes.conv, "masked": sizes.masked}[kind]
    candidate = make(shape, dtype)
    features, wide = sizes.features * (2 if kind == "masked" else 1), shape[-1]
    window = (3, 3) if kind == "conv" else ()

    def arguments() -> tuple[Any, ...]:
        x = draw((*shape[:-1], features), dtype)
        first = draw((*window, features, wide), dtype, seed=1) / features**0.5
        second = draw((*window, wide, features), dtype, seed=2) / wide**0.5
        mask = jnp.arange(shape[1])[None, :, None] < (3 * shape[1] // 4)
        mask = jnp.broadcast_to(mask, (*shape[:-1], 1)) if kind == "masked" else None
        scale, bias = vectors(candidate, shape)
        return x, (first, scale, bias, second), candidate.stats, mask

    def affine(x: Array, kernel: Array) -> Array:
        if kind != "conv":
            return x @ kernel
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def forward(x: Array, params: Any, stats: Any, mask: Array | None) -> tuple[Array, Any]:
        first, scale, bias, second = params
        masked = {} if mask is None else {"mask": mask}
        y, stats = candidate.apply(affine(x, first), scale, bias, stats, **masked)
        return (nn.relu(y) if kind == "masked" else affine(nn.relu(y), second)), stats

    def both(x: Array, params: Any, stats: Any, mask: Array | None) -> Any:
        out, pullback, stats = jax.vjp(
            lambda x, params: forward(x, params, stats, mask), x, params, has_aux=True
        )
        return pullback(out), stats

    return Program(both if backward else forward, arguments, nbytes(shape, dtype))


class ScaleAndBias(nn.BatchNorm):
    """Batch normalization without the normalization: scale and bias only."""

    @nn.compact
    def __call__(self, x: Array, **ignored: Any) -> Array:
        """Compute scale * x + bias."""
        scale = self.param("scale", self.scale_init, x.shape[-1:], jnp.float32)
        bias = self.param("bias", self.bias_init, x.shape[-1:], jnp.float32)
        return peers.affine(x, scale, bias)


def network(
    norm: str, sizes: Sizes, dtype: str, backward: bool, *, name: str = "resnet50"
) -> Program:
    """Train a network on a batch of images, with kernels in `dtype`, other parameters float32."""
    shape = sizes.images
    layers = {"jbn": BatchNorm, "Flax": nn.BatchNorm, "none": ScaleAndBias}
    layer = functools.partial(layers[norm], dtype=dtype)
    widths = (64, 128, 256, 512)[: len(sizes.blocks)]
    model = {
        "resnet50": functools.partial(resnet50, blocks=sizes.blocks, widths=widths),
        "bninception": BNInception,
    }[name](norm=layer)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def arguments() -> tuple[Any, ...]:
        images = draw(shape, dtype)
        labels = jnp.arange(shape[0]) % 1000
        variables = model.init(jax.random.key(0), images[:1], training=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        return params, stats, optimizer.init(params), images, labels

    def forward(params: Any, stats: Any, images: Array) -> tuple[Array, Any]:
        params = jax.tree.map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
        )
        variables = {"params": params, "batch_stats": stats}
        logits, moved = model.apply(variables, images, training=True, mutable=["batch_stats"])
        return logits.astype(jnp.float32), moved.get("batch_stats", {})

    def loss(params: Any, stats: Any, images: Array, labels: Array) -> tuple[Array, Any]:
        logits, stats = forward(params, stats, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    def train(params: Any, stats: Any, moved: Any, images: Array, labels: Array) -> Any:
        gradients, stats = jax.grad(loss, has_aux=True)(params, stats, images, labels)
        updates, moved = optimizer.update(gradients, moved, params)
        return optax.apply_updates(params, updates), stats, moved

    def infer(params: Any, stats: Any, moved: Any, images: Array, labels: Array) -> Any:
        return forward(params, stats, images)

    return Program(train if backward else infer, arguments, nbytes(shape, dtype))


def vectors(candidate: peers.Candidate, shape: Shape) -> tuple[Array, Array]:
    """Make scale and bias, neither of them trivial."""
    dtype = candidate.param_dtype
    return jnp.full(shape[-1:], 1.5, dtype), jnp.full(shape[-1:], 0.5, dtype)


def draw(shape: Shape, dtype: str, seed: int = 0) -> Array:
    """Draw normal values of mean .5."""
    return (0.5 + jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


def nbytes(shape: Shape, dtype: str) -> int:
    """Count the bytes of an array."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)).size * jnp.dtype(dtype).itemsize
