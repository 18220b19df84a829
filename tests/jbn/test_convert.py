"""`jbn.convert` against the frameworks themselves: their layers, their numbers, both ways."""

import os
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
import jbn.linen
from jbn import convert

C = 3
# Two float32 implementations of the same formulas, sums in another order.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# What the issue asks of losses after three steps on either side.
LOSS = 1e-4


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs jbn[peers]")


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    # Where it writes its configuration when imported.
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
    return pytest.importorskip("keras", reason="needs keras")


@pytest.fixture(scope="module")
def hk():
    return pytest.importorskip("haiku", reason="needs jbn[peers]")


@pytest.fixture(scope="module")
def eqx():
    return pytest.importorskip("equinox", reason="needs jbn[peers]")


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def layer(use_scale=True, use_bias=True, count=7, features=C):
    """Make a layer as training leaves it, with digits down to the last bit."""
    rng = np.random.default_rng(5)
    scale, bias, mean, var = (
        jnp.asarray(rng.uniform(0.3, 3, features), jnp.float32) for _ in range(4)
    )
    params = jbn.BatchNormParams(scale if use_scale else None, bias if use_bias else None)
    return params, jbn.BatchNormState(mean, var, jnp.int32(count))


def evaluate(converted, x, **options):
    params, state, own = converted
    return jbn.batch_norm(x, params, state, training=False, epsilon=own.epsilon, **options)[0]


def train(converted, x, **options):
    """Return y and the layer with its statistics moved, by the converted options."""
    params, state, own = converted
    y, state = jbn.batch_norm(x, params, state, training=True, **own._asdict(), **options)
    return y, convert.Converted(params, state, own)


def assert_same_bits(got, want):
    chex.assert_trees_all_equal_shapes_and_dtypes(tuple(got), tuple(want))
    chex.assert_trees_all_equal(tuple(got), tuple(want))


AFFINE = [(True, True), (True, False), (False, True), (False, False)]
affine = pytest.mark.parametrize(("use_scale", "use_bias"), AFFINE)

# Imports ----------------------------------------------------------------------------------------


def test_no_framework_is_imported_before_its_objects_are_made():
    code = """
import sys, numpy as np, jbn
c = jbn.convert
layer = jbn.init(3)
c.from_torch(c.to_torch(*layer, tensors=False))
c.from_torch_kernel(c.to_torch_kernel(np.ones((3, 4)), tensors=False))
c.from_keras(c.to_keras(*layer))
c.from_linen(c.to_linen(*layer))
c.from_nnx(c.to_nnx(*layer))
c.from_haiku(*c.to_haiku(*layer, decay_rate=.9), decay_rate=.9)
peers = {"torch", "keras", "tensorflow", "flax", "optax", "haiku", "equinox"}
assert not peers & set(sys.modules), peers & set(sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


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
    # JAX may share memory that is aligned like its own.
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

# torch's layer, Flax's layer, shape of x as torch has it
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


# A network from torch, which goes on in jbn ------------------------------------------------------

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
    # Flatten is in the order of torch's axes, (C, H, W); ours are (H, W, C).
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
    assert abs(theirs[-1] - first[0]) > 100 * LOSS  # It moves at all.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOSS)

    network.eval()
    want = network(torch.from_numpy(images[0])).detach().numpy()
    got, _ = apply(params, states, np.moveaxis(images[0], 1, -1), False)
    np.testing.assert_allclose(got, want, rtol=0, atol=LOSS)

    # And back: torch goes on from jbn's layers.
    for name, norm in norms.items():
        saved = convert.to_torch(params[name], states[name])
        saved["num_batches_tracked"] -= norm.state.count.item()
        assert int(saved["num_batches_tracked"]) == STEPS
        network[int(name)].load_state_dict(convert.to_torch(params[name], states[name]))
    got = network(torch.from_numpy(images[0])).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=LOSS)


# Keras ------------------------------------------------------------------------------------------


# Keras 3.15 does not take NumPy 2's `copy`: its get_weights() warns.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@affine
@keras_warns
def test_keras_layer_goes_on_in_jbn(keras, use_scale, use_bias):
    theirs = keras.layers.BatchNormalization(momentum=0.8, scale=use_scale, center=use_bias)
    theirs.build((None, C))
    weights = [values((C,), seed) ** 2 + 0.5 for seed in range(len(theirs.get_weights()))]
    theirs.set_weights(weights)
    converted = convert.from_keras(theirs)
    assert converted.options == (0.8, 1e-3, False)
    by_list = convert.from_keras(theirs.get_weights(), use_scale=use_scale, use_bias=use_bias)
    assert_same_bits(by_list[:2], converted[:2])
    assert by_list.options == (0.99, 1e-3, False)
    for got, want in zip(convert.to_keras(*converted[:2]), weights, strict=True):
        np.testing.assert_array_equal(got, want, strict=True)

    x = values((16, C), seed=9)
    np.testing.assert_allclose(evaluate(converted, x), theirs(x, training=False), **CLOSE)
    y, converted = train(converted, x)
    np.testing.assert_allclose(y, theirs(x, training=True), **CLOSE)
    for got, want in zip(convert.to_keras(*converted[:2]), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    theirs.set_weights(convert.to_keras(*converted[:2]))
    np.testing.assert_allclose(evaluate(converted, x), theirs(x, training=False), **CLOSE)


@affine
def test_keras_layout_round_trips_without_the_count(use_scale, use_bias):
    params, state = layer(use_scale, use_bias)
    weights = convert.to_keras(params, state)
    got = convert.from_keras(weights, use_scale=use_scale, use_bias=use_bias)
    assert_same_bits(got[:2], (params, state._replace(count=jnp.int32(0))))


def test_keras_names_everything_that_is_wrong(keras):
    theirs = keras.layers.BatchNormalization()
    theirs.build((None, 4))
    with pytest.raises(convert.ConversionError) as error:
        convert.from_keras(theirs, num_features=C, options=convert.Options(0.9, 1e-5, True))
    text = str(error.value)
    for part in ("gamma", "beta", "moving_mean", "moving_variance", "momentum", "epsilon", "unbia"):
        assert part in text
    with pytest.raises(convert.ConversionError, match="2 weights, expected 4: gamma, beta"):
        convert.from_keras([np.zeros(3), np.ones(3)])


def test_keras_layer_that_is_not_built_has_nothing(keras):
    with pytest.raises(convert.ConversionError, match="moving_variance") as error:
        convert.from_keras(keras.layers.BatchNormalization())
    assert len(error.value.problems) == 4


# Flax -------------------------------------------------------------------------------------------


@affine
@pytest.mark.parametrize("make", [nn.BatchNorm, jbn.linen.BatchNorm])
def test_linen_layer_goes_on_in_jbn(make, use_scale, use_bias):
    theirs = make(momentum=0.8, use_scale=use_scale, use_bias=use_bias)
    variables = convert.to_linen(*layer(use_scale, use_bias))
    options = convert.Options(0.8, 1e-5, False)
    back = convert.to_linen(*convert.from_linen(variables)[:2])
    chex.assert_trees_all_equal_shapes_and_dtypes(back, variables)
    chex.assert_trees_all_equal(back, variables)
    x = values((16, C), seed=9)
    y, moved = theirs.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    got, converted = train(convert.from_linen(variables, options=options), x)
    np.testing.assert_allclose(got, y, **CLOSE)
    want = convert.from_linen(variables | moved).state
    chex.assert_trees_all_close(tuple(converted.state[:2]), tuple(want[:2]), rtol=2e-6, atol=2e-6)
    y = theirs.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(evaluate(convert.from_linen(variables), x), y, **CLOSE)


def test_linen_model_by_paths():
    params, state = layer()
    variables = convert.to_linen(params, state, "block/norm", with_count=True)
    assert_same_bits(convert.from_linen(variables, "block/norm")[:2], (params, state))
    with pytest.raises(convert.ConversionError) as error:
        convert.convert_layers(
            convert.from_linen, variables, names=["block/norm", "block/nrm", "norm"], num_features=4
        )
    assert len(error.value.problems) == 8  # Four shapes, and twice mean and var.


@affine
def test_nnx_layer_goes_on_in_jbn(use_scale, use_bias):
    options = {"use_scale": use_scale, "use_bias": use_bias, "momentum": 0.8, "epsilon": 1e-3}
    theirs = nnx.BatchNorm(C, rngs=nnx.Rngs(0), **options)
    ours = layer(use_scale, use_bias)
    nnx.update(theirs, convert.to_nnx(*ours))
    converted = convert.from_nnx(theirs)
    assert converted.options == (0.8, 1e-3, False)
    without_count = (ours[0], ours[1]._replace(count=jnp.int32(0)))
    assert_same_bits(converted[:2], without_count)
    assert_same_bits(convert.from_nnx(nnx.state(theirs))[:2], without_count)
    assert_same_bits(convert.from_nnx(nnx.to_pure_dict(nnx.state(theirs)))[:2], without_count)
    assert_same_bits(convert.from_nnx(convert.to_nnx(*ours, with_count=True))[:2], ours)
    x = values((16, C), seed=9)
    np.testing.assert_allclose(evaluate(converted, x), theirs(x, use_running_average=True), **CLOSE)
    y, converted = train(converted, x)
    np.testing.assert_allclose(y, theirs(x, use_running_average=False), **CLOSE)
    chex.assert_trees_all_close(
        tuple(converted.state[:2]), tuple(convert.from_nnx(theirs).state[:2]), rtol=2e-6, atol=2e-6
    )
    with pytest.raises(convert.ConversionError, match=r"epsilon is 0\.001, expected 1e-05"):
        convert.from_nnx(theirs, options=convert.Options(0.8, 1e-5, False))


# Haiku ------------------------------------------------------------------------------------------


@affine
@pytest.mark.parametrize(("shape", "axis"), [((16, C), -1), ((4, 5, 5, C), -1), ((4, C, 5), 1)])
def test_haiku_layer_goes_on_in_jbn(hk, use_scale, use_bias, shape, axis):
    data_format = "channels_first" if axis == 1 else "channels_last"

    def forward(x, is_training):
        norm = hk.BatchNorm(use_scale, use_bias, 0.8, eps=1e-3, data_format=data_format)
        return norm(x, is_training)

    theirs = hk.transform_with_state(forward)
    apply = jax.jit(theirs.apply, static_argnums=4)
    x = values(shape, seed=9)
    params, state = jax.jit(theirs.init, static_argnums=2)(None, x, True)
    assert int(convert.from_haiku(params, state, decay_rate=0.8).state.count) == 0
    keywords = {"decay_rate": 0.8, "epsilon": 1e-3}
    _, state = apply(params, state, None, x, True)
    converted = convert.from_haiku(params, state, **keywords)
    for step in range(2):
        x = values(shape, seed=10 + step)
        np.testing.assert_allclose(
            evaluate(converted, x, axis=axis),
            apply(params, state, None, x, False)[0],
            **CLOSE,
        )
        want, state = apply(params, state, None, x, True)
        got, converted = train(converted, x, axis=axis)
        np.testing.assert_allclose(got, want, **CLOSE)
        again = convert.from_haiku(params, state, **keywords)
        chex.assert_trees_all_close(
            tuple(converted.state), tuple(again.state), rtol=1e-5, atol=1e-5
        )
    back = convert.to_haiku(*again[:2], decay_rate=0.8, ndim=len(shape), axis=axis)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, (dict(params), state))
    chex.assert_trees_all_close(back, (dict(params), state), rtol=1e-6)
    for ema, arrays in state.items():  # All but `hidden` is exact.
        np.testing.assert_array_equal(back[1][ema]["average"], arrays["average"])


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_haiku_round_trip_is_bit_exact(count):
    ours = layer(count=count)
    trees = convert.to_haiku(*ours, "net/~/norm", decay_rate=0.999, ndim=4)
    got = convert.from_haiku(*trees, "net/~/norm", decay_rate=0.999)
    assert_same_bits(got[:2], ours)


def test_haiku_names_everything_that_is_wrong():
    params, state = convert.to_haiku(*layer(), decay_rate=0.9)
    state = {ema: dict(arrays) for ema, arrays in state.items()}
    del state["batch_norm/~/var_ema"]["average"]
    state["batch_norm/~/var_ema"]["counter"] = np.int32(3)
    with pytest.raises(convert.ConversionError) as error:
        convert.from_haiku(params, state, decay_rate=0.99, num_features=4)
    text = str(error.value)
    for part in ("no 'var_ema/average'", "decay_rate=0.99", "7 batches, var_ema 3", "'offset' has"):
        assert part in text
    with pytest.raises(convert.ConversionError, match="no 'mean_ema/average'"):
        convert.from_haiku(params, state, "typo", decay_rate=0.9)


# Equinox ----------------------------------------------------------------------------------------


def equinox_norm(eqx, mode, **options):
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    return make(C, axis_name="batch", mode=mode, momentum=0.8, eps=1e-3, **options)


def call_equinox(module, state, x, inference):
    return jax.vmap(
        lambda x, state: module(x, state, inference=inference),
        axis_name="batch",
        in_axes=(0, None),
        out_axes=(0, None),
    )(x, state)


@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.parametrize("is_affine", [True, False])
def test_equinox_layer_goes_on_in_jbn(eqx, mode, is_affine):
    module, state = equinox_norm(eqx, mode, channelwise_affine=is_affine)
    if is_affine:
        params = layer()[0]
        module = eqx.tree_at(lambda m: (m.weight, m.bias), module, tuple(params))
    _, state = call_equinox(module, state, values((16, C, 4)), False)
    converted = convert.from_equinox(module, state)
    assert converted.options.epsilon == 1e-3
    for step in range(2):
        x = values((16, C, 4), seed=10 + step)
        want = call_equinox(module, state, x, True)[0]
        np.testing.assert_allclose(evaluate(converted, x, axis=1), want, **CLOSE)
        want, state = call_equinox(module, state, x, False)
        got, converted = train(converted, x, axis=1)
        if mode == "batch":  # The other normalizes by running statistics.
            np.testing.assert_allclose(got, want, **CLOSE)
        again = convert.from_equinox(module, state)
        chex.assert_trees_all_close(
            tuple(converted.state[:2]), tuple(again.state[:2]), rtol=1e-5, atol=1e-5
        )
    _, back = convert.to_equinox(*again[:2], module, state)
    chex.assert_trees_all_close(jax.tree.leaves(back), jax.tree.leaves(state), rtol=1e-6)


def test_equinox_first_step_has_the_right_variance(eqx):
    """Equinox' own, at count 1, is (momentum + (1 - momentum) var) / (1 - momentum)."""
    module, state = equinox_norm(eqx, "batch")
    x = values((16, C, 4))
    _, moved = train(convert.from_equinox(module, state), x, axis=1)
    np.testing.assert_allclose(moved.state.var, x.var((0, 2)), rtol=1e-5)


@pytest.mark.parametrize(("mode", "count"), [("ema", 0), ("ema", 1), ("batch", 0), ("batch", 7)])
@pytest.mark.parametrize("is_affine", [True, False])
def test_equinox_round_trip(eqx, mode, count, is_affine):
    ours = layer(is_affine, is_affine, count=count)
    module, state = equinox_norm(eqx, mode, channelwise_affine=is_affine)
    filled = convert.to_equinox(*ours, module, state)
    got = convert.from_equinox(*filled)[:2]
    if mode == "ema" or count == 0:
        assert_same_bits(got, ours)
    else:  # Times 1 - momentum^count and back.
        chex.assert_trees_all_close(tuple(got), tuple(ours), rtol=2e-7)
    # The state given, and the layer, are as they were.
    chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(equinox_norm(eqx, mode)[1]))


def test_equinox_model_keeps_its_other_states(eqx):
    class Model(eqx.Module):
        first: eqx.nn.BatchNorm
        second: eqx.nn.BatchNorm

        def __init__(self):
            self.first, self.second = (
                eqx.nn.BatchNorm(C, axis_name="batch", mode="batch") for _ in range(2)
            )

    model, state = eqx.nn.make_with_state(Model)()
    ours = layer(count=0)
    _, new = convert.to_equinox(*ours, model.second, state)
    assert_same_bits(convert.from_equinox(model.second, new).state, ours[1])
    assert_same_bits(convert.from_equinox(model.first, new).state, jbn.init(C)[1])


def test_equinox_names_everything_that_is_wrong(eqx):
    module, state = equinox_norm(eqx, "batch", channelwise_affine=False)
    ours = layer(features=4)
    with pytest.raises(convert.ConversionError) as error:
        convert.to_equinox(*ours, module, state, options=convert.Options(0.9, 1e-5, False))
    for part in ("weight", "bias", "input_size is 3, expected 4", "momentum", "epsilon is 0.001"):
        assert part in str(error.value)
    with pytest.raises(convert.ConversionError, match="epsilon"):
        convert.from_equinox(
            module, state, options=convert.Options(convert.Debiased(0.8), 1e-5, False)
        )


# Options ----------------------------------------------------------------------------------------

OPTIONS = {
    "torch": convert.Options(1 - 0.3, 1e-3, True),
    "keras": convert.Options(0.7, 1e-4, False),
    "linen": convert.Options(0.7, 1e-4, False),
    "nnx": convert.Options(0.7, 1e-4, False),
    "haiku": convert.Options(convert.Debiased(0.7), 1e-4, False),
    "equinox": convert.Options(convert.Debiased(0.7), 1e-4, False),
}


@pytest.mark.parametrize("framework", OPTIONS)
def test_arguments_make_the_layer_that_has_these_options(request, framework):
    options = OPTIONS[framework]
    arguments = convert.framework_kwargs(options, framework)
    if framework == "torch":
        got = convert.from_torch(
            request.getfixturevalue("torch").nn.BatchNorm2d(C, **arguments), options=options
        ).options
        assert got.momentum == pytest.approx(0.7, rel=1e-15)
    elif framework == "keras":
        theirs = request.getfixturevalue("keras").layers.BatchNormalization(**arguments)
        theirs.build((None, C))
        assert convert.from_keras(theirs).options == options
    elif framework == "linen":
        theirs = nn.BatchNorm(**arguments)
        assert (theirs.momentum, theirs.epsilon) == options[:2]
    elif framework == "nnx":
        theirs = nnx.BatchNorm(C, rngs=nnx.Rngs(0), **arguments)
        assert convert.from_nnx(theirs).options == options
    elif framework == "haiku":
        assert arguments == {"decay_rate": 0.7, "eps": 1e-4}
    else:
        make = request.getfixturevalue("eqx").nn
        pair = make.make_with_state(make.BatchNorm)(C, axis_name="batch", **arguments)
        assert convert.from_equinox(*pair).options == options


@pytest.mark.parametrize("framework", OPTIONS)
def test_what_a_framework_cannot_do_is_an_error(framework):
    unbiased = OPTIONS[framework].unbiased
    wrong = convert.Options(lambda count: 0.9, 1e-5, not unbiased)
    with pytest.raises(convert.ConversionError) as error:
        convert.framework_kwargs(wrong, framework)
    assert len(error.value.problems) == 2


def test_torch_cumulative_average_and_unknown_frameworks():
    options = convert.Options(jbn.cumulative, 1e-5, True)
    assert convert.framework_kwargs(options, "torch") == {"momentum": None, "eps": 1e-5}
    with pytest.raises(ValueError, match="one of torch, keras"):
        convert.framework_kwargs(options, "caffe")


def test_layers_with_two_feature_axes_fit_no_format_but_linen():
    ours = jbn.init((2, 3))
    for to in (convert.to_torch, convert.to_keras, convert.to_nnx):
        with pytest.raises(convert.ConversionError, match="one feature axis"):
            to(*ours)
    with pytest.raises(convert.ConversionError, match="one feature axis"):
        convert.to_haiku(*ours, decay_rate=0.9)
