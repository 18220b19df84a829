"""What the converters of whole networks reject, reported all at once, and their messages."""

import functools

import jax
import numpy as np
import pytest
from network_weights import CLASSES, needs, resnet

import jbn
from jbn import convert, models
from jbn.convert import ConversionError
from jbn.linen import BatchNorm

counting = functools.partial(BatchNorm, momentum=jbn.cumulative)


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


def problems(function, *args, **kwargs):
    with pytest.raises(ConversionError) as caught:
        function(*args, **kwargs)
    assert str(caught.value).startswith("Cannot convert network; ")
    assert len(str(caught.value).splitlines()) <= 1 + 1 + 4 * 11
    if len(caught.value.problems) <= 10:
        assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert len({problem.split(": ")[0] for problem in caught.value.problems}) == 1
    return [problem.split(": ", 1)[1] for problem in caught.value.problems]


def test_everything_that_does_not_fit_is_listed_at_once(model, weights):
    wrong = {key: value for key, value in weights.items() if key != "bn1.bias"}
    wrong |= {
        "fc.weight": np.zeros((7, 4), np.float32),
        "layer1.0.conv2.weight": np.zeros((4, 4, 1, 1), np.float32),
        "bn1.running_var": np.zeros(4, np.int8),
        "bn1.weight": object(),
        "layer1.1.conv1.weight": np.zeros((4, 4, 3, 3), np.float32),
    }
    found = sorted(problems(convert.network_from_torch, model, wrong))
    unreadable = (
        "'bn1.weight' is of type object, without values that can be read, expected an array. Pass "
        "an array of NumPy, JAX or torch."
    )
    assert found == [
        "'bn1.running_var' has dtype int8, expected floating. Dequantize it, or convert it with "
        "astype(np.float32).",
        unreadable,
        f"'fc.weight' has shape (7, 4), expected ({CLASSES}, 4), that of the model's 'output'. "
        "Pass head=False to leave it out.",
        "'layer1.0.conv2.weight' has shape (4, 4, 1, 1), expected (4, 4, 3, 3), that of the "
        "model's 'block_0_0_conv_1'.",
        "'layer1.1.conv1.weight' has no place in the model.",
        "no 'bn1.bias', expected (4,) for the model's 'stem_norm'.",
    ]


def test_a_deeper_network_is_listed_layer_by_layer(weights):
    deeper = resnet(blocks=(2,), widths=(4,))
    found = problems(convert.network_from_torch, deeper, weights)
    assert len(found) == 2 * 5
    assert all(problem.startswith("no 'layer1.1.") for problem in found)


def test_names_that_are_there_twice(model, weights):
    twice = {**weights, "module.fc.bias": weights["fc.bias"]}
    assert problems(convert.network_from_torch, model, twice) == [
        "'fc.bias' is there twice, once as 'module.fc.bias'. Drop one."
    ]


def test_weights_below_another_name(model, weights):
    found = problems(convert.network_from_torch, model, {"weights": weights})
    assert found == ["the arrays are below 'weights'. Pass state_dict['weights']."]


def test_a_schedule_needs_a_count(weights):
    model = resnet(blocks=(1,), widths=(4,), norm=counting)
    bare = {key: value for key, value in weights.items() if "num_batches" not in key}
    found = problems(convert.network_from_torch, model, bare)
    assert found[-1] == (
        "no count of batches for 'bn1.num_batches_tracked', expected one: the model's momentum is "
        "a schedule. Pass count=."
    )
    assert len(found) == 3
    got = convert.network_from_torch(model, bare, count=9)["batch_stats"]
    assert int(got["stem_norm"]["count"]) == 9
    assert problems(convert.network_from_torch, model, bare, count=-1)[0] == (
        "`count` is -1, expected a whole number of batches, 0 or more. Pass the number of batches "
        "absorbed."
    )


@pytest.mark.parametrize("norm", [None, "layer"])
def test_a_model_without_batch_norm(weights, norm):
    model = resnet(blocks=(1,), widths=(4,), norm=norm)
    wanted = [f"the model has norm={norm!r}, expected 'batch'. Make it with that."]
    assert problems(convert.network_from_torch, model, weights) == wanted


def test_a_model_that_computes_something_else(weights):
    model = resnet(blocks=(1,), widths=(4,), placement="after", skip=False)
    found = problems(convert.network_from_torch, model, weights)
    assert found[:2] == [
        f"the model has {name}={got!r}, expected {want!r}, as the source's network computes. Make "
        f"it with {name}={want!r}."
        for name, got, want in (("skip", False, True), ("placement", "after", "before"))
    ]


def test_a_layer_that_the_source_has_not():
    model = models.BNInception(stem="separable", width=8, blocks=())
    found = problems(convert.network_to_torch, model, zeros(model))
    assert "the model has 'params/stem_depthwise/kernel', the source's network has not." in found


def test_strides_and_padding_of_another_network():
    model = models.BNInception(width=8, blocks=())
    found = problems(convert.network_from_torch, model, {})
    assert found[0].startswith("the model has padding='same', expected 'symmetric'")


@pytest.mark.parametrize("other", [None, models.MLP(), models.resnet50, 3])
def test_other_models(weights, other):
    with pytest.raises(TypeError, match="expected `model` as a ResNet or InceptionNet of jbn"):
        convert.network_from_torch(other, weights)
    with pytest.raises(TypeError, match="expected `model` as a ResNet or InceptionNet of jbn"):
        convert.network_to_torch(other, {})
    with pytest.raises(TypeError, match="expected `model` as a ResNet of jbn"):
        convert.network_from_keras(other, None)
    with pytest.raises(TypeError, match="expected `model` as a ResNet of jbn"):
        convert.network_from_flax(other, {})
    with pytest.raises(TypeError, match="expected `model` as a ResNet of jbn"):
        convert.network_from_haiku(other, {}, {})


@pytest.mark.parametrize("source", [None, "resnet50.pth", [1], dict])
def test_sources_of_another_type(model, source):
    with pytest.raises(TypeError, match=r"Expected `state_dict` as a mapping .* weights_only=True"):
        convert.network_from_torch(model, source)
    with pytest.raises(TypeError, match=r"Expected `variables` as the mapping that model\.init"):
        convert.network_to_torch(model, source)
    with pytest.raises(TypeError, match="Expected `source` as a Keras model"):
        convert.network_from_keras(model, source)
    with pytest.raises(TypeError, match="Expected `variables` as a mapping with the keys params"):
        convert.network_from_flax(model, source)
    with pytest.raises(TypeError, match="Expected `params` as a dict of modules"):
        convert.network_from_haiku(model, source, {})


def test_variables_that_do_not_fit(model):
    variables = zeros(model)
    variables["params"]["extra"] = {"kernel": np.zeros((1, 1), np.float32)}
    variables["params"]["stem"] = {"kernel": np.zeros((7, 7, 3, 5), np.float32)}
    del variables["batch_stats"]["stem_norm"]["mean"]
    assert sorted(problems(convert.network_to_torch, model, variables)) == [
        "'params/extra/kernel' has no place in the model.",
        "'params/stem/kernel' has shape (7, 7, 3, 5), expected (7, 7, 3, 4), as the model has it.",
        "no 'batch_stats/stem_norm/mean', expected (4,), as the model has it.",
    ]


def test_a_count_that_is_none():
    model = resnet(blocks=(1,), widths=(4,), norm=counting)
    variables = zeros(model)
    variables["batch_stats"]["stem_norm"]["count"] = np.float32(0.5)
    assert problems(convert.network_to_torch, model, variables) == [
        "'batch_stats/stem_norm/count' is 0.5, expected a whole number of batches, 0 or more. Set "
        "it to the number of batches absorbed."
    ]


def test_haiku_trees_without_a_network(model):
    (problem,) = problems(convert.network_from_haiku, model, {}, {})
    assert problem.startswith("expected one ResNet, a module that has '~/initial_conv', got none.")


@needs(models.ResNet, "padding")
def test_a_flax_network_wants_its_padding(model):
    found = problems(convert.network_from_flax, model, {"params": {}, "batch_stats": {}})
    assert found[0].startswith("the model has padding='symmetric', expected 'same'")
    assert "no 'conv_init/kernel', expected (7, 7, 3, 4) for the model's 'stem'." in found
