"""Messages of the converters of whole networks begin with the likely cause and the remedy."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_weights import resnet

from jbn import convert, models
from jbn.convert import ConversionError


def zeros(model):
    """Make a model's variables without compiling anything."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, training=False), images)
    return jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)


@pytest.fixture(scope="module")
def model():
    return resnet(blocks=(1,), widths=(4,))


@pytest.fixture(scope="module")
def weights(model):
    return convert.network_to_torch(model, zeros(model), tensors=False)


def message(function, *args, **kwargs):
    with pytest.raises((ConversionError, TypeError)) as caught:
        function(*args, **kwargs)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 1 + 1 + 4 * 11
    return lines[1] if len(lines) > 1 else lines[0]


def from_torch(model, weights, **options):
    return message(convert.network_from_torch, model, weights, **options)


def test_another_depth():
    theirs = models.resnet18(norm="batch")
    weights = convert.network_to_torch(theirs, zeros(theirs), tensors=False)
    ours = models.resnet50(norm="batch")
    with pytest.raises(ConversionError) as caught:
        convert.network_from_torch(ours, weights)
    _, cause, *lines = str(caught.value).splitlines()
    assert cause.endswith(
        "The source is of another depth: it has blocks=(2, 2, 2, 2) and bottleneck=False, as "
        "resnet18, the model blocks=(3, 4, 6, 3) and bottleneck=True. Make the model as the source "
        "is."
    )
    assert len(caught.value.problems) > 150
    assert len(lines) <= 3 * 11
    assert lines[10].endswith("more missing.")


def haiku_trees(blocks):
    """Make the convolutions from which the depth of a Haiku ResNet is inferred."""
    names = ["resnet/~/initial_conv"] + [
        f"resnet/~/block_group_{stage}/~/block_{block}/~/conv_{conv}"
        for stage, count in enumerate(blocks)
        for block in range(count)
        for conv in range(2)
    ]
    return {name: {"w": np.zeros((3, 3, 4, 4), np.float32)} for name in names}, {}


def flax_trees(blocks):
    params = {"conv_init": {"kernel": np.zeros((7, 7, 3, 4), np.float32)}}
    starts = np.cumsum([0, *blocks])[1:-1]
    for nth in range(sum(blocks)):
        kernel = {"kernel": np.zeros((3, 3, 4, 4), np.float32)}
        layers = {"Conv_0": kernel, "Conv_1": kernel}
        params[f"ResNetBlock_{nth}"] = layers | ({"conv_proj": kernel} if nth in starts else {})
    return ({"params": params, "batch_stats": {}},)


@pytest.mark.parametrize(
    ("function", "trees"),
    [(convert.network_from_haiku, haiku_trees), (convert.network_from_flax, flax_trees)],
)
def test_another_depth_of_other_frameworks(function, trees):
    model = resnet(padding="same", stem_padding="same")
    assert "blocks=(3, 1, 2) and bottleneck=False, the model blocks=(2, 1)" in message(
        function, model, *trees((3, 1, 2))
    )


def test_another_width(weights):
    found = from_torch(resnet(blocks=(1,), widths=(8,)), weights)
    assert "The source is of another width: it has widths=(4,), the model (8,)." in found


def test_keys_with_a_prefix(model, weights):
    found = from_torch(model, {f"net.encoder.{key}": value for key, value in weights.items()})
    assert "keys begin with 'net.encoder.'. Pass {key.removeprefix('net.encoder.'): value" in found


def test_keys_that_are_bytes(model, weights):
    found = from_torch(model, {key.encode(): value for key, value in weights.items()})
    assert "the keys are bytes, such as b'" in found
    assert "key.decode()" in found


def test_weights_beside_an_optimizer(model, weights):
    optimizer = {"state": {}, "param_groups": []}
    found = from_torch(model, {"net": weights, "optimizer": optimizer, "epoch": 3})
    assert found.endswith("the arrays are below 'net'. Pass state_dict['net'].")
    with pytest.raises(ConversionError) as caught:
        convert.network_from_torch(model, {**weights, "optimizer": optimizer, "epoch": 3})
    mapping, number = caught.value.problems
    assert "'optimizer' holds a dict with the keys 'state', 'param_groups', expected" in mapping
    assert "'epoch' is 3, not an array. Drop it: {key: value" in number


def test_without_a_head(model, weights):
    bare = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    assert "Pass head=False to leave it out, and add your own." in from_torch(model, bare)
    renamed = {key.replace("fc.", "classifier."): value for key, value in weights.items()}
    with pytest.raises(ConversionError) as caught:
        convert.network_from_torch(model, renamed)
    assert "Is it 'classifier.weight', of shape (5, 4)? Rename that 'fc.weight'" in str(
        caught.value
    )
    with pytest.raises(ConversionError) as caught:
        convert.network_from_torch(model, renamed, head=False)
    assert "Is it of the last dense layer? Drop it, for head=False." in str(caught.value)


def test_networks_of_other_frameworks(model, weights):
    flax, haiku = convert.network_from_flax, convert.network_from_haiku
    ours = zeros(model)
    assert "got variables of Flax. Pass them to network_from_flax" in from_torch(model, ours)
    assert "Pass it to network_from_torch, with a ResNet" in message(flax, model, weights)
    assert "Pass it to network_from_torch, with a ResNet" in message(haiku, model, weights, {})
    assert "The source is a model of jbn. Pass it to model.apply" in message(flax, model, ours)
    trees = flax_trees((1,))[0]
    assert "Pass it to network_from_flax" in message(haiku, model, trees["params"], {})
    assert "Pass it to network_from_haiku" in message(
        flax, model, dict(zip(("params", "batch_stats"), haiku_trees((1,)), strict=True))
    )
    port = {"conv1_7x7_s2.weight": np.zeros((64, 3, 7, 7), np.float32)}
    assert "Pass it to network_from_torch, with a BNInception" in from_torch(model, port)
    found = message(convert.network_from_keras, model, weights)
    assert "other frameworks go to network_from_torch" in found


def keras_model(*layers, name="model"):
    return types.SimpleNamespace(layers=layers, name=name, weights=[])


def keras_layer(name, **weights):
    named = [FakeWeight(value, key) for key, value in weights.items()]
    return types.SimpleNamespace(name=name, weights=named)


class FakeWeight(np.ndarray):
    """An array with a name, like a Keras weight."""

    def __new__(cls, value, name):
        array = np.asarray(value).view(cls)
        array.name = name
        return array


def test_a_keras_network_inside_another(model):
    inside = keras_model(keras_layer("conv1_conv"), name="resnet50")
    found = message(convert.network_from_keras, model, keras_model(inside, keras_layer("dense")))
    assert "inside 'resnet50'. Pass source.get_layer('resnet50'), with head=False." in found


def test_a_resnet_of_the_second_version(model):
    stem = keras_layer("conv1_conv", kernel=np.zeros((7, 7, 3, 4), np.float32))
    norm = keras_layer("conv2_block1_preact_bn", gamma=np.zeros(4, np.float32))
    found = message(convert.network_from_keras, model, keras_model(stem, norm))
    assert "The source is a ResNet V2" in found


def test_arguments_that_are_swapped(model, weights):
    for wrong in (weights, {"params": {}, "batch_stats": {}}):
        assert from_torch(wrong, model).endswith("The model comes first, the source after it.")
    averages = {"resnet/~/initial_batchnorm/~/mean_ema": {"average": np.zeros(4, np.float32)}}
    found = message(convert.network_from_haiku, model, averages, haiku_trees((1,))[0])
    assert found.endswith("got the averages of batch norms in params. Swap the two.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "no"}, "Expected `head` to be True or False, got 'no'"),
        ({"count": "3"}, "`count` is '3', expected a whole number"),
        ({"epsilon": "1e-5"}, "Expected `epsilon` to be a positive number, got '1e-5'"),
        ({"activation": "silu"}, "Expected `activation` as the source's nonlinearity"),
    ],
)
def test_options_of_other_types(model, weights, options, words):
    assert words in from_torch(model, weights, **options)


def test_numbers_that_the_model_cannot_hold(model, weights):
    stem, var = weights["conv1.weight"], weights["bn1.running_var"]
    complex_stem = {**weights, "conv1.weight": stem + np.complex64(1j)}
    found = from_torch(model, complex_stem)
    assert "'conv1.weight' has dtype complex64, expected real numbers, as the model's" in found
    variables = jax.tree.map(lambda leaf: leaf + np.complex64(1j), zeros(model))
    found = message(convert.network_to_torch, model, variables)
    assert "has dtype complex64, expected real numbers" in found
    half = resnet(blocks=(1,), widths=(4,), param_dtype=jnp.float16)
    found = from_torch(half, {**weights, "conv1.weight": stem + np.float32(1e5)})
    assert "'conv1.weight' has values that float16 cannot hold. Make the model with" in found
    found = from_torch(model, {**weights, "bn1.running_var": var - np.float32(1)})
    assert "'bn1.running_var' has negative values, expected variances" in found


def test_tensors_without_values_that_numpy_reads(model, weights):
    torch = pytest.importorskip("torch", reason="needs jbn[peers]")
    stem = torch.tensor(weights["conv1.weight"])
    for tensor, words in (
        (stem.to(torch.float8_e4m3fn), "NumPy has no torch.float8_e4m3fn. Pass value.float()"),
        (stem.to("meta"), "It is on torch's meta device, which holds shapes alone. Load"),
        (stem.to_sparse(), "It is sparse. Pass value.to_dense()."),
    ):
        assert words in from_torch(model, {**weights, "conv1.weight": tensor})
