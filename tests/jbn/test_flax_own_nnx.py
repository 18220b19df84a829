"""Flax's own test cases for nnx's BatchNorm, run on Flax's layer and on ours.

They are rewritten from what the originals check, and each docstring names the case of Flax 0.12.8
(tests/...). Where it says "two examples", Flax trains on batches of one: its y is then just the
bias, but our layer raises, so these cases run with two. `test_batches_of_one` shows both behaviors.
"""

import functools
import pickle

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import jbn.linen
import jbn.nnx

nnx_layers = pytest.mark.parametrize("norm", [nnx.BatchNorm, jbn.nnx.BatchNorm])


def normal(*shape):
    return jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32))


class Block(nnx.Module):
    """A dense layer, normalization and dropout: the model of most of Flax's cases."""

    def __init__(self, norm, rngs, **options):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.bn = norm(3, rngs=rngs, **options)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.node = nnx.Variable(jnp.ones(2))

    def __call__(self, x):
        return nnx.gelu(self.dropout(self.bn(self.linear(x))))


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "masked"),
    [(jnp.float32, jnp.float16, False), (jnp.float16, jnp.float32, True)],
)
@pytest.mark.parametrize(
    ("linen", "nnx_norm"),
    [(nn.BatchNorm, nnx.BatchNorm), (jbn.linen.BatchNorm, jbn.nnx.BatchNorm)],
)
def test_nnx_equals_linen(linen, nnx_norm, dtype, param_dtype, masked):
    """nnx/nn/normalization_test.py: test_nnx_linen_batchnorm_equivalence.

    Its mask drops features, which become NaN in Flax's layers.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype, "use_running_average": False}
    x = normal(10, 5)
    mask = np.array([[True, False, True, False, True]]) if masked else None
    layer = linen(**options)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    want, moved = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    model = nnx_norm(5, **options, promote_dtype=lambda x, **_: x, rngs=nnx.Rngs(42))
    np.testing.assert_array_equal(model(x, mask=mask), want)
    for name, value in (variables["params"] | moved["batch_stats"]).items():
        np.testing.assert_array_equal(getattr(model, name)[...], value)


@nnx_layers
@pytest.mark.parametrize("update", [True, False])
def test_nnx_inside_spectral_norm(norm, update):
    """nnx/nn/normalization_test.py: test_nnx_linen_spectralnorm_equivalence."""
    rngs = nnx.Rngs(42)
    layers = nnx.Sequential(
        nnx.Linear(5, 4, rngs=rngs), nnx.relu, norm(4, use_running_average=not update, rngs=rngs)
    )
    model = nnx.SpectralNorm(layers, update_stats=update, rngs=rngs)
    x = normal(10, 5)
    assert nnx.jit(lambda model, x: model(x))(model, x).shape == (10, 4)
    assert np.asarray(layers.layers[2].mean[...]).any() == update


@nnx_layers
def test_nnx_graph_does_not_hold_the_initializers(norm):
    """nnx/nn/linear_test.py: TestLayersSameGraph."""
    zeros, ones = nnx.initializers.zeros, nnx.initializers.ones
    one, two = (
        norm(3, scale_init=init, bias_init=init, rngs=nnx.Rngs(0)) for init in (zeros, ones)
    )
    assert nnx.graphdef(one) == nnx.graphdef(two)


@nnx_layers
def test_nnx_metadata_of_the_parameters(norm):
    """nnx/nn/linear_test.py: TestLayersParamsMetadata."""
    metadata = {name: {"note": name} for name in ("scale", "bias")}
    layer = norm(
        3, scale_metadata=metadata["scale"], bias_metadata=metadata["bias"], rngs=nnx.Rngs(0)
    )
    assert (layer.scale.note, layer.bias.note) == ("scale", "bias")


@nnx_layers
def test_nnx_training_and_evaluation_views(norm):
    """nnx/integration_test.py: test_basic_view_example."""
    model = Block(norm, nnx.Rngs(0))
    train = nnx.view(model, deterministic=False, use_running_average=False)
    evaluate = nnx.view(model, deterministic=True, use_running_average=True)
    assert (train.bn.use_running_average, evaluate.bn.use_running_average) == (False, True)
    optimizer = nnx.Optimizer(train, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        value, gradient = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
        optimizer.update(model, gradient)
        return value

    x = normal(8, 3)
    step(train, optimizer, x)
    mean = np.asarray(evaluate.bn.mean[...])
    assert mean.any()  # The views share their variables.
    nnx.jit(lambda model, x: model(x))(evaluate, x)
    np.testing.assert_array_equal(model.bn.mean[...], mean)


@nnx_layers
@pytest.mark.parametrize(("view", "pure"), [(False, False), (True, True)])
def test_nnx_blocks_share_a_layer(norm, view, pure):
    """nnx/integration_test.py: test_shared_modules, _view, _pure, _pure_view."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            shared = nnx.Linear(2, 2, rngs=rngs)
            self.linears = nnx.List([shared, shared])
            self.norms = nnx.List([norm(2, rngs=rngs), norm(2, rngs=rngs)])

        def __call__(self, x):
            for linear, layer in zip(self.linears, self.norms, strict=True):
                x = nnx.relu(layer(linear(x)))
            return x

    def train(model, x):
        gradient = nnx.compat.grad(lambda model: jnp.mean(model(x) ** 2))(model)
        params = nnx.compat.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient))

    model = Model(nnx.Rngs(0))
    if view:
        model = nnx.compat.view(model, use_running_average=False)
    else:
        model.set_attributes(use_running_average=False, graph=True)
    x = normal(4, 2)
    graphdef, state = nnx.compat.split(model)

    @jax.jit
    def pure_step(state, x):
        model = nnx.merge(graphdef, state)
        train(model, x)
        return nnx.compat.state(model)

    for _ in range(2):
        if pure:
            state = pure_step(state, x)
        else:
            nnx.compat.jit(train)(model, x)
    model = nnx.merge(graphdef, state) if pure else model
    assert model.linears[0].kernel is model.linears[1].kernel
    assert model.norms[0] is not model.norms[1]
    assert np.asarray(model.norms[1].mean[...]).any()


@nnx_layers
@pytest.mark.skipif(
    tuple(int(part) for part in flax.__version__.split(".")[:3]) > (0, 12, 8),
    reason="later releases forbid it to their own layer as well (ImmutableVariableError)",
)
def test_nnx_mutable_arrays(norm):
    """nnx/integration_test.py: test_example_mutable_arrays."""
    with nnx.var_defaults(hijax=True):
        model = Block(norm, nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

        @jax.jit
        def step(x):
            graphdef, params, rest = nnx.split(model, nnx.Param, ...)

            def loss(params):
                return (nnx.merge(graphdef, params, rest)(x) ** 2).mean()

            value, gradient = jax.value_and_grad(loss)(nnx.with_vars(params, hijax=False))
            optimizer.update(model, gradient)
            return value

        step(normal(8, 3))
        assert np.asarray(model.bn.mean[...]).any()


@nnx_layers
def test_nnx_tree_mode(norm):
    """nnx/integration_test.py: test_tree_mode_multi_module."""

    @nnx.jit(graph=False)
    def step(model, x):
        gradient = nnx.grad(lambda model: jnp.mean(model(x) ** 2), graph=False)(model)
        return jax.tree.map(lambda w, g: w - 0.1 * g, model, gradient)

    model = norm(2, rngs=nnx.Rngs(0))
    model.set_attributes(use_running_average=False)
    for _ in range(3):
        model = step(model, normal(4, 2))


@nnx_layers
def test_nnx_attributes(norm):
    """nnx/module_test.py: test_set_attributes, test_set_attribute_error, test_view,

    test_with_attributes, test_with_attributes_filter, test_with_attributes_error, test_view_error.
    """
    block = Block(norm, nnx.Rngs(0))
    block.set_attributes(deterministic=True, use_running_average=True)
    assert block.bn.use_running_average is True
    block.set_attributes(nnx.Dropout, deterministic=False)
    assert block.bn.use_running_average is True
    with pytest.raises(ValueError, match=r"attributes: \['unknown'\]"):
        block.set_attributes(use_running_average=True, unknown=True)
    block.set_attributes(use_running_average=False, unknown=True, raise_if_not_found=False)
    for copy in (nnx.view, nnx.with_attributes):
        new = copy(block, deterministic=True, use_running_average=True)
        assert new.bn.use_running_average is True
        assert new.linear.kernel is block.linear.kernel
        assert block.bn.use_running_average is False
        new = copy(block, only=nnx.Dropout, deterministic=True)
        assert new.bn.use_running_average is False
    with pytest.raises(ValueError, match=r"attributes: \['unknown'\]"):
        nnx.with_attributes(block, use_running_average=True, unknown=True)
    with pytest.raises(ValueError, match=r"nnx.view: \['unknown'\]"):
        nnx.view(block, use_running_average=True, unknown=True)


@nnx_layers
def test_nnx_descriptions(norm):
    """nnx/module_test.py: test_repr, test_view_info, test_view_info_with_filter;

    nnx/summary_test.py: test_tabulate. Two examples.
    """
    block = Block(norm, nnx.Rngs(0))
    first_line = repr(block).splitlines()[0]
    assert "BatchStat: 6 (24 B)" in first_line
    assert "Param: 18 (72 B)" in first_line
    info = nnx.view_info(block)
    assert info.count("BatchNorm:") == 1
    assert "use_running_average: bool | None = None" in info
    assert "BatchNorm:" not in nnx.view_info(block, only=nnx.Dropout)
    assert "BatchNorm" in nnx.tabulate(block, jnp.ones((2, 3)), console_kwargs={"width": 200})


@nnx_layers
def test_nnx_pickle(norm):
    """nnx/module_test.py: test_cloud_pickle."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    layer, x = norm(3, use_running_average=True, rngs=nnx.Rngs(0)), jnp.ones((5, 3))
    copy = pickle.loads(cloudpickle.dumps(layer))
    np.testing.assert_array_equal(copy(x), layer(x))


@nnx_layers
def test_nnx_layers_change_places(norm):
    """nnx/transforms_test.py: test_graph_updates_unflatten."""
    block = Block(norm, nnx.Rngs(0))
    linear, layer = block.linear, block.bn

    @nnx.jit(graph=True, graph_updates=True)
    def swap(block):
        block.linear, block.bn = block.bn, block.linear

    swap(block)
    assert block.linear is layer
    assert block.bn is linear


@nnx_layers
@pytest.mark.parametrize("as_view", [False, True])
def test_nnx_scan_over_layers(norm, as_view):
    """nnx/transforms_test.py: test_complex, test_complex_decorator, test_complex_broadcast_dropout,

    their _view and _functional forms. Two examples.
    """

    @nnx.split_rngs(splits=5)
    @nnx.vmap(in_axes=0, axis_size=5)
    def create(rngs):
        return Block(norm, rngs)

    @functools.partial(nnx.scan, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def forward(block, x):
        return block(x)

    blocks = create(nnx.Rngs(0))
    mode = {"deterministic": False, "use_running_average": False}
    if as_view:
        blocks = nnx.view(blocks, **mode)
    else:
        blocks.set_attributes(**mode)
    assert blocks.linear.kernel.shape == (5, 3, 3)
    x = normal(2, 3)
    assert forward(blocks, x).shape == (2, 3)
    assert blocks.bn.mean.shape == (5, 3)
    assert np.asarray(blocks.bn.mean[...]).any(1).all()


@nnx_layers
def test_nnx_statistics_per_member(norm):
    """nnx/transforms_test.py: test_state_axes_simple, test_split_rngs_decorator_simple,

    test_state_axes_super_simple, test_example, their _functional forms. Two examples.
    """
    axes = nnx.StateAxes({(nnx.BatchStat, "dropout"): 0, ...: None})
    graph = {"graph": True, "graph_updates": True}

    @nnx.split_rngs(splits=5, only="dropout")
    @nnx.vmap(in_axes=(axes,), out_axes=axes, **graph)
    def create(rngs):
        return Block(norm, rngs)

    block = create(nnx.Rngs(params=0, dropout=1))
    assert block.bn.scale.shape == (3,)
    assert block.bn.mean.shape == (5, 3)
    forward = nnx.jit(nnx.vmap(lambda block, x: block(x), in_axes=(axes, 0), **graph), **graph)
    x = normal(5, 2, 3)
    assert forward(block, x).shape == (5, 2, 3)
    assert len(np.unique(block.bn.mean[...], axis=0)) == 5


@nnx_layers
def test_nnx_axes_by_name(norm):
    """nnx/transforms_test.py: test_state_axes_from_state."""
    state = nnx.state(norm(3, rngs=nnx.Rngs(0)))
    state["scale"], state["mean"], state["var"], state["bias"] = 0, 1, 0, None

    @nnx.vmap(out_axes=nnx.StateAxes(state), axis_size=5, graph=True, graph_updates=True)
    def create():
        return norm(3, rngs=nnx.Rngs(0))

    layer = create()
    shapes = [getattr(layer, name).shape for name in ("scale", "mean", "var", "bias")]
    assert shapes == [(5, 3), (3, 5), (5, 3), (3,)]


@nnx_layers
def test_nnx_split_by_kind(norm):
    """nnx/graph_utils_test.py: test_unpack_multiple_filters, test_unpack_merge_roundtrip_*,

    test_prefix_multiple_filters_*, test_merge_different_graphdefs_error;
    nnx/helpers_test.py: test_train_state_methods. Two examples.
    """
    layer, x = norm(3, rngs=nnx.Rngs(0)), normal(2, 3)
    graphdef, params, stats = nnx.split(layer, nnx.Param, nnx.BatchStat)
    assert sorted(params) == ["bias", "scale"]
    assert sorted(stats) == ["mean", "var"]
    assert isinstance(nnx.merge(graphdef, params, stats), norm)
    y, _ = graphdef.apply(params, stats)(x, use_running_average=False)
    np.testing.assert_array_equal(y, layer(x))
    axes = nnx.prefix(layer, {nnx.Param: "p", nnx.BatchStat: "s"}, graph=False)
    assert (axes.scale, axes.bias, axes.mean, axes.var) == ("p", "p", "s", "s")


@nnx_layers
def test_nnx_inside_linen(norm):
    """nnx/bridge/wrappers_test.py: test_nnx_to_linen_multiple_collections."""
    model = bridge.to_linen(norm, 3, use_running_average=False)
    x = normal(2, 3)
    variables = model.init(jax.random.key(1), x)
    assert sorted(variables) == ["batch_stats", "nnx", "params"] or sorted(variables) == [
        "batch_stats",
        "params",
    ]
    _, moved = model.apply(variables, x, mutable=["batch_stats"])
    assert moved["batch_stats"]["mean"].any()


def test_batches_of_one():
    """Flax silently outputs the bias and loses the variance; our error says what to do instead."""
    x = jnp.array([[1.0, 2.0, 3.0]])
    theirs, ours = (layer(3, rngs=nnx.Rngs(0)) for layer in (nnx.BatchNorm, jbn.nnx.BatchNorm))
    np.testing.assert_array_equal(theirs(x), [[0, 0, 0]])
    with pytest.raises(ValueError, match="more than one value per feature in training"):
        ours(x)
