"""The benchmarks run and write readable reports; no time is asserted."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, fig1, gpu, op, op_steps, peers

WAYS = [
    pytest.param(
        make,
        marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason="not installed"),
        id=name,
    )
    for name, module, make in (
        ("jbn", "jbn", peers.with_jbn),
        ("flax", "flax", peers.with_flax),
        ("flax_two_pass", "flax", functools.partial(peers.with_flax, fast=False)),
        ("haiku", "haiku", peers.with_haiku),
        ("equinox", "equinox", peers.with_equinox),
    )
]


@pytest.mark.parametrize("make", WAYS)
def test_steps_are_of_the_whole_operation(make):
    # Compare a step of the loop with one by hand in float64: nothing is left out, nothing drifts.
    shape, ratio = (6, 2, 2, 3), op_steps.CALM
    candidate = make(shape, "float32")
    x, scale, bias, stats = op_steps.start(candidate, shape, "float32", ratio)
    step = functools.partial(op_steps.steps, candidate.apply, ratio=ratio, backward=True)
    got_x, got_scale, got_bias, got_stats = jax.jit(step)((x, scale, bias, stats), 1)

    flat = np.asarray(jnp.moveaxis(x, 1, -1) if candidate.channels_first else x, np.float64)
    flat = flat.reshape(-1, 3)
    std = np.sqrt(flat.var(0) + 1e-5)
    xhat = (flat - flat.mean(0)) / std
    y = xhat + ratio
    dx = (y - y.mean(0) - xhat * (y * xhat).mean(0)) / std
    got_x = jnp.moveaxis(got_x, 1, -1) if candidate.channels_first else got_x
    np.testing.assert_allclose(got_x.reshape(-1, 3), y + dx / 2, atol=1e-5)
    np.testing.assert_allclose(got_scale, 1 - 0.1 * ((y * xhat).mean(0) - 1), atol=1e-5)
    np.testing.assert_allclose(got_bias, ratio - 0.1 * (y.mean(0) - ratio), atol=1e-5)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(got_stats), strict=True)
    ]
    assert any(moved)


def test_op_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(op, "DTYPES", ("bfloat16",))  # The test above covers float32.
    op.main(op.Options(preset="smoke", output=tmp_path))
    result = json.loads((tmp_path / "op_cpu.json").read_text())
    assert len(result["rows"]) == len(op.PASSES) * len(op.SMOKE_CASES)
    for row in result["rows"]:
        assert {"copy", "jbn", "Flax", "Flax, two-pass"} <= set(row["seconds"])
        assert ("Haiku" in row["seconds"]) <= ("padded" not in row["case"])
        assert all(seconds > 0 for seconds in row["seconds"].values())
    assert max(result["errors"]["jbn"]) <= 4e-6
    assert max(result["errors"]["jbn, 8 shards"]) <= 4e-6
    text = (tmp_path / "op_cpu.md").read_text()
    assert "geometric mean" in text
    assert "Largest error" in text


def test_op_refuses_unknown_cases():
    with pytest.raises(SystemExit, match="256x100"):
        op.main(op.Options(cases=("1x2x3",)))


def test_interleaved_takes_the_median_of_the_rounds():
    taken = {"a": [], "b": []}
    seconds = common.interleaved(
        {name: counts.append for name, counts in taken.items()}, repeats=3, steps=7
    )
    assert taken == {"a": [7] * 4, "b": [7] * 4}  # One call compiles.
    assert set(seconds) == {"a", "b"}


def test_fig1_reports(tmp_path, monkeypatch):
    # The experiment itself is run by tests/experiments/test_mnist_mlp.py.
    seconds = {"steps": 40, "whole": 3.0, "train": 2.0, "evaluate": 0.5}
    monkeypatch.setattr(fig1, "experiment", lambda config, dataset: seconds)
    fig1.main(fig1.Options(preset="smoke", output=tmp_path))
    result = json.loads((tmp_path / "fig1_cpu.json").read_text())
    for rate in result["steps_per_second"].values():
        assert set(rate) == {"without", "with", "both"}
        assert min(rate.values()) > 0
    assert result["experiment"] == seconds
    assert "jbn / Flax + optax" in (tmp_path / "fig1_cpu.md").read_text()


def test_gpu_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PASSES", gpu.PASSES[1:])
    options = gpu.Options(
        output=tmp_path, preset="smoke", dtypes=("bfloat16",), repeats=1, seconds=0.0
    )
    gpu.main(options)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["tests"]["summary"].startswith("2 passed")
    assert len(result["rows"]) == 5
    for row in result["rows"]:
        assert {"copy", "jbn", "Flax", "none"} <= set(row["seconds"])
        assert min(row["seconds"].values()) > 0
    assert "ResNet-50, forward + backward, bfloat16" in (tmp_path / "gpu.md").read_text()


def test_gpu_says_what_it_needs(tmp_path):
    with pytest.raises(SystemExit, match="Expected a GPU, got JAX on cpu"):
        gpu.main(gpu.Options(output=tmp_path))
    with pytest.raises(
        SystemExit, match="Expected parts among tests, op, block, resnet50, got ops"
    ):
        gpu.main(gpu.Options(output=tmp_path, parts=("ops",)))


def test_what_failed_is_a_note_of_its_row(tmp_path):
    def fails():
        raise ValueError("no memory")

    case = gpu.cases(gpu.Options(output=tmp_path, preset="smoke", parts=("op",)))[0]
    ready = {name: gpu.or_error(fails) for name in case.ways}
    options = gpu.Options(output=tmp_path, preset="smoke", repeats=1, seconds=0.0)
    row = gpu.measure(case, ready, options)
    assert set(row["seconds"]) == {"copy"}
    report = gpu.report({"env": common.environment(), "rows": [row], "left_out": ["the rest"]})
    assert "jbn, op 4x3x3x8, forward, bfloat16: ValueError: no memory" in report
    assert "Left out, for time: the rest." in report
