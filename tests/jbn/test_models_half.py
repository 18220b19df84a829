"""Models in half precision: dtypes, range, distance to float32, and what stays float32."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jbn import linen, models
from jbn.models import inception
from jbn.models.units import NORMS, WEIGHT

HALF = (jnp.bfloat16, jnp.float16)
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
OUTPUTS = 13  # No other axis has this size.
# name: model, shape of an example, number of consecutive layers (or steps) that round.
SMALL = {
    "MLP": (functools.partial(models.MLP, hidden=(8, 8)), (12,), 3),
    "CNN": (functools.partial(models.CNN, widths=(4,)), (8, 8, 1), 3),
    "ResNet": (functools.partial(models.ResNet, blocks=(1,), widths=(4,)), (8, 8, 3), 4),
    "bottleneck": (
        functools.partial(models.resnet50, blocks=(1,), widths=(4,)),
        (16, 16, 3),
        5,
    ),
    # A block with average pooling, after a stem with local response normalization.
    "Inception": (
        functools.partial(
            models.Inception, blocks=inception.plan()[:1], stem="separable", width=32, dropout=0.0
        ),
        (16, 16, 3),
        8,
    ),
    "RNN": (functools.partial(models.RNN, hidden=6), (7, 3), 8),
    "GRU": (functools.partial(models.GRU, hidden=6), (7, 3), 8),
    "LSTM": (functools.partial(models.LSTM, hidden=6), (7, 3), 8),
}


def make(name, **options):
    return SMALL[name][0](outputs=OUTPUTS, **options)


def batch(name, n=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, *SMALL[name][1])).astype(np.float32), rng.integers(0, 3, n, np.int32)


def shapes(model, x):
    return jax.eval_shape(functools.partial(model.init_with_output, training=False), KEYS, x)


def initial(model, x):
    """Draw variables like `model.init`, which would compile a program for each array's shape."""
    rng = np.random.default_rng(1)

    def draw(path, like):
        if path[-1].key.endswith("scale") or path[-1].key == "var":
            return np.ones(like.shape, like.dtype)
        deviation = np.prod(like.shape[:-1]) ** -0.5 if like.ndim > 1 else 0
        return rng.normal(0, deviation, like.shape).astype(like.dtype)

    return jax.tree.map_with_path(draw, shapes(model, x)[1])


def step(model, variables, x, labels):
    """Compute logits, the gradient and updated statistics."""
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        logits, moved = model.apply(
            {"params": params, **state}, x, training=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits, moved)

    gradient, (logits, moved) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, gradient, moved


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


# ---- One training step ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", list(SMALL))
def test_a_step_in_half_precision(name, dtype):
    """Logits equal those of float32 up to rounding; float16 handles activations up to 6e4."""
    # Without a norm, all float16 activations are large; with one, only those before the next norm.
    norm = "batch" if dtype == jnp.bfloat16 and name != "Inception" else None
    full, half = make(name, norm=norm), make(name, norm=norm, dtype=dtype)
    x, labels = batch(name)
    variables = initial(full, x)
    assert dtypes(variables["params"]) == {"float32"}

    @jax.jit
    def in_float32(variables, x):
        y, sown = full.apply(variables, x, training=True, mutable=True, capture_intermediates=True)
        return y, jax.tree.map(lambda y: jnp.abs(y).max(), (x, sown["intermediates"]))

    want, largest = jax.device_get(in_float32(variables, x))
    taken = jax.jit(functools.partial(step, half))
    logits, gradient, moved = got = taken(variables, x, labels)
    assert dtypes(got) == {"float32"}
    chex.assert_tree_all_finite(got)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves((gradient, moved)))
    # Each layer rounds its input, its kernel and its output, by eps / 2 at most.
    layers = SMALL[name][-1]
    bound = 1.5 * layers * float(jnp.finfo(dtype).eps) * np.abs(want).max()
    np.testing.assert_allclose(logits, want, rtol=0, atol=bound)

    if dtype == jnp.float16:
        # A block's input may be as large as what the block adds to it.
        top = (3e4 if "block" in str(full) else 6e4) / max(jax.tree.leaves(largest))
        chex.assert_tree_all_finite(taken(variables, x * np.float32(top), labels))


@pytest.mark.parametrize("norm", ["batch", "layer", WEIGHT, nn.BatchNorm])
def test_norms_take_float16_up_to_its_largest_values(norm):
    model = models.CNN(widths=(4,), outputs=OUTPUTS, norm=norm, dtype=jnp.float16)
    x, labels = batch("CNN")
    x = x * np.float32(1.3e4)
    variables = initial(model, x)
    first = nn.Conv(4, (3, 3), use_bias=False)
    kernel = {"params": {"kernel": variables["params"]["conv_0_0"]["kernel"]}}
    assert 3e4 < np.abs(first.apply(kernel, x)).max() < 6.5e4
    chex.assert_tree_all_finite(jax.jit(functools.partial(step, model))(variables, x, labels))


# ---- Dtypes, traced but not compiled -------------------------------------------------------------


@pytest.mark.parametrize("name", list(SMALL))
def test_dtypes_of_parameters_statistics_and_logits(name):
    x, _ = batch(name)
    for dtype, param_dtype, x_dtype in (
        (jnp.bfloat16, jnp.float16, jnp.float32),
        (None, jnp.bfloat16, jnp.bfloat16),
    ):
        model = make(name, norm="batch", dtype=dtype, param_dtype=param_dtype)
        y, variables = shapes(model, x.astype(x_dtype))
        assert y.dtype == jnp.float32
        assert dtypes(variables["batch_stats"]) == {"float32"}
        for module, leaves in variables["params"].items():
            want = jnp.float32 if "norm" in module else param_dtype
            assert dtypes(leaves) == {jnp.dtype(want).name}, module


def test_recurrent_kernels_are_drawn_in_half_precision():
    """An orthogonal matrix comes from a QR decomposition, which XLA lacks in half precision."""
    model = models.RNN(hidden=6, param_dtype=jnp.bfloat16)
    x = jnp.ones((2, 3, 1))
    kernel = jax.jit(functools.partial(model.init, training=False))(KEYS, x)["params"][
        "recurrent_0"
    ]
    assert kernel.dtype == jnp.bfloat16
    product = np.float32(kernel) @ np.float32(kernel).T
    np.testing.assert_allclose(product, np.eye(6), atol=float(jnp.finfo(jnp.bfloat16).eps))


def wide_products(text):
    """List float32 matrix products and convolutions, except those of the last layer."""
    return [
        types
        for types in re.findall(r"stablehlo\.(?:convolution|dot_general).* : (\(.*)", text)
        if "f32" in types.split("->")[0] and not re.search(rf"\b{OUTPUTS}x|x{OUTPUTS}x", types)
    ]


CASES = [
    *((name, norm) for name in SMALL for norm in (None, "batch")),
    *(("CNN", norm) for norm in (*NORMS, WEIGHT, nn.BatchNorm) if norm != "batch"),
]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_all_products_but_the_last_layers_are_in_half_precision(name, norm):
    """Forward and backward; the last layer is float32 by design, see `units.logits`."""
    if norm == "ghost":
        norm = functools.partial(linen.GhostBatchNorm, batch_size=4)
    if norm == "group":
        norm = functools.partial(linen.GroupNorm, groups=2)
    x, labels = batch(name)

    def lowered(dtype):
        model = make(name, norm=norm, dtype=dtype)
        variables = shapes(model, x)[1]
        return jax.jit(functools.partial(step, model)).lower(variables, x, labels).as_text()

    assert wide_products(lowered(jnp.bfloat16)) == []
    if norm is None:
        assert wide_products(lowered(None))


# ---- Norms passed by users -----------------------------------------------------------------------


def own(use_running_average, name):
    """Make a norm that returns float32 and accepts no dtype."""
    return nn.BatchNorm(use_running_average=use_running_average, name=name)


def any_keyword(**options):
    return nn.BatchNorm(**options)


GIVEN = {  # name: (norm, dtype of the nonlinearity's input)
    "ours": ("batch", jnp.bfloat16),
    "ours, without a dtype": ("layer", jnp.bfloat16),
    "class": (nn.BatchNorm, jnp.bfloat16),
    "partial": (functools.partial(nn.BatchNorm, momentum=0.9), jnp.bfloat16),
    "partial with a dtype": (functools.partial(nn.BatchNorm, dtype=jnp.float32), jnp.float32),
    "function of any keyword": (any_keyword, jnp.bfloat16),
    "function without dtype": (own, jnp.bfloat16),
}


@pytest.mark.parametrize("name", list(GIVEN))
def test_a_norm_takes_the_models_dtype_unless_it_has_its_own(name):
    norm, want = GIVEN[name]
    model = models.MLP(hidden=(8, 8), norm=norm, dtype=jnp.bfloat16)
    sown = jax.eval_shape(
        lambda x: model.apply(model.init(KEYS, x, training=False), x, training=True, mutable=True),
        jnp.ones((4, 3)),
    )[1]["intermediates"]
    entering = [value for key, value in sown.items() if key.startswith("activation_input")]
    assert len(entering) == 2
    assert dtypes(entering) == {jnp.dtype(want).name}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm,
        functools.partial(nn.BatchNorm, momentum=0.9),
        functools.partial(functools.partial(nn.BatchNorm, epsilon=1e-3), dtype=jnp.bfloat16),
    ],
    ids=["class", "partial", "partial with a dtype"],
)
@pytest.mark.parametrize("name", ["CNN", "bottleneck", "Inception"])
def test_the_norm_of_flax_drops_the_bias_in_half_precision(name, norm):
    x, _ = batch(name)
    ours, theirs = (
        shapes(make(name, norm=norm, dtype=jnp.bfloat16), x)[1] for norm in ("batch", norm)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)


# ---- The parts -----------------------------------------------------------------------------------


def test_local_response_norm_squares_in_float32():
    x = np.array([[[[6e4, -6e4, 300, 0, 1e-3]]]], np.float16)
    wide = np.float64(x[0, 0, 0])
    squares = [np.sum(wide[max(i - 2, 0) : i + 3] ** 2) for i in range(5)]
    want = wide * (1 + 2e-5 * np.array(squares)) ** -0.75

    @jax.jit
    def both(x):
        y, pullback = jax.vjp(inception.local_response_norm, x)
        return y, pullback(jnp.ones_like(y))[0]

    y, gradient = both(x)
    assert y.dtype == gradient.dtype == jnp.float16
    np.testing.assert_allclose(y[0, 0, 0], want, rtol=float(jnp.finfo(jnp.float16).eps))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_what_a_cell_adds_up_is_not_rounded_at_each_step(cell):
    """Gates near 1 add a little 2,000 times; in bfloat16 the sum would stop growing after 256."""
    model = models.recurrent.Recurrent(
        cell=cell, hidden=1, activation=lambda x: x, forget_bias=8.0, dtype=jnp.bfloat16
    )
    x = jnp.ones((1, 2000, 1), jnp.bfloat16)
    _, variables = shapes(model, x)
    # Neither gates nor candidates depend on the past.
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables["params"])
    params["input"]["bias"][-2 if cell == "lstm" else -1] = 1 / 64  # The candidate's bias.
    apply = jax.jit(functools.partial(model.apply, training=False, mutable=["intermediates"]))
    _, sown = apply({"params": params}, x)
    keep = 1 / (1 + np.exp(-8.0))
    adds, shown = (0.5 / 64, 0.5) if cell == "lstm" else ((1 - keep) / 64, 1.0)
    want = shown * adds * (1 - keep**2000) / (1 - keep)
    got = float(sown["intermediates"]["states"][0][0, -1, 0])
    # Only the last state is rounded; the gate is float32: 2,000 factors of relative error 6e-8.
    assert got == pytest.approx(want, rel=float(jnp.finfo(jnp.bfloat16).eps))
