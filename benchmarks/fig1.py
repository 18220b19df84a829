"""Measure steps per second of the network of Fig. 1: jbn's training loop, Flax + optax, torch.

784-100-100-100-10 sigmoid units, with and without batch normalization, batches of 60, SGD at .1.

  jbn           `training.devices` as `python -m experiments mnist_mlp` uses it: chunks of 250
                steps in one jitted scan, the data set on the device, drawing of batches included
  Flax + optax  the same model with Flax's BatchNorm, a jitted step called from Python on batches
                indexed from a NumPy array of float32
  torch         Linear, BatchNorm1d, SGD in eager mode on batches indexed from a float32 tensor;
                with 1 thread or one per core, whichever is faster

The experiment itself is timed too: one seed, with its evaluations, checkpoints and figures.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen
from jaxtyping import Array, Float, Int

from benchmarks import common
from benchmarks.common import Run
from experiments import environment, run_dir, sampling
from experiments.studies.mnist_mlp import measure as mnist_mlp
from experiments.studies.mnist_mlp.config import PRESETS, Config
from experiments.study import Study
from experiments.tasks import data
from experiments.tasks.data import Dataset
from experiments.training.devices import Devices
from jbn.models import MLP

NETWORKS = ("without", "with")
LONG_RUN = 50_000  # Steps in the paper.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: a few steps on the digits inside scikit-learn, to see that all works"""
    repeats: int | None = None
    """rounds, of which the median counts; None takes 9 (smoke: 2)"""
    data_dir: Path | None = None
    """folder with mnist/*.gz; else JBN_DATA, else the digits inside scikit-learn"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


# ---- Training loops ------------------------------------------------------------------------------


def jbn_run(config: Config, dataset: Dataset, names: tuple[str, ...]) -> Run:
    """Train the named networks in one scan, as the experiment does."""
    images, labels = data.binary(dataset.train_images), dataset.train_labels
    examples = jax.device_put((images, labels))
    init = jax.jit(jax.vmap(lambda key: mnist_mlp.init(config, key, images.shape[1])))
    every = init(sampling.keys([0], "weights"))
    state = {name: every[name] for name in names}
    run_chunk = Devices().compile(mnist_mlp.make_step(config), config.batch_size)
    done = 0

    def run(count: int) -> None:
        nonlocal state, done
        for _ in range(count // config.evaluate_every):
            until = done + config.evaluate_every
            drawn = sampling.batch_indices(0, done, until, config.batch_size, len(labels))
            state = jax.block_until_ready(run_chunk(state, examples, drawn[:, None]))
            done = until

    return run


def flax_run(config: Config, dataset: Dataset, name: str) -> Run:
    """Train one network step by step from Python with Flax and optax."""
    images = data.binary(dataset.train_images).astype(np.float32)
    labels = dataset.train_labels.astype(np.int32)
    norm = functools.partial(linen.BatchNorm, momentum=config.momentum)
    model = MLP(
        hidden=config.hidden,
        kernel_init=linen.initializers.normal(config.sigma),
        norm=norm if name == "with" else None,
    )
    init = jax.jit(functools.partial(model.init, training=False))
    variables = init(sampling.keys([0], "weights")[0], images[:1])
    optimizer = optax.sgd(config.learning_rate)
    params, stats = variables["params"], variables.get("batch_stats", {})
    carry = params, stats, optimizer.init(params)

    @jax.jit
    def step(carry: Any, x: Float[Array, "N F"], labels: Int[Array, "N"]) -> Any:
        params, stats, opt_state = carry

        def loss(params: Any) -> tuple[Array, Any]:
            logits, moved = model.apply(
                {"params": params, "batch_stats": stats}, x, training=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), moved.get("batch_stats", {})

        gradient, moved = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), moved, opt_state

    batches = shuffled(len(labels), config.batch_size)

    def run(count: int) -> None:
        nonlocal carry
        for rows in itertools.islice(batches, count):
            carry = step(carry, images[rows], labels[rows])
        jax.block_until_ready(carry)

    return run


def torch_run(config: Config, dataset: Dataset, name: str) -> Run:
    """Train one network in torch, eagerly, on the CPU."""
    import torch

    images = torch.from_numpy(data.binary(dataset.train_images).astype(np.float32))
    labels = torch.from_numpy(dataset.train_labels.astype(np.int64))
    layers: list[torch.nn.Module] = []
    width = images.shape[1]
    for hidden in config.hidden:
        layers.append(torch.nn.Linear(width, hidden, bias=name == "without"))
        if name == "with":
            layers.append(torch.nn.BatchNorm1d(hidden, momentum=1 - config.momentum))
        layers.append(torch.nn.Sigmoid())
        width = hidden
    model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
    for module in model:
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=config.sigma)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    loss = torch.nn.CrossEntropyLoss()
    batches = shuffled(len(labels), config.batch_size)

    def run(count: int) -> None:
        for drawn in itertools.islice(batches, count):
            rows = torch.from_numpy(drawn)
            optimizer.zero_grad()
            loss(model(images[rows]), labels[rows]).backward()
            optimizer.step()

    return run


def shuffled(examples: int, batch_size: int) -> Iterator[Int[np.ndarray, "N"]]:
    """Draw the rows of one batch after another, endlessly, with a new permutation every epoch."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(examples)
        for start in range(0, examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


# ---- Measure -------------------------------------------------------------------------------------


def rates(config: Config, dataset: Dataset, *, steps: int, repeats: int) -> dict[str, Any]:
    """Measure each library's steps per second by network; "both" is one step of each of the two."""
    runs = {"jbn both": jbn_run(config, dataset, NETWORKS)}
    libraries = ["jbn", "Flax + optax"]
    for name in NETWORKS:
        runs[f"jbn {name}"] = jbn_run(config, dataset, (name,))
        runs[f"Flax + optax {name}"] = flax_run(config, dataset, name)
    if common.installed("torch"):
        libraries.append("torch")
        for name in NETWORKS:
            runs |= common.by_threads(f"torch {name}", torch_run(config, dataset, name))
    else:
        print("torch is not installed; skipping it.")
    seconds = common.fastest(common.interleaved(runs, repeats=repeats, steps=steps))
    for library in libraries[1:]:
        seconds[f"{library} both"] = sum(seconds[f"{library} {name}"] for name in NETWORKS)
    return {
        library: {name: 1 / seconds[f"{library} {name}"] for name in (*NETWORKS, "both")}
        for library in libraries
    }


def experiment(config: Config, dataset: Dataset) -> dict[str, float]:
    """Run the experiment itself in a temporary directory; return the seconds of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_dir.create(Path(folder), "mnist_mlp", config)
        run_dir.keep_environment(run, environment.describe())
        study = Study("mnist_mlp", run)
        study.add_dataset(config.dataset, dataset)
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # Hide its progress messages.
            mnist_mlp.measure(config, study)
        whole = time.perf_counter() - began
        chunks = list(run_dir.read_rows(run.path / "timing.jsonl"))
        run.lock.close()
    return {
        "steps": config.steps,
        "whole": whole,
        "train": sum(chunk["train_seconds"] for chunk in chunks),
        "evaluate": sum(chunk["evaluate_seconds"] for chunk in chunks),
    }


# ---- Report --------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    measured, run = result["steps_per_second"], result["experiment"]
    columns = (*NETWORKS, "both")
    lines = [
        [library, *(f"{rate[name]:,.0f}" for name in columns)] for library, rate in measured.items()
    ]
    for library in list(measured)[1:]:
        ratios = (measured["jbn"][name] / measured[library][name] for name in columns)
        lines.append([f"jbn / {library}", *(f"{ratio:.2f}" for ratio in ratios)])
    at_this_rate = LONG_RUN / measured["jbn"]["both"]
    parts = [
        "# Training the network of Fig. 1",
        f"`python -m benchmarks.fig1` on {common.describe(result['env'])}. "
        f"Data: {result['data']['name']}, {result['data']['train_examples']:,} examples.",
        "Steps per second, without and with batch normalization; `both` is one step of each. "
        "What each library does is in the docstring of `benchmarks/fig1.py`.",
        common.table(["", "without BN", "with BN", "both"], lines),
        f"{LONG_RUN:,} steps of both networks, one seed, at this rate: {at_this_rate:.0f} s.",
        f"The experiment itself, {run['steps']:,} steps, one seed: {run['whole']:.0f} s, of which "
        f"training {run['train']:.0f} s with its compilation, evaluation {run['evaluate']:.0f} s; "
        "the rest are checkpoints and figures.",
    ]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print, write; return the result."""
    smoke = options.preset == "smoke"
    config = dataclasses.replace(PRESETS["paper"], seeds=1, steps=LONG_RUN)
    if smoke:
        config = dataclasses.replace(
            PRESETS["smoke"],
            seeds=1,
            steps=40,
            hidden=(8,),  # One layer: quick to compile.
        )
    given = options.data_dir or os.environ.get("JBN_DATA")
    dataset = data.load("digits" if smoke or not given else "mnist", data_dir=options.data_dir)
    steps = config.evaluate_every * (1 if smoke else 4)
    repeats = options.repeats or (2 if smoke else 9)
    result = {
        "env": common.environment(),
        "data": dataset.describe(),
        "options": {"preset": options.preset, "steps": steps, "repeats": repeats},
        "steps_per_second": rates(config, dataset, steps=steps, repeats=repeats),
        "experiment": experiment(config, dataset),
    }
    markdown = report(result)
    print(f"\n{markdown}")
    if output := options.output or (None if smoke else common.RESULTS):
        common.write(output, f"fig1_{jax.default_backend()}", result, markdown)
    return result


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
