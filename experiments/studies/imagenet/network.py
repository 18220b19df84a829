"""The network of a variant, its optimizer, and its training step on one or many devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from experiments.studies.imagenet.config import Config, group_size
from experiments.studies.imagenet.variants import Variant
from experiments.training.networks import Network, cross_entropy
from jbn.linen import BatchNorm
from jbn.models import InceptionNet

GROUP, MEMBER = "group", "member"  # Mesh axes: the members of a group share statistics.
BATCH = P((GROUP, MEMBER))
# Of ImageNet's colors on a scale from 0 to 1, the values in common use.
COLOR_MEAN, COLOR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TrainStep = Callable[[Network, Any, Array], tuple[Network, Float[Array, ""]]]
Forward = Callable[[Any, Any, Any, Array], tuple[Float[Array, ""], Any]]


class Batch(NamedTuple):
    """Images with colors from 0 to 255, and their labels."""

    image: UInt8[Array, "N H W 3"]
    label: Int[Array, "N"]


def make_model(
    config: Config, variant: Variant, classes: int, *, axis_name: str | None = None
) -> InceptionNet:
    """Make the network; in training, statistics are shared over the devices of `axis_name`."""
    norm = functools.partial(BatchNorm, momentum=0.99, unbiased=True, axis_name=axis_name)
    drop = config.drop if variant.dropped is None else variant.dropped
    dropped = drop if variant.dropout or variant.dropped is not None else 0.0
    blocks = InceptionNet.blocks[: config.blocks]
    return InceptionNet(
        blocks=blocks,
        stem=config.stem,
        width=config.width,
        outputs=classes,
        local_response=variant.lrn,
        local_response_alpha=config.lrn_alpha,
        dropout=dropped,
        norm=norm if variant.norm else None,
        per_activation=[block.name for block in blocks[-2:]] if variant.per_activation else (),
        activation=nn.sigmoid if variant.sigmoid else nn.relu,
        kernel_init=nn.initializers.variance_scaling(
            2.0 * variant.init_scale**2, "fan_in", "truncated_normal"
        ),
        dtype=jnp.dtype(config.dtype),
    )


def make_optimizer(config: Config, variant: Variant, devices: int) -> optax.GradientTransformation:
    """Make SGD with momentum, L2 on the kernels, and an exponentially decaying rate."""
    first = config.learning_rate * variant.rate * (devices if config.scale_rate else 1)
    left = config.rate_left**variant.decay
    rate = optax.exponential_decay(first, config.steps, left)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay * variant.l2, mask=_kernels),
        optax.sgd(rate, momentum=config.momentum),
    )


def _kernels(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_mesh(devices: list[jax.Device], statistics: str) -> Mesh:
    """Make the mesh for the option `statistics`.

    Raises:
      ValueError: a group that does not divide the number of devices.
    """
    count = len(devices)
    size = group_size(statistics, count)
    axes = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((count // size, size), (GROUP, MEMBER), axes, devices=devices)


def init(model: InceptionNet, optimizer: Any, key: PRNGKeyArray, size: int) -> Network:
    """Initialize a network for images of a given size."""
    x = jnp.ones((1, size, size, 3))
    variables = jax.jit(functools.partial(model.init, training=False))(key, x)
    params = variables["params"]
    return Network(params, variables.get("batch_stats", {}), optimizer.init(params))


def inputs(image: UInt8[Array, "N H W 3"]) -> Float[Array, "N H W 3"]:
    """Scale colors to a mean of about 0 and a standard deviation of about 1."""
    mean, std = (jnp.array(of).reshape(1, 1, 1, 3) for of in (COLOR_MEAN, COLOR_STD))
    return (image / 255 - mean) / std


# ---- The step ------------------------------------------------------------------------------------


def forward_in_groups(config: Config, variant: Variant, classes: int, groups: int) -> Forward:
    """Make `(params, batch_stats, batch, key) -> (loss, batch_stats)`, in training mode.

    Each group of consecutive examples has its own batch statistics. The running statistics are
    updated with the means and variances averaged over groups, which is what Algorithm 2 averages.
    """
    forward = make_forward(config, variant, classes)

    def run(params: Any, batch_stats: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
        parts = jax.tree.map(lambda leaf: leaf.reshape(groups, -1, *leaf.shape[1:]), batch)
        keys = jax.vmap(lambda group: jax.random.fold_in(key, group))(jnp.arange(groups))
        losses, moved = jax.vmap(forward, (None, None, 0, 0))(params, batch_stats, parts, keys)
        return losses.mean(), jax.tree.map(lambda leaf: leaf.mean(0), moved)

    return run


def make_forward(
    config: Config, variant: Variant, classes: int, *, axis_name: str | None = None
) -> Forward:
    """Make `(params, batch_stats, batch, key) -> (loss, batch_stats)`, in training mode."""
    model = make_model(config, variant, classes, axis_name=axis_name)

    def forward(params: Any, batch_stats: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
        outputs, moved = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs(batch.image),
            training=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean(cross_entropy(outputs, batch.label)), moved.get("batch_stats", {})

    if not config.remat:
        return forward
    blocks = jax.checkpoint_policies.save_only_these_names("block")
    return jax.checkpoint(forward, policy=blocks)


def make_step(
    config: Config, variant: Variant, classes: int, mesh: Mesh, way: str
) -> tuple[TrainStep, NamedSharding]:
    """Make the jitted step `(network, batch, key) -> (network, loss)`.

    The batch is sharded over the mesh; the network is replicated. With `jit`, XLA partitions one
    program over the whole batch, whose groups are an axis of `vmap`. With `shard_map`, each device
    runs its own program, with collectives over named axes. The results are the same up to rounding,
    except for dropout: its masks are drawn differently if several devices share statistics.

    Returns:
      The step, and the sharding of a batch.
    """
    optimizer = make_optimizer(config, variant, mesh.size)

    def update(network: Network, gradient: Any, batch_stats: Any) -> Network:
        updates, opt_state = optimizer.update(gradient, network.opt_state, network.params)
        return Network(optax.apply_updates(network.params, updates), batch_stats, opt_state)

    def advance(network: Network, batch: Batch, key: PRNGKeyArray) -> tuple[Network, Array]:
        forward = forward_in_groups(config, variant, classes, mesh.shape[GROUP])

        def loss(params: Any) -> tuple[Array, Any]:
            return forward(params, network.batch_stats, batch, key)

        (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(network.params)
        return update(network, gradient, moved), value

    def advance_part(network: Network, batch: Batch, key: PRNGKeyArray) -> tuple[Network, Array]:
        forward = make_forward(config, variant, classes, axis_name=MEMBER)
        own = jax.random.fold_in(key, jax.lax.axis_index((GROUP, MEMBER)))

        def loss(params: Any) -> tuple[Array, Any]:
            return forward(params, network.batch_stats, batch, own)

        # Differentiate each device's own copy: shard_map would sum the gradient of a replicated one
        # over devices leaf by leaf.
        params = jax.lax.pcast(network.params, (GROUP, MEMBER), to="varying")
        (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        gradient, value = jax.lax.pmean((gradient, value), (GROUP, MEMBER))
        return update(network, gradient, jax.lax.pmean(moved, GROUP)), value

    sharding = NamedSharding(mesh, BATCH)
    if way == "shard_map":
        spread = jax.shard_map(advance_part, mesh=mesh, in_specs=(P(), BATCH, P()), out_specs=P())
        return jax.jit(spread, donate_argnums=0), sharding
    everywhere = NamedSharding(mesh, P())
    placed = (everywhere, sharding, everywhere)
    return jax.jit(
        advance, in_shardings=placed, out_shardings=everywhere, donate_argnums=0
    ), sharding
