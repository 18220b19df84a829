"""`python -m benchmarks.train_step` on a tiny network; torch's network equals ours."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import train_step
from experiments.studies.imagenet import network as networks
from jbn.models import InceptionNet


def test_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(train_step, "WAYS", ("jbn",))  # Each takes seconds to compile.
    train_step.main(train_step.Options(preset="smoke", output=tmp_path))
    result = json.loads((tmp_path / "train_step_cpu.json").read_text())
    assert set(result["seconds"]) >= set(train_step.WAYS)
    assert min(result["seconds"].values()) > 0
    text = (tmp_path / "train_step_cpu.md").read_text()
    assert "batches of 4" in text
    assert "| jbn" in text


def test_networks_have_equally_many_parameters_but_for_biases():
    def count(way):
        network = train_step.init(way, train_step.SMOKE)
        return sum(leaf.size for leaf in jax.tree.leaves(network.params))

    assert count("jbn") == count("Flax")
    assert count("without") < count("jbn")  # A bias instead of scale and bias.


def test_torch_has_the_same_network():
    """All kinds of blocks: both strided ones, one of them on an odd size, and both pools."""
    torch = pytest.importorskip("torch")
    from benchmarks import train_step_torch

    blocks = tuple(row for row in InceptionNet.blocks if row.name in ("3c", "4a", "4e", "5b"))
    config = dataclasses.replace(train_step.SMOKE, size=10)
    model = train_step.model_of("jbn", config).copy(blocks=blocks)
    image, _ = train_step.draw(config)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, training=False), image)
    rng = np.random.default_rng(1)

    def draw(leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:
            return 1 + noise / 4
        return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))

    params = jax.tree.map(draw, shapes["params"])
    stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes["batch_stats"])
    theirs = train_step_torch.InceptionNet(blocks, config.width, train_step.CLASSES)
    train_step_torch.load(theirs, {"params": params})
    counted = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(leaf.numel() for leaf in theirs.parameters()) == counted

    @jax.jit
    def forward(params, image):
        variables = {"params": params, "batch_stats": stats}
        x = networks.inputs(image)
        return model.apply(variables, x, training=True, mutable=["batch_stats"])

    ours, _ = forward(params, image)
    with torch.no_grad():
        logits = theirs.train()(train_step_torch.inputs(torch.tensor(image)))
    # Float32 sums in different orders, through statistics of as few as 16 values.
    np.testing.assert_allclose(logits.numpy(), ours, atol=1e-4)
