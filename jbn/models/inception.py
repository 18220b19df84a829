"""The Inception network of the paper's section 4.2 and Fig. 5, with and without batch norm."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from jbn._arguments import check_flag, check_size
from jbn._dtypes import wide_dtype
from jbn._inputs import describe
from jbn.models.attributes import check_choice, check_share, check_shared
from jbn.models.convolution import Conv
from jbn.models.pooling import avg_pool, max_pool
from jbn.models.units import (
    BATCH_NORMS,
    Activation,
    Initializer,
    Norm,
    Placement,
    check_call,
    is_norm_of,
    logits,
    make_norm,
    unit,
)


class Block(NamedTuple):
    """A row of Fig. 5: the features of each path, and the pooling.

    A block that halves the resolution has no 1x1 path and passes the pooled input on unchanged.
    """

    name: str
    one: int
    reduce_3: int
    three: int
    reduce_double: int
    double: int
    pool: Literal["average", "max"]
    projection: int
    stride: int = 1


def plan(pool_of_4cd: int = 128) -> tuple[Block, ...]:
    """Return Fig. 5's blocks; with pool 128 in 4c and 4d, as printed, these have 608 features.

    The output sizes printed there, 576, require a pool of 96.
    """
    return (
        Block("3a", 64, 64, 64, 64, 96, "average", 32),
        Block("3b", 64, 64, 96, 64, 96, "average", 64),
        Block("3c", 0, 128, 160, 64, 96, "max", 0, stride=2),
        Block("4a", 224, 64, 96, 96, 128, "average", 128),
        Block("4b", 192, 96, 128, 96, 128, "average", 128),
        Block("4c", 160, 128, 160, 128, 160, "average", pool_of_4cd),
        Block("4d", 96, 128, 192, 160, 192, "average", pool_of_4cd),
        Block("4e", 0, 128, 192, 192, 256, "max", 0, stride=2),
        Block("5a", 352, 192, 320, 160, 224, "average", 128),
        Block("5b", 352, 192, 320, 192, 224, "max", 128),
    )


def check_blocks(blocks: Any, width: int) -> None:
    """Check the rows of a plan, whose numbers of features are divided by `width`.

    Raises:
      TypeError: not a sequence of `Block`.
      ValueError: an unknown pool; a layer that `width` leaves without a feature.
    """
    if not isinstance(blocks, Sequence) or not all(isinstance(row, Block) for row in blocks):
        raise TypeError(
            f"Expected `blocks` to be a sequence of rows of Fig. 5, got {describe(blocks)}. Take "
            "them from jbn.models.BNInception().blocks."
        )
    for row in blocks:
        check_choice(f"pool of block {row.name}", row.pool, ("average", "max"))
        layers = (row.reduce_3, row.three, row.reduce_double, row.double)
        optional = tuple(features for features in (row.one, row.projection) if features)
        if min(layers + optional) < width:
            raise ValueError(
                f"Expected `width` to leave each layer of block {row.name} a feature, got "
                f"width={width} for {row}. Pass at most {min(layers + optional)}."
            )


def per_activation_norm(norm: Norm) -> Norm:
    """Turn a normalization over examples and space into one over examples only.

    Raises:
      ValueError: not a batch normalization.
    """
    if not is_norm_of(norm, BATCH_NORMS):
        raise ValueError(
            f"Expected batch normalization with `per_activation`, got norm={norm!r}. Pass "
            "norm='batch', or no `per_activation`."
        )
    return functools.partial(cast(Any, make_norm(norm)), axis=(-3, -2, -1))


def check_per_activation(names: Any, blocks: Sequence[Block]) -> None:
    """Check that these are names of blocks.

    Raises:
      ValueError: anything else.
    """
    known = [block.name for block in blocks]
    if isinstance(names, str) or not set(names) <= set(known):
        raise ValueError(
            f"Expected `per_activation` to name blocks, {', '.join(known)}, got {names!r}. "
            "Pass a tuple of them, such as ('5a', '5b')."
        )


class InceptionNet(nn.Module):
    """A stem, the blocks, global average pooling, dropout, and a dense layer.

    Attributes:
      blocks: the rows of the plan; see `plan`.
      stem: "full", a 7x7 convolution with stride 2; "separable", 7x7 with eight filters for each
        color, then 1x1, as in the paper; "small", one 3x3 convolution, for images of 32x32.
      width: divisor of every number of features.
      outputs: number of outputs.
      local_response: apply local response normalization around the second convolution, as in the
        original; with the small stem, after it.
      local_response_alpha: alpha of `local_response_norm`; the default 2e-5 is meant for pixels
        with a standard deviation of 58.
      dropout: dropout rate of the last features in training, which needs a `dropout` rng.
      norm, activation, placement: for every convolution; see `jbn.models.units.unit`.
      per_activation: names of blocks, such as "5b", whose normalization has statistics, scale and
        bias per activation instead of per feature, as in dense layers (section 4.2.3).
      kernel_init: initializer of every kernel.
      use_bias: use a bias in every convolution; None omits it where the normalization cancels it.
      dtype: dtype of the computation, such as jnp.bfloat16; None promotes as Flax does. The last
        layer and all statistics use at least float32.
      param_dtype: dtype of kernels and biases; parameters of normalizations are float32.
      padding: padding of convolutions: "same", XLA's SAME, or "symmetric", as in the ports to Caffe
        and PyTorch, with as many zeros before as after. With a stride and an even size, the latter
        starts one pixel earlier.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.models import BNInception
      >>> model, x = BNInception(), jnp.ones((1, 224, 224, 3))
      >>> variables = jax.eval_shape(
      ...     lambda x: model.init(jax.random.key(0), x, training=False), x)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      11285224

    Raises:
      TypeError: blocks that are not rows of a plan; outputs or a width that are not ints; a norm
        that is neither a name nor makes a layer; an activation that is not a function; a dtype that
        is not floating.
      ValueError: an unknown stem, placement or padding; a width that leaves a layer without
        features; a dropout outside [0, 1).

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2 and Fig. 5.
    """

    blocks: Sequence[Block] = plan()
    stem: Literal["full", "separable", "small"] = "full"
    width: int = 1
    outputs: int = 1000
    local_response: bool = False
    local_response_alpha: float = 2e-5
    dropout: float = 0.0
    norm: Norm = None
    per_activation: Sequence[str] = ()
    activation: Activation = nn.relu
    placement: Placement = "before"
    kernel_init: Initializer = nn.initializers.he_normal()
    use_bias: bool | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    padding: Literal["same", "symmetric"] = "same"

    def __post_init__(self) -> None:
        """Check the attributes; a misspelled one would build another network."""
        check_shared(self)
        check_choice("stem", self.stem, ("full", "separable", "small"))
        check_choice("padding", self.padding, ("same", "symmetric"))
        check_flag("local_response", self.local_response)
        check_share("dropout", self.dropout)
        check_size("width", self.width, "Pass what every number of features is divided by.")
        check_blocks(self.blocks, self.width)
        check_per_activation(self.per_activation, self.blocks)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W in"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; `mask` tells which images count for the statistics."""
        x, mask = check_call(x, "N H W C", training=training, mask=mask)
        pixels = None if mask is None else mask[:, None, None, None]

        def conv(
            x: Array, features: int, size: int, name: str, stride: int = 1, norm: Norm = self.norm
        ) -> Array:
            layer = functools.partial(
                Conv,
                features // self.width,
                (size, size),
                (stride, stride),
                padding=(size - 1) // 2 if self.padding == "symmetric" else "SAME",
                kernel_init=self.kernel_init,
            )
            return unit(
                layer,
                x,
                training=training,
                name=name,
                norm=norm,
                norm_name=f"{name}_norm",
                activation=self.activation,
                placement=self.placement,
                mask=pixels,
                use_bias=self.use_bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )

        def lrn(x: Array) -> Array:
            if not self.local_response:
                return x
            return local_response_norm(x, alpha=self.local_response_alpha)

        if self.stem == "small":
            x = lrn(conv(x, 192, 3, "stem"))
        else:
            if self.stem == "separable":
                colors = x.shape[-1]
                x = nn.Conv(
                    8 * colors,
                    (7, 7),
                    (2, 2),
                    padding=3 if self.padding == "symmetric" else "SAME",
                    feature_group_count=colors,
                    use_bias=False,  # The 1x1 convolution that follows may have one.
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name="stem_depthwise",
                )(x)
                x = conv(x, 64, 1, "stem")
            else:
                x = conv(x, 64, 7, "stem", stride=2)
            x = max_pool(x, (3, 3), (2, 2), "SAME")
            x = lrn(x)
            x = lrn(conv(conv(x, 64, 1, "reduce"), 192, 3, "conv"))
            x = max_pool(x, (3, 3), (2, 2), "SAME")

        for block in self.blocks:
            name, stride, norm = f"block_{block.name}", block.stride, self.norm
            if block.name in self.per_activation:
                norm = per_activation_norm(norm)
            paths = [conv(x, block.one, 1, f"{name}_one", norm=norm)] if block.one else []
            h = conv(x, block.reduce_3, 1, f"{name}_reduce_3", norm=norm)
            paths.append(conv(h, block.three, 3, f"{name}_three", stride, norm))
            h = conv(x, block.reduce_double, 1, f"{name}_reduce_double", norm=norm)
            h = conv(h, block.double, 3, f"{name}_double_0", norm=norm)
            paths.append(conv(h, block.double, 3, f"{name}_double_1", stride, norm))
            pool = max_pool if block.pool == "max" else avg_pool
            h = pool(x, (3, 3), (stride, stride), "SAME")
            if block.projection:
                h = conv(h, block.projection, 1, f"{name}_pool", norm=norm)
            # Name the block's output, so that a policy of `jax.checkpoint` can save it.
            x = checkpoint_name(jnp.concatenate([*paths, h], -1), "block")
        x = jnp.mean(x, (1, 2), dtype=wide_dtype(x.dtype))
        x = nn.Dropout(self.dropout, deterministic=not training)(x) if self.dropout else x
        return logits(
            x,
            self.outputs,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


def local_response_norm(
    x: Float[Array, "N H W C"],
    *,
    radius: int = 2,
    bias: float = 1.0,
    alpha: float = 2e-5,
    beta: float = 0.75,
) -> Float[Array, "N H W C"]:
    """Divide by (bias + alpha sum of squares over the 2 radius + 1 nearest features)^beta.

    Computed in at least float32: in float16, squares overflow from 256 on.

    References:
      Krizhevsky, Sutskever, Hinton, "ImageNet Classification", 2012, section 3.3.
    """
    window = (1, 1, 1, 2 * radius + 1)
    wide = x.astype(wide_dtype(x.dtype))
    squares = lax.reduce_window(wide * wide, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
    return (wide * (bias + alpha * squares) ** -beta).astype(x.dtype)


class Inception(InceptionNet):
    """Inception, the paper's baseline in section 4.2: `BNInception` without batch normalization.

    The blocks of Fig. 5, with local response normalization and dropout of .4 instead. 11,275,208
    parameters. Training needs a `dropout` rng. Attributes are those of `InceptionNet`.

    Example:
      >>> from jbn.models import Inception
      >>> model = Inception()
      >>> model.norm, model.local_response, model.dropout
      (None, True, 0.4)

    References:
      Szegedy et al., "Going Deeper with Convolutions", 2014. Ioffe, Szegedy, "Batch Normalization",
      2015, section 4.2.
    """

    local_response: bool = True
    dropout: float = 0.4


class BNInception(InceptionNet):
    """BN-Inception, the paper's ImageNet network (Fig. 5): 11,285,224 parameters.

    Batch normalization before every nonlinearity, without dropout or local response normalization.
    The public ports to Caffe and PyTorch keep the convolutions' biases, as `use_bias=True` does.
    Attributes are those of `InceptionNet`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import BNInception
      >>> model = BNInception(dtype=jnp.bfloat16, use_bias=True)
      >>> model.norm, model.outputs
      ('batch', 1000)

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2 and Fig. 5.
    """

    norm: Norm = "batch"


class SmallInception(InceptionNet):
    """`Inception` for images of 32x32: the same blocks with an eighth of the features.

    The stem is one 3x3 convolution, without early pooling; 10 outputs; dropout of .4, no local
    response normalization. 161,238 parameters. Attributes are those of `InceptionNet`.

    Example:
      >>> from jbn.models import SmallInception
      >>> model = SmallInception()
      >>> model.stem, model.width, model.outputs
      ('small', 8, 10)
    """

    stem: Literal["full", "separable", "small"] = "small"
    width: int = 8
    outputs: int = 10
    dropout: float = 0.4


class SmallBNInception(InceptionNet):
    """`BNInception` for images of 32x32: the same blocks with an eighth of the features.

    The stem is one 3x3 convolution, without early pooling; 10 outputs; batch normalization before
    every nonlinearity, no dropout. 162,474 parameters. Attributes are those of `InceptionNet`.

    Example:
      >>> from jbn.models import SmallBNInception
      >>> model = SmallBNInception()
      >>> model.norm, model.stem, model.width, model.outputs
      ('batch', 'small', 8, 10)
    """

    stem: Literal["full", "separable", "small"] = "small"
    width: int = 8
    outputs: int = 10
    norm: Norm = "batch"
