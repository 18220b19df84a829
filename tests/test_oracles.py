"""The oracles themselves, against finite differences and against torch."""

import dataclasses

import numpy as np
import pytest
from oracles import Problem, assert_close, moments, normalize, rows, unrows

# Central differences with a step of 1e-5 in float64: truncation 1e-10, rounding 1e-16 / 1e-5 of
# sums of size 10.
DIFFERENCE_STEP = 1e-5
DIFFERENCE_ERROR = 3e-8


def problem(seed=0, shape=(3, 4, 5), axis=-1, mask="weights", unbiased=True):
    rng = np.random.default_rng(seed)
    features = [shape[a % len(shape)] for a in (axis if isinstance(axis, tuple) else (axis,))]
    mask = {
        "none": None,
        "weights": rng.uniform(0.2, 2, shape),
        "one feature out": np.broadcast_to(np.arange(shape[-1]) != 1, shape).astype(float),
    }[mask]
    return Problem(
        x=rng.normal(0.5, 2, shape),
        scale=rng.normal(1, 0.3, features),
        bias=rng.normal(0, 1, features),
        mean=rng.normal(0, 1, features),
        var=rng.uniform(0.5, 2, features),
        axis=axis,
        mask=mask,
        unbiased=unbiased,
        epsilon=1e-2,
        momentum=0.7,
    )


def differences(f, value):
    value = np.asarray(value, dtype=np.float64)
    out = np.zeros(value.shape)
    for index in np.ndindex(value.shape):
        step = np.zeros(value.shape)
        step[index] = DIFFERENCE_STEP
        out[index] = (f(value + step) - f(value - step)) / (2 * DIFFERENCE_STEP)
    return out


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("mask", ["none", "weights", "one feature out"])
@pytest.mark.parametrize("axis", [-1, (0, 2)])
def test_gradient_is_finite_differences(axis, mask, unbiased):
    p = problem(axis=axis, mask=mask, unbiased=unbiased)
    rng = np.random.default_rng(1)
    dy = rng.normal(size=p.x.shape)
    dmean, dvar = rng.normal(size=p.mean.shape), rng.normal(size=p.mean.shape)

    def loss(**change):
        y, (mean, var, _) = dataclasses.replace(p, **change).forward()
        return (y * dy).sum() + (mean * dmean).sum() + (var * dvar).sum()

    gradient = p.gradient(dy, dmean, dvar)
    names = ["x", "scale", "bias", "mean", "var", "epsilon", "momentum"]
    if mask == "weights":
        names.append("mask")
    for name in names:
        want = differences(lambda value, name=name: loss(**{name: value}), getattr(p, name))
        assert_close(gradient[name], want, DIFFERENCE_ERROR, name)


def test_forward_and_gradient_are_those_of_torch():
    torch = pytest.importorskip("torch")
    p = problem(mask="none")
    dy = np.random.default_rng(2).normal(size=p.x.shape)
    args = [torch.tensor(a.reshape(-1, 5)) for a in (p.x,)]
    x = args[0].requires_grad_()
    scale = torch.tensor(p.scale, requires_grad=True)
    bias = torch.tensor(p.bias, requires_grad=True)
    mean, var = torch.tensor(p.mean), torch.tensor(p.var)
    y = torch.nn.functional.batch_norm(
        x, mean, var, scale, bias, training=True, momentum=1 - p.momentum, eps=p.epsilon
    )
    y.backward(torch.tensor(dy.reshape(-1, 5)))
    want_y, (want_mean, want_var, _) = p.forward()
    gradient = p.gradient(dy)
    exact = 1e-12  # the same formula in the same precision
    assert_close(want_y.reshape(-1, 5), y.detach().numpy(), exact, "y")
    assert_close(want_mean, mean.numpy(), exact, "mean")
    assert_close(want_var, var.numpy(), exact, "var")
    assert_close(gradient["x"].reshape(-1, 5), x.grad.numpy(), exact, "x")
    assert_close(gradient["scale"], scale.grad.numpy(), exact, "scale")
    assert_close(gradient["bias"], bias.grad.numpy(), exact, "bias")


def test_rows_and_back():
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert rows(x, (1, -1)).shape == (8, 15)
    np.testing.assert_array_equal(rows(x, 1), x.transpose(0, 2, 3, 1).reshape(-1, 3))
    np.testing.assert_array_equal(unrows(rows(x, (-2, 0)), x.shape, (-2, 0)), x)


def test_moments_ignore_what_has_no_weight():
    x = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, np.inf]])
    mean, var, count = moments(x, mask=np.array([[True, True], [True, False], [True, False]]))
    np.testing.assert_allclose(mean, [3, 2])
    np.testing.assert_allclose(var, [8 / 3, 0])
    np.testing.assert_array_equal(count, [3, 1])


def test_normalize_by_hand():
    np.testing.assert_allclose(
        normalize([[3.0, 5.0]], [1.0, 1.0], [3.0, 15.0], [2.0, 1.0], [0.5, 0.0], epsilon=1.0),
        [[2.5, 1.0]],
    )


def test_comparison_refuses_nan_and_shapes():
    with pytest.raises(AssertionError):
        assert_close(np.array([np.nan]), np.array([1.0]), 1.0)
    with pytest.raises(AssertionError):
        assert_close(np.zeros((2,)), np.zeros((2, 1)), 1.0)
    with pytest.raises(AssertionError):
        assert_close(np.array([1.1]), np.array([1.0]), 0.05)
