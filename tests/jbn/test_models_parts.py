"""The parts of networks: skip connections, Inception modules, recurrent cells."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from networks import SEQUENCE, batch, initial

from jbn import models
from jbn.models import inception


def test_inception_drops_out_and_normalizes_responses():
    model = models.SmallInception(blocks=inception.plan()[:1], outputs=3)
    x, _ = batch((8, 8, 3))
    variables = initial(model, x)
    evaluate = jax.jit(functools.partial(model.apply, training=False))
    calm, again = (evaluate(variables, x) for _ in range(2))
    np.testing.assert_array_equal(calm, again)
    train = jax.jit(functools.partial(model.apply, training=True))
    one, other = (train(variables, x, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert not np.allclose(one, other)
    assert models.Inception().local_response
    assert models.Inception().dropout == 0.4
    assert not models.BNInception().local_response
    assert not models.BNInception().dropout


@pytest.mark.parametrize("norm", ["layer", "instance", nn.InstanceNorm, None])
def test_per_activation_needs_batch_normalization(norm):
    with pytest.raises(ValueError, match="Expected batch normalization with `per_activation`"):
        inception.per_activation_norm(norm)
    assert inception.per_activation_norm("batch")
    assert inception.per_activation_norm(functools.partial(nn.BatchNorm, momentum=0.9))


def test_local_response_norm_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = np.random.default_rng(0).normal(0, 30, (2, 3, 4, 9)).astype(np.float32)
    # torch divides alpha by the window size.
    want = torch.nn.functional.local_response_norm(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), 5, alpha=5 * 2e-5, beta=0.75, k=1.0
    )
    got = jax.jit(inception.local_response_norm)(x)
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), rtol=2e-5)


def test_skip_adds_what_came_in():
    """With kernels of zero, a block is the identity with skip, and 0 without it."""
    x = np.abs(batch((8, 8, 3))[0])
    for skip in (True, False):
        model = models.ResNet(blocks=(2,), widths=(4,), outputs=3, skip=skip)
        params = {
            name: jax.tree.map(np.zeros_like, value) if name.startswith("block") else value
            for name, value in initial(model, x)["params"].items()
        }
        kernel, bias = params["output"]["kernel"], params["output"]["bias"]

        @jax.jit
        def both(params, x, model=model):
            stem = nn.relu(nn.Conv(4, (3, 3)).apply({"params": params["stem"]}, x))
            return model.apply({"params": params}, x, training=False), stem.mean((1, 2))

        y, features = both(params, x)
        want = np.asarray(features) @ kernel + bias
        np.testing.assert_allclose(y, want if skip else 0 * want + bias, atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@functools.partial(jax.jit, static_argnames=("model", "training"))
def apply(model, variables, x, training):
    return model.apply(variables, x, training=training, mutable=["batch_stats", "intermediates"])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_cells_by_hand(cell):
    model = models.recurrent.Recurrent(cell=cell, hidden=4, outputs=2, forget_bias=0.7)
    x, _ = batch(SEQUENCE, 3)
    variables = initial(model, x)
    got, sown = jax.device_get(apply(model, variables, x, training=False))
    params = jax.tree.map(np.float64, variables["params"])
    w, b = params["input"]["kernel"], params["input"]["bias"]
    u = [params[f"recurrent_{i}"] for i in range(len(params) - 2)]
    h = c = np.zeros((3, 4))
    for t in range(SEQUENCE[0]):
        z = np.split(np.float64(x)[:, t] @ w + b, len(u), axis=1)
        if cell == "rnn":
            h = np.tanh(z[0] + h @ u[0])
        elif cell == "gru":
            keep = sigmoid(z[0] + h @ u[0] + 0.7)
            reset = sigmoid(z[1] + h @ u[1])
            h = keep * h + (1 - keep) * np.tanh(z[2] + (reset * h) @ u[2])
        else:
            i, f, g, o = (z[k] + h @ u[k] for k in range(4))
            c = sigmoid(f + 0.7) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
    np.testing.assert_allclose(sown["intermediates"]["states"][0][:, -1], h, atol=1e-5)
    output = params["output"]
    np.testing.assert_allclose(got, h @ output["kernel"] + output["bias"], atol=1e-5)


def test_recurrent_input_is_normalized_over_examples_and_time():
    model = models.LSTM(hidden=4, norm="batch")
    x, _ = batch(SEQUENCE)
    variables = initial(model, x)
    _, moved = apply(model, variables, x, training=True)
    inputs = np.float64(x).reshape(-1, SEQUENCE[1]) @ variables["params"]["input"]["kernel"]
    mean = moved["batch_stats"]["input_norm"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * inputs.mean(0), atol=1e-6)


def test_recurrent_states_are_normalized_where_the_norm_comes_after():
    model = models.GRU(hidden=4, norm="batch", placement="after")
    x, _ = batch(SEQUENCE)
    variables = initial(model, x)
    assert "bias" in variables["params"]["input"]
    _, moved = apply(model, variables, x, training=True)
    states = np.float64(moved["intermediates"]["states"][0]).reshape(-1, 4)
    mean = moved["batch_stats"]["state_norm"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * states.mean(0), atol=1e-6)


def test_plan_is_the_papers_table():
    """Output sizes are as printed with a pool of 96; a pool of 128 gives 608 and 1056."""
    for pool, sizes in (
        (96, [256, 320, 576, 576, 576, 576, 576, 1024, 1024, 1024]),
        (128, [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]),
    ):
        before, got = 192, []
        for block in inception.plan(pool):
            passed = block.projection or before
            before = block.one + block.three + block.double + passed
            got.append(before)
        assert got == sizes
