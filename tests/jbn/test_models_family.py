"""The named models: sizes, docstrings, where strides and biases are, zero initial scales."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbn import linen, models

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def shapes(model, shape=(1, 32, 32, 3), **options):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(functools.partial(model.init, training=False, **options), KEYS, x)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# torchvision's resnet34, resnet101 and resnet152; the Caffe port of BN-Inception, which has biases.
COUNTS = {
    "resnet34": (models.resnet34(norm="batch"), 21_797_672),
    "resnet101": (models.resnet101(norm="batch"), 44_549_160),
    "resnet152": (models.resnet152(norm="batch"), 60_192_808),
    "BNInception with biases": (models.BNInception(use_bias=True), 11_295_240),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_counts(name):
    model, count = COUNTS[name]
    assert size(shapes(model)["params"]) == count


NAMED = [
    *(f"resnet{depth}" for depth in (18, 20, 34, 50, 56, 101, 110, 152)),
    *("Inception", "BNInception", "SmallInception", "SmallBNInception", "RNN", "GRU", "LSTM"),
]


@pytest.mark.parametrize("name", NAMED)
def test_help_says_what_a_named_model_is(name):
    make = getattr(models, name)
    assert inspect.isfunction(make) or inspect.isclass(make)
    doc = inspect.getdoc(make)
    assert "parameters" in doc
    assert "Example:" in doc
    if name.startswith("resnet"):
        depth = name.removeprefix("resnet")
        assert f"ResNet of {depth} layers" in doc
        blocks = make().blocks
        assert sum(blocks) * (3 if make().bottleneck else 2) + 2 == int(depth)
        for key, value in {"outputs": 5, "norm": "layer", "blocks": (1,)}.items():
            assert getattr(make(**{key: value}), key) == value
    else:
        assert make(outputs=5).outputs == 5


def test_the_count_that_a_docstring_names_is_the_models():
    for name, count in {
        "Inception": 11_275_208,
        "SmallInception": 161_238,
        "SmallBNInception": 162_474,
    }.items():
        make = getattr(models, name)
        assert f"{count:,}" in " ".join(inspect.getdoc(make).split())
        assert size(shapes(make())["params"]) == count


def test_a_bottlenecks_stride_is_in_its_3x3_convolution():
    model = models.resnet50(blocks=(1, 1), widths=(4, 8))
    sown = jax.eval_shape(
        lambda x: model.init_with_output(KEYS, x, training=False, capture_intermediates=True),
        jnp.ones((1, 32, 32, 3)),
    )[1]["intermediates"]
    sides = {name: value["__call__"][0].shape[1] for name, value in sown.items() if "conv" in name}
    assert sides["block_1_0_conv_0"] == 8
    assert sides["block_1_0_conv_1"] == 4


# ---- Biases --------------------------------------------------------------------------------------

WITH_LAYERS = {
    "MLP": (functools.partial(models.MLP, hidden=(4, 4)), (2, 6)),
    "CNN": (functools.partial(models.CNN, widths=(4,)), (2, 8, 8, 1)),
    "ResNet": (functools.partial(models.ResNet, blocks=(1,), widths=(4,)), (2, 8, 8, 3)),
    "Inception": (
        functools.partial(models.SmallBNInception, blocks=models.inception.plan()[:1]),
        (2, 8, 8, 3),
    ),
    "LSTM": (functools.partial(models.LSTM, hidden=4), (2, 5, 3)),
}


@pytest.mark.parametrize("name", list(WITH_LAYERS))
def test_biases_are_kept_or_left_out_as_asked(name):
    make, shape = WITH_LAYERS[name]
    for norm, use_bias, want in (
        ("batch", None, False),
        ("batch", True, True),
        ("layer", None, True),
        ("layer", False, False),
    ):
        params = shapes(make(norm=norm, use_bias=use_bias), shape)["params"]
        layers = [
            leaves
            for module, leaves in params.items()
            if isinstance(leaves, dict) and "kernel" in leaves and module != "output"
        ]
        assert layers
        assert all(("bias" in leaves) == want for leaves in layers), (norm, use_bias)
        assert "bias" in params["output"]


# ---- Scales that start at 0 ----------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "bottleneck"), [("batch", False), ("layer", True)])
def test_blocks_start_as_their_shortcuts(norm, bottleneck):
    """The block's first convolution does not matter, and scales that start at 0 have gradients."""
    model = models.ResNet(
        blocks=(1,),
        widths=(4,),
        bottleneck=bottleneck,
        shortcut="project",
        norm=norm,
        zero_init_last=True,
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    last = f"block_0_0_conv_{1 + bottleneck}_norm"

    @jax.jit
    def run(key, x):
        params = model.init(key, x, training=False)["params"]

        def output(params):
            return model.apply({"params": params}, x, training=True, mutable=["batch_stats"])[0]

        conv = params["block_0_0_conv_0"]
        other = params | {"block_0_0_conv_0": jax.tree.map(lambda leaf: 1 - leaf, conv)}
        y, pullback = jax.vjp(output, params)
        return params, y, output(other), pullback(y)[0]

    params, y, y_of_other, gradient = run(jax.random.key(0), x)
    norms = [name for name in params if name.endswith("_norm")]
    assert len(norms) == (5 if bottleneck else 3)
    for name in norms:
        assert (params[name]["scale"] == (name != last)).all(), name
    # Both are in one program, which may fuse their means differently.
    np.testing.assert_allclose(y, y_of_other, atol=1e-6)
    assert np.abs(y).max() > 0.1
    assert np.asarray(gradient[last]["scale"]).any()


def without_scale(use_running_average, name):
    return linen.BatchNorm(use_running_average=use_running_average, name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": None}, "`norm` after the layer with a scale, which is to start at 0, got None"),
        ({"norm": "none"}, "got 'none'"),
        ({"norm": "weight"}, "got 'weight'"),
        (
            {"norm": functools.partial(linen.BatchNorm, use_scale=False)},
            "with a scale, which is to start at 0",
        ),
        ({"norm": without_scale}, "with a scale, which is to start at 0"),
        ({"norm": "batch", "skip": False}, "`skip` with `zero_init_last`, got skip=False"),
    ],
)
def test_zero_initial_scales_need_scales_and_shortcuts(options, message):
    model = models.ResNet(blocks=(1,), widths=(4,), zero_init_last=True, **options)
    with pytest.raises(ValueError, match=message) as raised:
        shapes(model, (2, 8, 8, 3))
    assert "\n" not in str(raised.value)
