"""`jbn.norms`: layer, group, instance and weight norm, against torch, Flax and float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from oracles import F32_GRADIENT, F32_VALUE, assert_close
from strategies import values

import jbn

# torch and Flax in float32 at mean 0.5, std 1: their own errors added to ours.
PEER = 1e-5
# The same function compiled in two ways.
REORDERED = 2e-6

SHAPE = (4, 5, 6, 8)

NORMS = {
    "layer": jbn.layer_norm,
    "image": functools.partial(jbn.layer_norm, axis=(1, 2, 3)),
    "group": functools.partial(jbn.group_norm, groups=2),
    "instance": jbn.instance_norm,
}
FEATURES = {"layer": (8,), "image": SHAPE[1:], "group": (8,), "instance": (8,)}


@functools.cache
def jitted(name):
    return jax.jit(NORMS[name])


def make_params(name):
    features = FEATURES[name]
    return jbn.BatchNormParams(values(0, features, mean=1.0, std=0.3), values(1, features))


def formula(name, x, params=(None, None), epsilon=1e-5):
    """Normalize in float64, by the formulas of the papers."""
    x = oracles.exact(x)
    v = x.reshape(*x.shape[:-1], 2, 4) if name == "group" else x
    axes = {"layer": -1, "image": (1, 2, 3), "group": (1, 2, 4), "instance": (1, 2)}[name]
    y = (v - v.mean(axes, keepdims=True)) / np.sqrt(v.var(axes, keepdims=True) + epsilon)
    y = y.reshape(x.shape)
    scale, bias = (None if p is None else oracles.exact(p) for p in params)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def torch_norm(torch, name, x, scale, bias):
    """Return torch's y for x with channels last."""
    f = torch.nn.functional
    if name in ("layer", "image"):
        return f.layer_norm(x, scale.shape, scale, bias)
    x = x.movedim(-1, 1)
    y = (
        f.group_norm(x, 2, scale, bias)
        if name == "group"
        else f.instance_norm(x, weight=scale, bias=bias)
    )
    return y.movedim(1, -1)


# Values and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_equal_to_torch(name):
    torch = pytest.importorskip("torch", reason="torch is a peer, which may be absent")
    params = make_params(name)
    x, dy = values(2, SHAPE, mean=0.5), values(3, SHAPE)
    y, pullback = jax.vjp(jitted(name), x, params)
    dx, dparams = pullback(dy)
    tx, scale, bias = (torch.tensor(np.asarray(v)).requires_grad_() for v in (x, *params))
    ty = torch_norm(torch, name, tx, scale, bias)
    ty.backward(torch.tensor(np.asarray(dy)))
    assert_close(y, ty.detach().numpy(), PEER, "y")
    assert_close(dx, tx.grad.numpy(), PEER, "x")
    assert_close(dparams.scale, scale.grad.numpy(), 5 * PEER, "scale")
    assert_close(dparams.bias, bias.grad.numpy(), 5 * PEER, "bias")


def test_equal_to_flax():
    nn = pytest.importorskip("flax.linen", reason="flax is not installed with jbn itself")
    x = values(4, SHAPE, mean=0.5)
    options = {"epsilon": 1e-5, "use_fast_variance": False}
    models = {
        "image": nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3), **options),
        "group": nn.GroupNorm(num_groups=2, **options),
    }
    for name, model in models.items():
        params = make_params(name)
        want = jax.jit(model.apply)({"params": params._asdict()}, x)
        assert_close(jitted(name)(x, params), want, PEER, name)


@pytest.mark.parametrize("name", NORMS)
def test_large_means(name):
    """Each example has its own mean, of either sign."""
    params = make_params(name)
    for ratio in (0.0, 1e4, 1e5):
        signs = np.array([1.0, -1.0, 0.5, 2.0], np.float32).reshape(4, 1, 1, 1)
        x = np.asarray(values(5, SHAPE, mean=ratio)) * signs
        assert_close(jitted(name)(x, params), formula(name, x, params), F32_VALUE, f"{ratio}")


@pytest.mark.parametrize("name", ["layer", "group"])  # The others differ only in their axes.
def test_derivatives_against_finite_differences(name):
    with jax.enable_x64(True):
        x = values(6, (2, 2, 1, 8), "float64")
        params = jbn.BatchNormParams(values(7, (8,), "float64"), values(8, (8,), "float64"))
        f = jax.jit(functools.partial(NORMS[name], epsilon=0.1))
        check_grads(f, (x, params), order=1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_dtypes(dtype):
    x = values(9, SHAPE, dtype, mean=0.5)
    for name in ("layer", "group"):
        y = jitted(name)(x)
        assert y.dtype == dtype
        assert_close(y, formula(name, x), oracles.output_tolerance(dtype), name)


def test_axes():
    """Channels first equals channels last with the axis moved; params may lack the bias."""
    x = values(10, SHAPE, mean=0.5)
    first = np.moveaxis(np.asarray(x), -1, 1)
    for name in ("layer", "group", "instance"):
        params = make_params(name)._replace(bias=None)
        got = jax.jit(functools.partial(NORMS[name], axis=1))(first, params)
        want = formula(name, x, params)
        assert_close(np.moveaxis(np.asarray(got), 1, -1), want, F32_VALUE, name)


def test_group_norm_has_instance_and_layer_norm_at_its_ends():
    x = values(11, SHAPE)
    assert_close(
        jax.jit(functools.partial(jbn.group_norm, groups=8))(x), jitted("instance")(x), REORDERED
    )
    assert_close(
        jax.jit(functools.partial(jbn.group_norm, groups=1))(x), jitted("image")(x), REORDERED
    )


def test_layer_norm_maps_over_examples():
    x = values(12, (6, 8))
    params = make_params("layer")
    got = jax.jit(jax.vmap(jbn.layer_norm, (0, None)))(x, params)
    assert_close(got, formula("layer", x, params), F32_VALUE)


def test_examples_do_not_mix():
    x = values(13, SHAPE)
    first = np.where(np.arange(4).reshape(4, 1, 1, 1) == 0, x, 0)
    for name in NORMS:
        other, whole = (np.asarray(jitted(name)(v)) for v in (first, x))
        assert_close(other[0], whole[0], REORDERED, name)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backward_keeps_one_array_like_x(name, dtype):
    x, params = values(14, SHAPE, dtype), make_params(name)
    _, pullback = jax.vjp(jitted(name), x, params)
    large = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size}
    assert sum(large.values()) == x.nbytes


def test_errors():
    x = values(15, SHAPE)
    params = make_params("layer")
    with pytest.raises(ValueError, match="divide"):
        jbn.group_norm(x, params, groups=3)
    with pytest.raises(ValueError, match="positive int"):
        jbn.group_norm(x, params, groups=0)
    with pytest.raises(ValueError, match="one feature axis"):
        jbn.group_norm(x, params, groups=2, axis=(1, 2))
    with pytest.raises(ValueError, match="more than one value"):
        jbn.group_norm(x[:, 0, 0], params, groups=8)
    with pytest.raises(ValueError, match="more than one value"):
        jbn.instance_norm(x[:, 0, 0], params)
    with pytest.raises(ValueError, match="more than one value"):
        jbn.layer_norm(x[..., :1])
    for norm in (jbn.instance_norm, functools.partial(jbn.group_norm, groups=2)):
        with pytest.raises(ValueError, match="first axis"):
            norm(x, axis=0)
    for norm in NORMS.values():
        with pytest.raises(ValueError, match=r"`scale` of shape"):
            norm(x, jbn.BatchNormParams(jnp.ones(7), None))
        with pytest.raises(ValueError, match="epsilon"):
            norm(x, epsilon=0.0)
        with pytest.raises(TypeError, match="floating"):
            norm(x.astype(int))
    with pytest.raises(TypeError, match="real `bias`"):
        jbn.layer_norm(x, jbn.BatchNormParams(None, jnp.ones(8, "complex64")))


# Weight norm -----------------------------------------------------------------------------------

weight_norm = jax.jit(jbn.weight_norm, static_argnames="axis")


@pytest.mark.parametrize(("shape", "axis"), [((8, 4), -1), ((3, 3, 8, 4), -1), ((4, 8, 3), 0)])
def test_weight_norm_is_torch(shape, axis):
    torch = pytest.importorskip("torch", reason="torch is a peer, which may be absent")
    kernel, scale, dw = values(20, shape), values(21, (4,), mean=1.0), values(22, shape)
    w, pullback = jax.vjp(functools.partial(weight_norm, axis=axis), kernel, scale)
    dkernel, dscale = pullback(dw)

    weight = np.moveaxis(np.asarray(kernel), axis, 0).reshape(4, -1)
    layer = torch.nn.utils.parametrizations.weight_norm(
        torch.nn.Linear(weight.shape[1], 4, bias=False), dim=0
    )
    g, v = (
        layer.parametrizations.weight.original0,
        layer.parametrizations.weight.original1,
    )
    with torch.no_grad():
        g[:, 0] = torch.tensor(np.asarray(scale))
        v[:] = torch.tensor(weight)
    layer.weight.backward(torch.tensor(np.moveaxis(np.asarray(dw), axis, 0).reshape(4, -1)))

    def rows(array):
        return np.moveaxis(np.asarray(array), axis, 0).reshape(4, -1)

    assert_close(rows(w), layer.weight.detach().numpy(), F32_VALUE)
    assert_close(rows(dkernel), v.grad.numpy(), F32_GRADIENT)
    assert_close(dscale, g.grad.numpy()[:, 0], F32_GRADIENT)


def test_weight_norm_at_any_size():
    """Lengths whose squares exceed float32's range, and a length of zero."""
    kernel = np.asarray(values(23, (8, 4)))
    want = weight_norm(kernel, None)
    np.testing.assert_allclose(np.linalg.norm(want, axis=0), np.ones(4), rtol=1e-6)
    for size in (1e-30, 1e30):
        assert_close(weight_norm(kernel * size, None), want, F32_VALUE)
    assert_close(
        weight_norm(kernel.astype("bfloat16"), None),
        weight_norm(kernel.astype("bfloat16").astype("float32"), None),
        oracles.output_tolerance("bfloat16"),
    )
    none = kernel.copy()
    none[:, 0] = 0.0
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(jbn.weight_norm(v, None) ** 3)))(none)
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_array_equal(np.asarray(weight_norm(none, None))[:, 0], np.zeros(8))


def test_weight_norm_derivatives():
    with jax.enable_x64(True):
        kernel, scale = values(24, (3, 2, 2), "float64"), values(25, (2, 2), "float64")
        f = jax.jit(functools.partial(jbn.weight_norm, axis=(1, 2)))
        check_grads(f, (kernel, scale), order=1, rtol=1e-6, atol=1e-6)


def test_weight_norm_init_makes_mean_0_and_variance_1():
    for mean, tolerance in ((0.5, 5 * F32_VALUE), (100.0, 5e-4)):  # A bias of 100 rounds by 6e-6.
        x, kernel = values(26, (50, 5, 8), mean=mean), values(27, (8, 4), std=0.05)
        pre = jnp.einsum("nti,io->nto", x, kernel, precision="highest")
        params = jax.jit(functools.partial(jbn.weight_norm_init, epsilon=1e-12))(kernel, pre)
        w = oracles.exact(weight_norm(kernel, params.scale))
        y = oracles.exact(x) @ w + oracles.exact(params.bias)
        got_mean, got_var, _ = oracles.moments(y)
        assert_close(got_mean, np.zeros(4), tolerance)
        assert_close(got_var, np.ones(4), tolerance)


def test_weight_norm_init_is_the_formula():
    kernel, pre = values(28, (4, 8, 3, 3)), values(29, (6, 4, 5), mean=0.5)
    init = jax.jit(functools.partial(jbn.weight_norm_init, axis=0, feature_axis=1))
    got = init(kernel, pre)
    length = np.sqrt((oracles.exact(kernel) ** 2).sum((1, 2, 3)))
    t = oracles.exact(pre) / length[:, None]
    std = np.sqrt(t.var((0, 2)) + 1e-5)
    assert_close(got.scale, 1 / std, F32_VALUE)
    assert_close(got.bias, -t.mean((0, 2)) / std, F32_VALUE)
    chex.assert_tree_all_finite(init(kernel, jnp.zeros_like(pre)))


def test_weight_norm_errors():
    kernel = values(30, (8, 4))
    with pytest.raises(ValueError, match="`scale` of shape"):
        jbn.weight_norm(kernel, jnp.ones(8))
    with pytest.raises(ValueError, match="inputs to sum over"):
        jbn.weight_norm(kernel[0], None)
    with pytest.raises(TypeError, match="floating"):
        jbn.weight_norm(kernel.astype(int), None)
    with pytest.raises(ValueError, match="features"):
        jbn.weight_norm_init(kernel, jnp.ones((5, 8)))
    with pytest.raises(ValueError, match="more than one value"):
        jbn.weight_norm_init(kernel, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="epsilon"):
        jbn.weight_norm_init(kernel, jnp.ones((5, 4)), epsilon=0.0)
