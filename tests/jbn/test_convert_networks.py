"""Weights of whole networks from torch and back: the same logits, the same training."""

import functools
import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_weights import (
    CLASSES,
    SMALL,
    assert_same_logits,
    evaluate,
    images,
    inception,
    needs,
    resnet,
)

import jbn
from jbn import convert, models
from jbn.linen import BatchNorm

torch = pytest.importorskip("torch", reason="needs jbn[peers]")
import torch_networks  # noqa: E402  It imports torch.
from torch_networks import as_trained  # noqa: E402

BLOCKS = ("3a", "3c", "5b")  # One of each kind.
PADDED = needs(models.InceptionNet, "padding")
AS_TORCH = functools.partial(BatchNorm, momentum=0.9, unbiased=True, epsilon=1e-5)


def torch_resnet(bottleneck=False, **attributes):
    return as_trained(
        torch_networks.ResNet(**SMALL | {"bottleneck": bottleneck, "classes": CLASSES} | attributes)
    )


def torch_inception(**attributes):
    return as_trained(torch_networks.BNInception(**{"width": 8, "classes": CLASSES} | attributes))


def some_inception(names=BLOCKS, **attributes):
    blocks = tuple(block for block in models.BNInception().blocks if block.name in names)
    return inception(blocks=blocks, **attributes)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def torch_logits(network, x):
    with torch.no_grad():
        return network(channels_first(x)).numpy()


def same_bits(got, want):
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_has_the_logits_of_torch(bottleneck):
    network, x = torch_resnet(bottleneck), images()
    model = resnet(bottleneck=bottleneck)
    variables = convert.network_from_torch(model, network)
    assert_same_logits(evaluate(model, variables, x), torch_logits(network, x))


def test_resnet50_has_the_logits_of_torch():
    network = as_trained(
        torch_networks.ResNet((3, 4, 6, 3), (64, 128, 256, 512), bottleneck=True, classes=CLASSES)
    )
    model, x = models.resnet50(norm="batch", outputs=CLASSES), images(size=64)
    variables = convert.network_from_torch(model, network.state_dict())
    assert_same_logits(evaluate(model, variables, x), torch_logits(network, x))


@PADDED
def test_bn_inception_has_the_logits_of_its_port():
    network, model, x = torch_inception(), inception(), images(size=64)
    variables = convert.network_from_torch(model, network)
    assert_same_logits(evaluate(model, variables, x), torch_logits(network, x))


@PADDED
def test_biases_before_batch_norm_are_kept_where_the_model_has_them():
    network, x = torch_inception(blocks=BLOCKS, output="fc"), images()
    model = some_inception(use_bias=True)
    variables = convert.network_from_torch(model, network)
    assert_same_logits(evaluate(model, variables, x), torch_logits(network, x))
    folded = convert.network_from_torch(some_inception(), network)
    kept, bias = variables["batch_stats"]["conv_norm"], variables["params"]["conv"]["bias"]
    np.testing.assert_array_equal(kept["mean"] - bias, folded["batch_stats"]["conv_norm"]["mean"])


def jax_losses(model, variables, x, labels, rate, steps):
    @jax.jit
    def step(variables):
        def loss(params):
            logits, moved = model.apply(
                {**variables, "params": params}, x, training=True, mutable=["batch_stats"]
            )
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -chosen.mean(), moved

        (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - rate * g, variables["params"], gradient)
        return value, {"params": params, **moved}

    losses = []
    for _ in range(steps):
        value, variables = step(variables)
        losses.append(float(value))
    return losses, variables


def torch_losses(network, x, labels, rate, steps):
    network.train()
    losses = []
    for _ in range(steps):
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(channels_first(x)), torch.tensor(labels))
        loss.backward()
        with torch.no_grad():  # Like torch.optim.SGD, which takes seconds to import.
            for parameter in network.parameters():
                parameter -= rate * parameter.grad
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["resnet", pytest.param("inception", marks=PADDED)])
def test_training_goes_on_as_in_torch(kind):
    x, labels = images(8), np.arange(8, dtype=np.int32) % CLASSES
    if kind == "inception":
        network, model = torch_inception(blocks=["3c"]), some_inception(["3c"], norm=AS_TORCH)
    else:
        network, model = torch_resnet(blocks=(1, 1)), resnet(blocks=(1, 1), norm=AS_TORCH)
    variables = convert.network_from_torch(model, network)
    got, variables = jax_losses(model, variables, x, labels, 0.1, 3)
    want = torch_losses(network, x, labels.astype(np.int64), 0.1, 3)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert abs(want[0] - want[-1]) > 1e-2
    # The running statistics were updated as in torch. The port's means include biases, which
    # training does not change.
    there = convert.network_from_torch(model, network)["batch_stats"]
    chex.assert_trees_all_close(variables["batch_stats"], there, rtol=1e-4, atol=1e-4)


def test_a_resnet_comes_back_bit_by_bit():
    network = torch_resnet(bottleneck=True)
    model = resnet(bottleneck=True, norm=functools.partial(BatchNorm, momentum=jbn.cumulative))
    variables = convert.network_from_torch(model, network)
    assert int(variables["batch_stats"]["block_1_0_shortcut_norm"]["count"]) == 7
    state_dict = convert.network_to_torch(model, variables)
    same_bits(state_dict, network.state_dict())
    chex.assert_trees_all_equal(convert.network_from_torch(model, state_dict), variables)


@PADDED
def test_bn_inception_with_biases_comes_back_bit_by_bit():
    network = torch_inception(blocks=BLOCKS)
    counting = functools.partial(BatchNorm, momentum=jbn.cumulative)
    model = some_inception(norm=counting, use_bias=True)
    variables = convert.network_from_torch(model, network)
    same_bits(convert.network_to_torch(model, variables), network.state_dict())


@PADDED
def test_bn_inception_without_biases_fits_into_its_port():
    network, model, x = torch_inception(blocks=BLOCKS), some_inception(), images()
    variables = convert.network_from_torch(model, network)
    state_dict = convert.network_to_torch(model, variables)
    chex.assert_trees_all_equal(convert.network_from_torch(model, state_dict), variables)
    want = torch_logits(network, x)
    network.load_state_dict(state_dict)
    assert_same_logits(torch_logits(network, x), want)


def wrapped(state_dict, prefix):
    return {prefix + key: value for key, value in state_dict.items()}


def arrays(state_dict):
    return {key: value.numpy() for key, value in state_dict.items()}


def through_a_file(checkpoint):
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


VARIATIONS = {
    "arrays": arrays,
    "jax": lambda weights: jax.tree.map(jnp.asarray, arrays(weights)),
    "parallel": lambda weights: wrapped(weights, "module."),
    "compiled": lambda weights: wrapped(weights, "module._orig_mod."),
    "compiled stage": lambda weights: {
        key.replace("layer1.", "layer1._orig_mod."): value for key, value in weights.items()
    },
    "averaged": lambda weights: {"n_averaged": torch.tensor(3), **wrapped(weights, "module.")},
    "checkpoint": lambda weights: {"epoch": 3, "optimizer": {}, "state_dict": weights},
    "deep": lambda weights: {"model": {"state_dict": wrapped(weights, "module.")}, "epoch": 3},
    "file": lambda weights: through_a_file({"model": weights, "epoch": 3}),
    "old": lambda weights: {
        key: value for key, value in weights.items() if "num_batches_tracked" not in key
    },
    "rows": lambda weights: {
        key: value[None] if ".bn" in key and value.ndim else value for key, value in weights.items()
    },
}


@pytest.fixture(scope="module")
def small():
    """Return a state_dict, its model, and the variables that every variation should give."""
    network, model = torch_resnet(), resnet()
    return network.state_dict(), model, convert.network_from_torch(model, network)


@pytest.mark.parametrize("vary", VARIATIONS.values(), ids=VARIATIONS)
def test_variations_of_a_state_dict(small, vary):
    weights, model, want = small
    got = convert.network_from_torch(model, vary(dict(weights)))
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_half_precision_become_the_models_dtypes(small, dtype):
    weights, model, want = small
    half = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in weights.items()
    }
    got = convert.network_from_torch(model, half)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    exact = {key: value.float() for key, value in half.items()}
    chex.assert_trees_all_equal(got, convert.network_from_torch(model, exact))


def test_params_take_the_models_param_dtype(small):
    weights, _, want = small
    got = convert.network_from_torch(resnet(param_dtype=jnp.bfloat16), weights)
    kernel, stats = got["params"]["stem"]["kernel"], got["batch_stats"]["stem_norm"]["mean"]
    assert (kernel.dtype, stats.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(kernel, want["params"]["stem"]["kernel"].astype(jnp.bfloat16))


def test_half_precision_goes_to_torch_and_back(small):
    weights, _, _ = small
    model = resnet(param_dtype=jnp.bfloat16)
    variables = convert.network_from_torch(model, weights)
    state_dict = convert.network_to_torch(model, variables)
    assert state_dict["conv1.weight"].dtype == torch.bfloat16
    chex.assert_trees_all_equal(convert.network_from_torch(model, state_dict), variables)


def test_another_number_of_classes_leaves_the_head_to_the_user(small):
    weights, _, want = small
    model = resnet(outputs=3)
    got = convert.network_from_torch(model, weights, head=False)
    assert "output" not in got["params"]
    want = {**want, "params": {k: v for k, v in want["params"].items() if k != "output"}}
    chex.assert_trees_all_equal(got, want)
    bare = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    chex.assert_trees_all_equal(convert.network_from_torch(model, bare, head=False), got)
    assert convert.network_to_torch(model, got, head=False).keys() == bare.keys()


def test_arrays_are_copies(small):
    weights, model, want = small
    weights = {key: value.clone() for key, value in weights.items()}
    got = convert.network_from_torch(model, weights)
    for value in weights.values():
        value.zero_()
    chex.assert_trees_all_equal(got, want)


def test_gray_images():
    network, model, x = torch_resnet(colors=1), resnet(), images(colors=1)
    variables = convert.network_from_torch(model, network)
    assert_same_logits(evaluate(model, variables, x), torch_logits(network, x))
    assert convert.network_to_torch(model, variables)["conv1.weight"].shape == (8, 1, 7, 7)
