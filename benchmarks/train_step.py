"""Measure images per second of the training step of the study `imagenet` on CIFAR-10's images.

This is its preset `cifar`: the blocks of the paper's Fig. 5 with a sixteenth of the features,
images of 32x32, batches of 32, float32, SGD with momentum and L2 on the kernels, variant BN-x5.

  jbn      as the study trains
  Flax     the same network with Flax's BatchNorm
  without  the same network without batch normalization, with biases
  torch    the same network, eager, channels last in memory; with 1 thread or one per core,
           whichever is faster

Every step uses the same batch, already in memory, so reading images is not included.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array

from benchmarks import common
from benchmarks.common import Run
from experiments.studies.imagenet import network as networks
from experiments.studies.imagenet.config import PRESETS, Config
from experiments.studies.imagenet.network import Batch
from experiments.studies.imagenet.variants import VARIANTS
from experiments.training.networks import Network, cross_entropy
from jbn.models import InceptionNet

VARIANT = VARIANTS["bn_x5"]
CLASSES = 10
SMOKE = dataclasses.replace(PRESETS["cifar"], blocks=1, width=32, size=8, batch_size=4)
WAYS = ("jbn", "Flax", "without")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: a tiny network, seconds, to see that all works"""
    repeats: int | None = None
    """rounds, of which the median counts; None takes 9 (smoke: 2)"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


def model_of(way: str, config: Config) -> InceptionNet:
    """Make the network with the given normalization; without one, it has biases."""
    model = networks.make_model(config, VARIANT, CLASSES)
    if way == "Flax":
        return model.copy(norm=functools.partial(nn.BatchNorm, momentum=0.99))
    return model.copy(norm=None) if way == "without" else model


def draw(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and labels."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.size, config.size, 3)
    image = rng.integers(256, size=shape, dtype=np.uint8)
    return image, rng.integers(CLASSES, size=len(image), dtype=np.int32)


def init(way: str, config: Config) -> Network:
    """Draw the weights in NumPy: compiling the network's own `init` takes longer than the step."""
    model, optimizer = model_of(way, config), networks.make_optimizer(config, VARIANT, 1)
    shapes = jax.eval_shape(
        lambda key: networks.init(model, optimizer, key, config.size), jax.random.key(0)
    )
    rng = np.random.default_rng(1)

    def one(path: Any, leaf: Any) -> np.ndarray:
        if leaf.ndim > 1:
            deviation = np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
            return deviation * rng.standard_normal(leaf.shape, np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    return Network(
        jax.tree.map_with_path(one, shapes.params),
        jax.tree.map_with_path(one, shapes.batch_stats),
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state),
    )


def jax_run(way: str, config: Config) -> tuple[Run, float]:
    """Make the run of training steps; return it with the seconds that compiling took."""
    model, optimizer = model_of(way, config), networks.make_optimizer(config, VARIANT, 1)

    def step(network: Network, batch: Batch) -> Network:
        def loss(params: Any) -> tuple[Array, Any]:
            outputs, moved = model.apply(
                {"params": params, "batch_stats": network.batch_stats},
                networks.inputs(batch.image),
                training=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(cross_entropy(outputs, batch.label)), moved.get("batch_stats", {})

        gradient, moved = jax.grad(loss, has_aux=True)(network.params)
        updates, opt_state = optimizer.update(gradient, network.opt_state, network.params)
        return Network(optax.apply_updates(network.params, updates), moved, opt_state)

    network, batch = jax.device_put(init(way, config)), Batch(*jax.device_put(draw(config)))
    began = time.monotonic()
    compiled = jax.jit(step, donate_argnums=0).lower(network, batch).compile()
    seconds = time.monotonic() - began

    def run(count: int) -> None:
        nonlocal network
        for _ in range(count):
            network = compiled(network, batch)
        jax.block_until_ready(network)

    return run, seconds


def torch_run(config: Config) -> Run:
    """Make the run of training steps in torch."""
    from benchmarks import train_step_torch

    model = model_of("jbn", config)
    network = train_step_torch.InceptionNet(model.blocks, config.width, CLASSES)
    train_step_torch.load(network, init("jbn", config).variables)
    rate, decay = config.learning_rate * VARIANT.rate, config.weight_decay * VARIANT.l2
    return train_step_torch.train(network, *draw(config), rate=rate, decay=decay)


def measure(config: Config, options: Options) -> dict[str, Any]:
    """Compile everything, then time it in turn."""
    runs: dict[str, Run] = {}
    compile_seconds: dict[str, float] = {}
    for way in WAYS:
        runs[way], compile_seconds[way] = jax_run(way, config)
        print(f"{way}: compiled in {compile_seconds[way]:.0f} s", flush=True)
    if common.installed("torch"):
        runs |= common.by_threads("torch", torch_run(config))
    smoke = options.preset == "smoke"
    repeats = options.repeats or (2 if smoke else 9)
    seconds = common.interleaved(runs, repeats=repeats, steps=1 if smoke else None, least=5)
    return {
        "env": common.environment(),
        "config": dataclasses.asdict(config),
        "seconds": common.fastest(seconds),
        "every": seconds,
        "compile_seconds": compile_seconds,
    }


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    config, seconds = result["config"], result["seconds"]
    rows = []
    for way, each in seconds.items():
        compiled = result["compile_seconds"].get(way)
        row = [way, f"{config['batch_size'] / each:,.0f}", f"{1e3 * each:.1f}"]
        row += [f"{each / seconds['jbn']:.2f}", "" if compiled is None else f"{compiled:.0f}"]
        rows.append(row)
    size = config["size"]
    parts = [
        "# A training step on CIFAR-10's images",
        f"`python -m benchmarks.train_step` on {common.describe(result['env'])}.",
        f"Images of {size} x {size}, batches of {config['batch_size']}, float32; medians of "
        "interleaved rounds. Of torch the faster of 1 thread and one per core counts; seconds to "
        "compile are of one time. What is compared is in the docstring of "
        "`benchmarks/train_step.py`.",
        common.table(["", "images/s", "ms a step", "time / jbn's", "s to compile"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> None:
    """Measure, print, write."""
    smoke = options.preset == "smoke"
    result = measure(SMOKE if smoke else PRESETS["cifar"], options)
    print(f"\n{report(result)}")
    folder = options.output or (None if smoke else common.RESULTS)
    if folder is not None:
        device = result["env"]["device"]["platform"]
        common.write(folder, f"train_step_{device}", result, report(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
