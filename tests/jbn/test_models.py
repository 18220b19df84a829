"""Networks: parameter counts, shapes, what norm and placement change, one training step each."""

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
from jbn.models.units import NORMS, WEIGHT, cancels_bias

DIGIT, COLOR, PHOTO, SEQUENCE = (28, 28, 1), (32, 32, 3), (224, 224, 3), (7, 3)
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def output_and_variables(model, x):
    return jax.eval_shape(functools.partial(model.init_with_output, training=False), KEYS, x)


def shapes(model, shape):
    return output_and_variables(model, jax.ShapeDtypeStruct((2, *shape), jnp.float32))[1]


def initial(model, x):
    """Draw variables as `model.init` would, which compiles a program for every array's shape."""
    rng = np.random.default_rng(1)

    def draw(path, like):
        name = path[-1].key
        if name in ("scale", "var") or like.ndim < 2:
            return np.full(like.shape, name in ("scale", "var"), like.dtype)
        return rng.normal(0, np.prod(like.shape[:-1]) ** -0.5, like.shape).astype(like.dtype)

    return jax.tree.map_with_path(draw, output_and_variables(model, x)[1])


def batch(shape, n=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 3, n, np.int32)


def step(model, variables, x, labels, mask=None):
    """Take one step of SGD; return the loss, gradient and new variables."""
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        y, moved = model.apply(
            {"params": params, **state},
            x,
            training=True,
            mask=mask,
            rngs={"dropout": KEYS["dropout"]},
            mutable=[*state] or ["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(y, labels)
        return losses.mean(), moved

    params = variables["params"]
    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    return value, gradient, {"params": params, **moved}


# ---- Counts and shapes ---------------------------------------------------------------------------

# ImageNet's: torchvision's resnet18 and resnet50. BN-Inception's: public ports, with 128 and with
# 96 features after the pools of 4c and 4d. CIFAR's: the sum over Table 6 of He et al. by hand.
COUNTS = {
    "BNInception": (models.BNInception(), PHOTO, 1000, 11_285_224),
    "separable, 96": (
        models.BNInception(blocks=inception.plan(96), stem="separable"),
        PHOTO,
        1000,
        11_188_288,
    ),
    "resnet18": (models.resnet18(norm="batch"), PHOTO, 1000, 11_689_512),
    "resnet50": (models.resnet50(norm="batch"), PHOTO, 1000, 25_557_032),
    "resnet20": (models.resnet20(norm="batch"), COLOR, 10, 269_722),
    "resnet56": (models.resnet56(norm="batch"), COLOR, 10, 853_018),
    "resnet110": (models.resnet110(norm="batch"), COLOR, 10, 1_727_962),
    # Of 784-100-100-100-10: 784*100 + 2*100*100 + 100*10, and biases.
    "MLP": (models.MLP(), (784,), 10, 78_400 + 20_000 + 1_000 + 310),
    # Hidden 100, 3 features: 1, 3, 4 gates.
    "RNN": (models.RNN(), SEQUENCE, 10, 1 * (300 + 100 + 10_000) + 1_010),
    "GRU": (models.GRU(), SEQUENCE, 10, 3 * (300 + 100 + 10_000) + 1_010),
    "LSTM": (models.LSTM(), SEQUENCE, 10, 4 * (300 + 100 + 10_000) + 1_010),
}


def cifar(depth):
    """Count by hand: kernels, two vectors for each convolution, the last layer."""
    n, widths = (depth - 2) // 6, (16, 32, 64)
    total = 3 * 9 * 16 + 2 * 16
    before = 16
    for width in widths:
        total += 9 * before * width + (2 * n - 1) * 9 * width**2 + 2 * n * 2 * width
        before = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_counts_and_output(name):
    model, shape, outputs, count = COUNTS[name]
    y, variables = output_and_variables(model, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert size(variables["params"]) == count
    assert y.shape == (2, outputs)


def test_counts_of_cifar_are_those_by_hand():
    for depth in (20, 56, 110):
        assert COUNTS[f"resnet{depth}"][-1] == cifar(depth)


def test_skip_connections_have_no_parameters_where_they_pad():
    assert shapes(models.resnet20(norm="batch", skip=False), COLOR) == shapes(
        models.resnet20(norm="batch"), COLOR
    )


@pytest.mark.parametrize("stem", ["full", "separable", "small"])
def test_inception_without_norm_has_biases_instead(stem):
    blocks = inception.plan()[1:3]  # One of the same size, one that halves it.
    make = functools.partial(models.InceptionNet, blocks=blocks, stem=stem, width=8)
    plain, normalized = (shapes(make(norm=norm), PHOTO) for norm in (None, "batch"))
    convolutions = [name for name in plain["params"] if name not in ("output", "stem_depthwise")]
    assert all("bias" in plain["params"][name] for name in convolutions)
    assert all("bias" not in normalized["params"][name] for name in convolutions)
    assert size(normalized["params"]) - size(plain["params"]) == sum(
        plain["params"][name]["bias"].size for name in convolutions
    )


# ---- One training step ---------------------------------------------------------------------------

SMALL = {
    "MLP": (functools.partial(models.MLP, hidden=(8, 8), outputs=3), (12,)),
    "CNN": (functools.partial(models.CNN, widths=(4, 8), outputs=3), (8, 8, 1)),
    "ResNet": (
        functools.partial(models.ResNet, blocks=(1, 1), widths=(4, 8), outputs=3),
        (8, 8, 3),
    ),
    "bottleneck": (
        functools.partial(
            models.ResNet,
            blocks=(1, 1),
            widths=(4, 8),
            bottleneck=True,
            stem="imagenet",
            shortcut="project",
            outputs=3,
        ),
        (32, 32, 3),
    ),
    "Inception": (
        functools.partial(
            models.InceptionNet, blocks=inception.plan()[:1], stem="small", width=8, outputs=3
        ),
        (8, 8, 3),
    ),
    "RNN": (functools.partial(models.RNN, hidden=6, outputs=3), SEQUENCE),
    "GRU": (functools.partial(models.GRU, hidden=6, outputs=3), SEQUENCE),
    "LSTM": (functools.partial(models.LSTM, hidden=6, outputs=3), SEQUENCE),
}


def run_step(make, shape, norm, **options):
    model = make(norm=norm, **options)
    x, labels = batch(shape)
    variables = initial(model, x)
    taken = jax.jit(functools.partial(step, model))
    value, gradient, new = taken(variables, x, labels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient, new)))
    after, _, _ = taken(new, x, labels)
    assert float(after) < float(value)
    return variables, gradient, new


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", list(SMALL))
def test_one_training_step(name, norm):
    """The loss falls, every parameter has a gradient, statistics move."""
    variables, gradient, new = run_step(*SMALL[name], norm)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    stats = variables.get("batch_stats", {})
    assert bool(stats) == (norm == "batch")
    for before, after in zip(
        jax.tree.leaves(stats), jax.tree.leaves(new.get("batch_stats", {})), strict=True
    ):
        assert not np.array_equal(before, after)


@pytest.mark.parametrize("norm", [*NORMS, WEIGHT])
@pytest.mark.parametrize("name", ["MLP", "CNN"])
def test_every_norm(name, norm):
    if norm == "instance" and name == "MLP":
        pytest.skip("one value per example and feature: nothing to normalize")
    make, shape = SMALL[name]
    make = functools.partial(make, **{"MLP": {"hidden": (8,)}, "CNN": {"widths": (8,)}}[name])
    if norm == "ghost":
        norm = functools.partial(linen.GhostBatchNorm, batch_size=4)
    if norm == "group":
        norm = functools.partial(linen.GroupNorm, groups=2)
    run_step(make, shape, norm)


@pytest.mark.parametrize(
    ("norm", "cancels"),
    [
        (nn.BatchNorm, True),
        (functools.partial(nn.BatchNorm, momentum=0.9), True),
        (nn.InstanceNorm, True),
        (nn.LayerNorm, False),
        (nn.GroupNorm, False),
    ],
)
def test_a_norm_of_flax_cancels_the_bias_as_ours_does(norm, cancels):
    assert cancels_bias(norm) == cancels


def test_a_network_with_the_norm_of_flax_has_no_bias_before_it():
    ours, theirs = (shapes(models.resnet20(norm=norm), COLOR) for norm in ("batch", nn.BatchNorm))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours["params"], theirs["params"])


@pytest.mark.parametrize("name", ["MLP", "CNN", "ResNet"])
def test_placement_after_the_nonlinearity(name):
    """The bias stays: it comes before a nonlinearity, and is no constant after it."""
    make, shape = SMALL[name]
    variables, _, _ = run_step(make, shape, "batch", placement="after")
    layers = [v for v in variables["params"].values() if "kernel" in v]
    assert all("bias" in layer for layer in layers)


# Every kind of block once or twice: more of them are traced by `test_parameter_counts_and_output`.
LARGE = {
    "BNInception": (models.BNInception(blocks=inception.plan()[1:3]), PHOTO),
    "separable, 96": (
        models.BNInception(blocks=inception.plan(96)[-1:], stem="separable"),
        PHOTO,
    ),
    "resnet50": (models.resnet50(norm="batch", blocks=(2, 1, 1, 1)), PHOTO),
    "resnet20": (models.resnet20(norm="batch"), COLOR),
}


@pytest.mark.parametrize("name", list(LARGE))
def test_training_step_of_the_large_ones_has_shapes(name):
    """Traced, with its gradient, and not compiled: that would take minutes."""
    model, shape = LARGE[name]
    variables = shapes(model, shape)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    value, gradient, new = jax.eval_shape(functools.partial(step, model), variables, x, labels)
    assert value.shape == ()
    assert gradient == variables["params"]
    assert jax.tree.structure(new) == jax.tree.structure(variables)


@pytest.mark.parametrize("name", ["CNN", "ResNet", "LSTM"])
def test_masked_examples_count_for_nothing(name):
    """Statistics with half of the examples masked are those of the other half."""
    make, shape = SMALL[name]
    model = make(norm="batch")
    x, _ = batch(shape)
    garbage = x.copy()
    garbage[4:] = 1e3

    def moved(variables, x, mask=None):
        return model.apply(variables, x, training=True, mask=mask, mutable=["batch_stats"])[1]

    @jax.jit
    def both(variables, x, garbage):
        return moved(variables, x[:4]), moved(variables, garbage, jnp.arange(8) < 4)

    want, got = both(initial(model, x), x, garbage)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


# ---- The parts -----------------------------------------------------------------------------------


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


def test_local_response_norm_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = np.random.default_rng(0).normal(0, 30, (2, 3, 4, 9)).astype(np.float32)
    # torch divides alpha by the window's size.
    want = torch.nn.functional.local_response_norm(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), 5, alpha=5 * 2e-5, beta=0.75, k=1.0
    )
    got = jax.jit(inception.local_response_norm)(x)
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), rtol=2e-5)


def test_skip_adds_what_came_in():
    """With kernels of zero a block with skip is the identity, and without it nothing."""
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


def test_what_cannot_be_is_refused():
    x, _ = batch((12,))
    for options, message in (
        ({"norm": "bach"}, "batch, ghost, renorm"),
        ({"norm": "batch", "placement": "behind"}, "'before' or 'after'"),
    ):
        with pytest.raises(ValueError, match=message):
            models.MLP(**options).init(KEYS, x, training=False)
    with pytest.raises(ValueError, match="'lstm'"):
        models.recurrent.Recurrent(cell="gpu").init(KEYS, batch(SEQUENCE)[0], training=False)


def test_plan_is_the_papers_table():
    """Output sizes as printed, with the pool of 96; 608 and 1056 with that of 128."""
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


# ---- Wrong calls ---------------------------------------------------------------------------------

MODELS = {  # name: (model, a shape of x, its letters)
    "MLP": (models.MLP(hidden=(5,), norm="batch"), (4, 6), "(N, F)"),
    "CNN": (models.CNN(widths=(4,), norm="batch"), (4, 8, 8, 1), "(N, H, W, C)"),
    "ResNet": (
        models.ResNet(blocks=(1,), widths=(4,), norm="batch"),
        (4, 8, 8, 3),
        "(N, H, W, C)",
    ),
    "Inception": (models.SmallBNInception(blocks=()), (4, 8, 8, 3), "(N, H, W, C)"),
    "RNN": (models.RNN(hidden=4, norm="batch"), (4, 5, 2), "(N, T, F)"),
}


def init(name, shape, training=False, **call):
    model, _, _ = MODELS[name]
    return jax.eval_shape(lambda: model.init(KEYS, jnp.ones(shape), training=training, **call))


@pytest.mark.parametrize("change", ["one example", "one axis more"])
@pytest.mark.parametrize("name", MODELS)
def test_wrong_rank_says_which_axes_are_expected(name, change):
    _, shape, letters = MODELS[name]
    wrong = shape[1:] if change == "one example" else (*shape, 1)
    with pytest.raises(ValueError, match=re.escape(f"Expected x of shape {letters}")) as raised:
        init(name, wrong)
    assert str(wrong) in str(raised.value)


@pytest.mark.parametrize("name", MODELS)
def test_mask_is_one_value_per_example(name):
    _, shape, _ = MODELS[name]
    init(name, shape, mask=[True, False, True, True])  # A list is fine.
    for mask in (jnp.ones((4, 1), bool), jnp.ones(3, bool), jnp.array(True)):
        with pytest.raises(ValueError, match=re.escape("`mask` of shape (4,)")):
            init(name, shape, mask=mask)


@pytest.mark.parametrize("name", MODELS)
def test_training_is_known_when_traced(name):
    _, shape, _ = MODELS[name]
    init(name, shape, training=np.True_)
    with pytest.raises(TypeError, match=r"`training` to be True or False.*static"):
        jax.jit(lambda training: init(name, shape, training=training))(True)


def test_x_that_is_no_array_says_so():
    with pytest.raises(TypeError, match="Expected `x` to be an array, got a dict"):
        MODELS["MLP"][0].init(KEYS, {"image": 1}, training=False)
