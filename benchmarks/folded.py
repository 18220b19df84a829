"""Compare the evaluation of networks with batch norms and of the same networks with them folded.

`jbn.fold_model` folds batch normalization in inference into the kernels and biases of the
convolutions. The compiler already fuses the normalization with the operations after it, so this
benchmark measures what folding still gains: seconds per batch under `jit`, with weights as
arguments, and XLA's counts for the two compiled programs. Weights are random, and no statistic,
scale or bias is 0 or 1. The outputs are compared too.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jbn
from benchmarks import common
from benchmarks.common import Run
from jbn.models import BNInception, ResNet, SmallBNInception, resnet50

NETWORKS: dict[str, nn.Module] = {
    "ResNet-50": resnet50(norm="batch"),
    "BN-Inception": BNInception(),
}
SMOKE: dict[str, nn.Module] = {
    "ResNet-8": ResNet(blocks=(1, 1, 1), widths=(4, 8, 16), norm="batch"),
    "small BN-Inception": SmallBNInception(),
}
WAYS = ("unfolded", "folded")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write the result."""

    preset: Literal["smoke", "full"] = "full"
    """smoke: tiny networks, seconds, to see that all works"""
    batches: tuple[int, ...] = (1, 16)
    """numbers of images"""
    repeats: int | None = None
    """rounds, of which the median counts; None takes 9 (smoke: 2)"""
    output: Path | None = None
    """folder for JSON and Markdown; None is benchmarks/results for a full run, else none"""


def measure(name: str, model: nn.Module, size: int, options: Options) -> list[dict[str, Any]]:
    """Time and count one network, folded and not; print each batch size once measured."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, training=False), images)
    variables = trained(shapes)
    folded = jbn.fold_model(model, images, variables=variables, training=False)
    networks = {
        WAYS[0]: (model, variables),
        WAYS[1]: (model.copy(norm=None, use_bias=True), folded),
    }
    rows = []
    for batch in options.batches:
        shape = (batch, size, size, 3)
        x = jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))
        runs, outputs, costs = {}, {}, {}
        for way, (network, values) in networks.items():
            program = compiled(network, values, x)
            runs[way] = repeated(program, values, x)
            outputs[way] = np.asarray(program(values, x), np.float64)
            costs[way] = cost(program)
        smoke = options.preset == "smoke"
        repeats = options.repeats or (2 if smoke else 9)
        steps = None if batch == 1 and not smoke else 1
        seconds = common.interleaved(runs, repeats=repeats, steps=steps, least=1)
        error = np.abs(outputs["folded"] - outputs["unfolded"]).max()
        error /= np.abs(outputs["unfolded"]).max()
        row = {"network": name, "batch": batch, "seconds": seconds, "error": float(error)}
        rows.append(
            {**row, "cost": costs, "norms": len(jax.tree.leaves(shapes["batch_stats"])) // 2}
        )
        ratio = seconds["folded"] / seconds["unfolded"]
        print(f"{name}, batch of {batch}: folded / unfolded {ratio:.2f}", flush=True)
    return rows


def trained(shapes: Any) -> Any:
    """Draw variables that preserve the signal's scale; none is 0 or 1, variances are positive."""
    rng = np.random.default_rng(0)

    def one(leaf: Any) -> Any:
        if len(leaf.shape) == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(deviation * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(one, shapes)


def compiled(model: nn.Module, variables: Any, x: Any) -> Any:
    """Compile the evaluation of a network."""
    evaluate = jax.jit(lambda variables, x: model.apply(variables, x, training=False))
    return evaluate.lower(variables, x).compile()


def repeated(program: Any, variables: Any, x: Any) -> Run:
    """Make the run that evaluates one batch repeatedly."""

    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(program(variables, x))

    return run


def cost(program: Any) -> dict[str, float]:
    """Return XLA's own counts of a program."""
    counted = program.cost_analysis()
    return {"flops": counted["flops"], "bytes": counted["bytes accessed"]}


def report(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    header = ["", "norms", "ms, unfolded", "ms, folded", "folded / unfolded"]
    header += ["GFLOP", "folded", "GB", "folded", "error"]
    lines = []
    for row in result["rows"]:
        before, after = (1e3 * row["seconds"][way] for way in WAYS)
        line = [f"{row['network']}, batch of {row['batch']}", str(row["norms"])]
        line += [f"{before:.1f}", f"{after:.1f}", f"{after / before:.2f}"]
        for kind in ("flops", "bytes"):
            line += [f"{row['cost'][way][kind] / 1e9:.3f}" for way in WAYS]
        lines.append([*line, f"{row['error']:.0e}"])
    parts = [
        "# Folded batch norms",
        f"`python -m benchmarks.folded` on {common.describe(result['env'])}.",
        f"Milliseconds of evaluating one batch of {result['size']} x {result['size']} images, "
        "medians of interleaved rounds; FLOP and bytes as XLA counts them in the compiled "
        "programs; the largest difference of the outputs relative to the largest output. What is "
        "compared is in the docstring of `benchmarks/folded.py`.",
        common.table(header, lines),
    ]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> None:
    """Measure, print, write."""
    smoke = options.preset == "smoke"
    size = 32 if smoke else 224
    rows = []
    for name, model in (SMOKE if smoke else NETWORKS).items():
        rows += measure(name, model, size, options)
    result = {"env": common.environment(), "size": size, "rows": rows}
    print(f"\n{report(result)}")
    folder = options.output or (None if smoke else common.RESULTS)
    if folder is not None:
        device = result["env"]["device"]["platform"]
        common.write(folder, f"folded_{device}", result, report(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
