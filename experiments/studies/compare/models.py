"""The networks that the study `compare` trains, each with every norm."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import jbn
from experiments.studies.compare.config import Config
from jbn.linen import BatchNorm, BatchRenorm, GhostBatchNorm, GroupNorm
from jbn.models import CNN, MLP, ResNet

BFLOAT16 = "batch_bfloat16"


@functools.cache
def make_model(config: Config, model: str, norm: str, size: int) -> nn.Module:
    """Make a network, cached so that it is compiled once.

    Args:
      size: batch size, which sets the momentum of running averages and the schedule of renorm.
    """
    make = make_norm(config, norm, size)
    options: dict[str, Any] = {"dtype": jnp.bfloat16} if norm == BFLOAT16 else {}
    if model == "mlp":
        init = nn.initializers.he_normal()
        return MLP(config.hidden, activation=nn.relu, kernel_init=init, norm=make, **options)
    if model == "cnn":
        return CNN(config.cnn_widths, norm=make, **options)
    blocks = (config.resnet_blocks,) * len(config.resnet_widths)
    return ResNet(blocks, config.resnet_widths, norm=make, **options)


def make_norm(config: Config, norm: str, size: int) -> str | Callable[..., nn.Module]:
    """Make a norm in the form that models accept.

    Ioffe (2017) relaxes renorm's r to 3 over steps 5k to 40k of 160k, and d to 5 over 5k to 25k.
    """
    steps = config.examples // size

    def limit(first: float, last: float, until: float) -> Callable[[Array], Array]:
        at = np.array([5.0, until]) / 160 * steps
        return lambda count: jnp.interp(count, jnp.asarray(at), jnp.array([first, last]))

    # Without Bessel's correction, the variance of a small batch is too small.
    bn: dict[str, Any] = {
        "momentum": jbn.debiased(max(0.0, 1 - size / config.memory)),
        "unbiased": True,
    }
    norms: dict[str, Callable[..., nn.Module]] = {
        "batch": functools.partial(BatchNorm, **bn),
        BFLOAT16: functools.partial(BatchNorm, **bn),
        "ghost": functools.partial(GhostBatchNorm, batch_size=config.ghost, **bn),
        "renorm": functools.partial(
            BatchRenorm, r_max=limit(1.0, 3.0, until=40), d_max=limit(0.0, 5.0, until=25), **bn
        ),
        "group": functools.partial(GroupNorm, groups=config.groups),
    }
    return norms.get(norm, norm)
