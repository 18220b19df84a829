"""`jbn.batch_norm` against torch and Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batch_norm_calls import infer, setting, train
from oracles import (
    assert_close,
)
from strategies import values

import jbn

# torch and Flax in float32: their own errors at mean 0.5, std 1, added to ours.
PEER = 1e-5


def test_equal_to_torch():
    torch = pytest.importorskip("torch")
    params, state = setting((5,))
    x, dy = values(15, (4, 3, 6, 5), mean=0.5), values(16, (4, 3, 6, 5))

    def ours(x, p, state):
        y, new = train(x, p, state, momentum=0.9)
        return jnp.sum(y * dy), (y, new)

    ours = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))
    (_, (y, new)), gradient = jax.device_get(ours(x, params, state))

    def tensor(a):
        return torch.tensor(np.asarray(a))

    tx = tensor(np.asarray(x).transpose(0, 3, 1, 2)).requires_grad_()
    scale, bias = (tensor(p).requires_grad_() for p in params)
    mean, var = tensor(state.mean), tensor(state.var)
    ty = torch.nn.functional.batch_norm(
        tx, mean, var, scale, bias, training=True, momentum=0.1, eps=1e-5
    )
    ty.backward(tensor(np.asarray(dy).transpose(0, 3, 1, 2)))
    assert_close(y.transpose(0, 3, 1, 2), ty.detach().numpy(), PEER, "y")
    assert_close(new.mean, mean.numpy(), PEER, "mean")
    assert_close(new.var, var.numpy(), PEER, "var")
    assert_close(gradient[0].transpose(0, 3, 1, 2), tx.grad.numpy(), PEER, "x")
    assert_close(gradient[1].scale, scale.grad.numpy(), 5 * PEER, "scale")
    assert_close(gradient[1].bias, bias.grad.numpy(), 5 * PEER, "bias")


@pytest.mark.parametrize("masked", [False, True])
def test_equal_to_flax(masked):
    nn = pytest.importorskip("flax.linen")
    params, state = setting((5,))
    x = values(17, (8, 6, 5), mean=0.5)
    mask = jnp.asarray(np.random.default_rng(17).random((8, 6, 1)) < 0.7) if masked else None
    model = nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)
    variables = {
        "params": {"scale": params.scale, "bias": params.bias},
        "batch_stats": {"mean": state.mean, "var": state.var},
    }
    evaluate = nn.BatchNorm(use_running_average=True)
    (want_y, moved), inferred = jax.jit(
        lambda variables, x: (
            model.apply(variables, x, mask=mask, mutable=["batch_stats"]),
            evaluate.apply(variables, x),
        )
    )(variables, x)
    y, new = train(x, params, state, mask=mask, momentum=0.9, unbiased=False)
    assert_close(y, want_y, PEER, "y")
    assert_close(new.mean, moved["batch_stats"]["mean"], PEER, "mean")
    assert_close(new.var, moved["batch_stats"]["var"], PEER, "var")
    assert_close(infer(x, params, state)[0], inferred, PEER, "inference")


@pytest.mark.lenient("promotion")
def test_complex_equal_to_flax():
    nn = pytest.importorskip("flax.linen")
    x = values(18, (16, 3), "complex64", mean=0.5)
    model = nn.BatchNorm(
        use_running_average=False,
        momentum=0.9,
        use_fast_variance=False,
        use_scale=False,
        use_bias=False,
    )
    state = jbn.BatchNormState(np.zeros(3, np.complex64), np.ones(3, np.float32), np.int32(0))
    variables = {"batch_stats": {"mean": state.mean, "var": state.var}}
    want_y, moved = jax.jit(lambda *v: model.apply(*v, mutable=["batch_stats"]))(variables, x)
    y, new = train(x, jbn.BatchNormParams(None, None), state, momentum=0.9, unbiased=False)
    assert_close(y, want_y, PEER, "y")
    assert_close(new.mean, moved["batch_stats"]["mean"], PEER, "mean")
    assert_close(new.var, moved["batch_stats"]["var"], PEER, "var")
