"""Properties of whole networks that their arrays do not show: epsilon, activation, strides."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_weights import CLASSES, SMALL, assert_same_logits, evaluate, images, inception, resnet

import jbn
from jbn import convert
from jbn.convert import ConversionError
from jbn.linen import BatchNorm

LARGE = functools.partial(BatchNorm, epsilon=1e-3)


def refused(function, *args, **options):
    with pytest.raises(ConversionError) as caught:
        function(*args, **options)
    return str(caught.value)


CONVERTERS = {
    "torch": (convert.network_from_torch, ({},), "1e-05"),
    "keras": (convert.network_from_keras, (types.SimpleNamespace(layers=[]),), "1.001e-05"),
    "flax": (convert.network_from_flax, ({"params": {}, "batch_stats": {}},), "1e-05"),
    "haiku": (
        convert.network_from_haiku,
        ({"net/~/initial_conv": {"w": np.zeros((7, 7, 3, 8), np.float32)}}, {}),
        "1e-05",
    ),
    "to torch": (convert.network_to_torch, ({"params": {}, "batch_stats": {}},), "1e-05"),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_another_epsilon_or_activation_is_refused(name):
    function, source, usual = CONVERTERS[name]
    model = resnet(norm=LARGE, activation=jax.nn.sigmoid)
    message = refused(function, model, *source)
    assert (
        f"the model's batch norms have epsilon=0.001, expected {usual}, as the source's network "
        f"computes. Make it with norm=functools.partial(jbn.linen.BatchNorm, epsilon={usual}), or "
        "pass epsilon=0.001 if the source's have that."
    ) in message
    assert (
        "the model has activation=sigmoid, expected relu, as the source's network computes. Make "
        "it with that, or pass activation=sigmoid if the source has it."
    ) in message
    message = refused(function, model, *source, epsilon=1e-3, activation=jax.nn.sigmoid)
    assert "epsilon=" not in message
    assert "activation=" not in message


def test_inception_is_checked_too():
    message = refused(convert.network_from_torch, inception(norm=LARGE), {})
    assert "the model's batch norms have epsilon=0.001, expected 1e-05" in message


@pytest.mark.parametrize(
    "activation", [lambda x: jnp.maximum(x, 0), functools.partial(jax.nn.relu)]
)
def test_a_relu_by_another_name_is_one(activation):
    message = refused(convert.network_from_torch, resnet(activation=activation), {})
    assert "activation=" not in message
    message = refused(convert.network_from_torch, resnet(activation=jax.nn.relu6), {})
    assert "activation=relu6" in message


def test_a_torch_module_says_its_epsilon():
    torch = pytest.importorskip("torch", reason="needs jbn[peers]")
    import torch_networks

    network = torch_networks.as_trained(torch_networks.ResNet(**SMALL, classes=CLASSES))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.5
    message = refused(convert.network_from_torch, resnet(), network)
    assert "have epsilon=1e-05, expected 0.5" in message
    assert "or pass epsilon" not in message
    model, x = resnet(norm=functools.partial(BatchNorm, epsilon=0.5)), images()
    variables = convert.network_from_torch(model, torch.nn.DataParallel(network))
    with torch.no_grad():
        want = network(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()
    assert_same_logits(evaluate(model, variables, x), want)
    # A state_dict does not contain epsilon, so the caller states it.
    stated = convert.network_from_torch(model, network.state_dict(), epsilon=0.5)
    jax.tree.map(np.testing.assert_array_equal, stated, variables)


def test_a_torch_module_says_its_strides_dilations_and_activations():
    torch = pytest.importorskip("torch", reason="needs jbn[peers]")
    import torch_networks

    network = torch_networks.ResNet(**SMALL, classes=CLASSES)
    network.conv1.stride = (1, 1)
    network.layer2[0].conv2.dilation = (2, 2)
    network.act1 = torch.nn.SiLU()
    message = refused(convert.network_from_torch, resnet(), network)
    assert "the source's 'conv1' has stride (1, 1), expected (2, 2), that of the model's" in message
    assert "the source's 'layer2.0.conv2' is dilated" in message
    assert "the source's network has SiLU, expected relu. Make the model with that" in message
    stated = refused(convert.network_from_torch, resnet(), network, activation=jax.nn.relu)
    assert "SiLU" not in stated


def test_a_keras_model_says_its_epsilon():
    norm = types.SimpleNamespace(name="conv1_bn", epsilon=1e-5, moving_mean=None, weights=[])
    act = type("Activation", (), {"name": "act", "weights": [], "activation": jax.nn.silu})()
    source = types.SimpleNamespace(layers=[norm, act])
    norm = functools.partial(BatchNorm, epsilon=1.001e-5)
    message = refused(convert.network_from_keras, resnet(norm=norm), source)
    assert "have epsilon=1.001e-05, expected 1e-05" in message
    assert "the source's network has silu, expected relu" in message


def test_schedules_and_flax_norms_are_no_hindrance():
    import flax.linen as nn

    for norm in (nn.BatchNorm, functools.partial(BatchNorm, momentum=jbn.cumulative)):
        message = refused(convert.network_from_torch, resnet(norm=norm), {})
        assert "epsilon" not in message
