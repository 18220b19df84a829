"""`jbn.convert` against torch: layers, kernels and a network, in both directions."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from converted import CLOSE, C, assert_same_bits, evaluate, layer, train, values

import jbn
from jbn import convert

# Tolerance for the losses after three steps in either library.
LOSS = 1e-4


# torch ------------------------------------------------------------------------------------------


def torch_norm(torch, **options):
    module = torch.nn.BatchNorm2d(C, **options)
    with torch.no_grad():
        for _ in range(3):
            module(torch.from_numpy(values((4, C, 5, 5)))).sum()
        if module.affine:
            module.weight.copy_(torch.linspace(0.5, 2, C))
            module.bias.copy_(torch.linspace(-1, 1, C))
    return module


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("is_affine", [True, False])
def test_torch_layer_goes_on_in_jbn(torch, momentum, is_affine):
    module = torch_norm(torch, momentum=momentum, affine=is_affine, eps=1e-3)
    converted = convert.from_torch(module, num_features=C)
    assert int(converted.state.count) == 3
    assert (converted.params.scale is None) == (not is_affine)
    x = values((4, C, 5, 5), seed=1)
    for _ in range(2):
        want = module(torch.from_numpy(x)).detach().numpy()
        got, converted = train(converted, x, axis=1)
        np.testing.assert_allclose(got, want, **CLOSE)
    again = convert.from_torch(module.state_dict(), options=converted.options)
    chex.assert_trees_all_close(tuple(converted.state), tuple(again.state), rtol=2e-6, atol=2e-6)
    module.eval()
    want = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(evaluate(again, x, axis=1), want, **CLOSE)


def test_torch_round_trips_are_bit_exact(torch):
    module = torch_norm(torch)
    theirs = module.state_dict()
    back = convert.to_torch(*convert.from_torch(theirs)[:2])
    assert list(back) == list(theirs)
    for key, tensor in theirs.items():
        assert back[key].dtype == tensor.dtype
        assert torch.equal(back[key], tensor)
    torch.nn.BatchNorm2d(C).load_state_dict(back)
    ours = layer()
    assert_same_bits(convert.from_torch(convert.to_torch(*ours, "a.b."), "a.b")[:2], ours)
    ours = layer(False, False)
    assert_same_bits(convert.from_torch(convert.to_torch(*ours))[:2], ours)


def test_torch_has_scale_and_bias_or_neither():
    params, state = layer(use_scale=False)
    got = convert.from_torch(convert.to_torch(params, state, tensors=False)).params
    chex.assert_trees_all_equal(got, jbn.BatchNormParams(jnp.ones(C), params.bias))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_half_precision(torch, dtype):
    module = torch_norm(torch).to(getattr(torch, dtype))
    params, state, _ = convert.from_torch(module)
    assert params.scale.dtype == dtype
    assert state.mean.dtype == state.var.dtype == jnp.float32
    back = convert.to_torch(params, state)
    for key, tensor in module.state_dict().items():
        assert torch.equal(back[key].to(tensor.dtype), tensor)
    assert back["weight"].dtype == module.weight.dtype


def test_training_torch_further_does_not_change_the_copy(torch):
    module = torch.nn.BatchNorm1d(1024)
    # JAX may share memory that is aligned like its own arrays.
    room = torch.zeros(1024 + 16)
    start = -(room.data_ptr() // 4) % 16
    module.running_mean = room[start : start + 1024]
    converted = convert.from_torch(module)
    module(torch.ones(4, 1024))
    assert module.running_mean.min() > 0
    chex.assert_trees_all_equal(converted.state.mean, jnp.zeros(1024))


def test_torch_network_by_prefixes(torch):
    network = torch.nn.Sequential(torch_norm(torch), torch.nn.Sequential(torch_norm(torch)))
    layers = convert.convert_layers(convert.from_torch, network, names=["0", "1.0."])
    assert_same_bits(layers["1.0."][:2], convert.from_torch(network[1][0])[:2])


def test_torch_names_everything_that_is_wrong(torch):
    network = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(3, 8, 3),
            "bn": torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
            "bare": torch.nn.BatchNorm2d(4, track_running_stats=False),
        }
    )
    with pytest.raises(convert.ConversionError) as error:
        convert.convert_layers(
            convert.from_torch,
            network,
            names=["conv", "bn", "bare"],
            num_features=C,
            options=convert.Options(0.9, 1e-5, True),
        )
    text = "\n".join(error.value.problems)
    for part in (
        "no 'conv.running_mean'",
        "no 'conv.running_var'",
        "with statistics are 'bn'",
        "'conv.weight' has shape (8, 3, 3, 3), expected (3,)",
        *(f"'bn.{k}' has shape (4,)" for k in ("weight", "bias", "running_mean", "running_var")),
        "momentum is 0.7, expected 0.9",
        "epsilon is 0.001, expected 1e-05",
        "no 'bare.running_mean'",
    ):
        assert part in text
        assert part in str(error.value)


# Kernels ----------------------------------------------------------------------------------------


# torch's layer, Flax's layer, shape of x in torch's layout
KERNELS = {
    "linear": (lambda t: t.nn.Linear(5, 4), nn.Dense(4), (6, 5)),
    "conv1d": (
        lambda t: t.nn.Conv1d(5, 4, 3, padding=1, stride=2),
        nn.Conv(4, (3,), strides=2, padding=1),
        (2, 5, 8),
    ),
    "conv2d": (
        lambda t: t.nn.Conv2d(3, 4, (3, 2), padding=(1, 0)),
        nn.Conv(4, (3, 2), padding=[(1, 1), (0, 0)]),
        (2, 3, 6, 5),
    ),
    "conv3d": (
        lambda t: t.nn.Conv3d(2, 4, (1, 2, 3)),
        nn.Conv(4, (1, 2, 3), padding="VALID"),
        (2, 2, 3, 4, 5),
    ),
    "groups": (
        lambda t: t.nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2),
        (2, 4, 5, 5),
    ),
    "depthwise": (
        lambda t: t.nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        (2, 4, 5, 5),
    ),
    "transposed 1d": (
        lambda t: t.nn.ConvTranspose1d(5, 4, 3),
        nn.ConvTranspose(4, (3,), padding="VALID"),
        (2, 5, 6),
    ),
    "transposed": (
        lambda t: t.nn.ConvTranspose2d(5, 4, (3, 2), stride=2),
        nn.ConvTranspose(4, (3, 2), strides=(2, 2), padding=[(2, 2), (1, 1)]),
        (2, 5, 4, 3),
    ),
    "transposed, padded": (
        lambda t: t.nn.ConvTranspose2d(5, 4, 4, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose(4, (4, 4), strides=(2, 2), padding=[(2, 3), (2, 3)]),
        (2, 5, 4, 3),
    ),
}


@pytest.mark.parametrize("case", KERNELS)
def test_torch_kernel(torch, case):
    make, flax_layer, shape = KERNELS[case]
    torch.manual_seed(0)
    module = make(torch)
    is_transposed = case.startswith("transposed")
    kernel = convert.from_torch_kernel(module.weight, transposed=is_transposed)
    variables = {"params": {"kernel": kernel, "bias": convert.common.as_array(module.bias)}}
    x = values(shape)
    want = np.moveaxis(module(torch.from_numpy(x)).detach().numpy(), 1, -1)
    got = jax.jit(flax_layer.apply)(variables, np.moveaxis(x, 1, -1))
    np.testing.assert_allclose(got, want, **CLOSE)
    back = convert.to_torch_kernel(kernel, transposed=is_transposed)
    assert torch.equal(back, module.weight)
    module.load_state_dict({"weight": back, "bias": module.bias})


def test_vectors_are_no_kernels():
    with pytest.raises(ValueError, match="at least 2 axes, got 1"):
        convert.from_torch_kernel(np.ones(3))
    with pytest.raises(ValueError, match="at least 3 axes, got 2"):
        convert.to_torch_kernel(np.ones((3, 3)), transposed=True)


# A network from torch, trained further in jbn ----------------------------------------------------


RATE, STEPS = 0.1, 3


def test_network_of_torch_goes_on_in_jbn(torch):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 6, 3, stride=2, bias=False),
        torch.nn.BatchNorm2d(6, momentum=0.2, eps=1e-4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 3 * 3, 5),
    )
    rng = np.random.default_rng(0)
    images = rng.normal(0.5, 1, (2 * STEPS, 16, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 5, (2 * STEPS, 16))
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)

    def torch_step(i):
        optimizer.zero_grad()
        outputs = network(torch.from_numpy(images[i]))
        loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels[i]))
        loss.backward()
        optimizer.step()
        return loss.item()

    first = [torch_step(i) for i in range(STEPS)]

    norms = convert.convert_layers(convert.from_torch, network, names=["1", "4"])
    options = {name: norm.options._asdict() for name, norm in norms.items()}
    states = {name: norm.state for name, norm in norms.items()}
    # torch flattens axes in the order (C, H, W); ours are (H, W, C).
    head = np.array(convert.from_torch_kernel(network[7].weight)).reshape(6, 3, 3, 5)
    params = {
        "0": convert.from_torch_kernel(network[0].weight),
        "1": norms["1"].params,
        "3": convert.from_torch_kernel(network[3].weight),
        "4": norms["4"].params,
        "7": jnp.asarray(head.transpose(1, 2, 0, 3).reshape(-1, 5)),
        "bias": convert.common.as_array(network[7].bias),
    }

    def apply(params, states, x, training):
        moved = {}
        for conv, norm, stride, padding in (("0", "1", 1, "SAME"), ("3", "4", 2, "VALID")):
            x = jax.lax.conv_general_dilated(
                x, params[conv], (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x, moved[norm] = jbn.batch_norm(
                x, params[norm], states[norm], training=training, **options[norm]
            )
            x = jax.nn.relu(x)
        return x.reshape(len(x), -1) @ params["7"] + params["bias"][None], moved

    def loss_of(params, states, x, y):
        logits, moved = apply(params, states, x, True)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean(), moved

    @jax.jit
    def step(params, states, x, y):
        (loss, states), grads = jax.value_and_grad(loss_of, has_aux=True)(params, states, x, y)
        return loss, jax.tree.map(lambda p, g: p - RATE * g, params, grads), states

    ours = []
    for i in range(STEPS, 2 * STEPS):
        x = np.moveaxis(images[i], 1, -1)
        loss, params, states = step(params, states, x, labels[i])
        ours.append(float(loss))
    theirs = [torch_step(i) for i in range(STEPS, 2 * STEPS)]
    assert abs(theirs[-1] - first[0]) > 100 * LOSS  # The loss does change.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOSS)

    network.eval()
    want = network(torch.from_numpy(images[0])).detach().numpy()
    got, _ = apply(params, states, np.moveaxis(images[0], 1, -1), False)
    np.testing.assert_allclose(got, want, rtol=0, atol=LOSS)

    # And back: torch continues with jbn's layers.
    for name, norm in norms.items():
        saved = convert.to_torch(params[name], states[name])
        saved["num_batches_tracked"] -= norm.state.count.item()
        assert int(saved["num_batches_tracked"]) == STEPS
        network[int(name)].load_state_dict(convert.to_torch(params[name], states[name]))
    got = network(torch.from_numpy(images[0])).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=LOSS)
