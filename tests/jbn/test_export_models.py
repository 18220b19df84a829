"""Models through `jax.export`: serialized with a symbolic batch, deserialized, and run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.models import CNN, MLP, BNInception, ResNet, SmallBNInception

pytest.importorskip("flatbuffers", reason="jbn[export]")

# Two programs round differently; relative to the largest output.
TOLERANCE = 1e-5

# name: (model, shape of an example); networks have few blocks, one of which halves the resolution
MODELS = {
    "MLP": (MLP(hidden=(6, 5), norm="batch"), (4,)),
    "CNN": (CNN(widths=(4, 8), norm="batch"), (8, 8, 1)),
    "ResNet": (ResNet(blocks=(1, 1), widths=(4, 8), norm="batch"), (8, 8, 3)),
    "BNInception": (BNInception(blocks=BNInception().blocks[2:3], width=16), (32, 32, 3)),
    "SmallBNInception": (
        SmallBNInception(blocks=SmallBNInception().blocks[1:3], width=16),
        (8, 8, 3),
    ),
}


def trained(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) / max(leaf.shape), leaf.dtype),
        shapes,
    )


@pytest.mark.parametrize("folded", [False, True], ids=["with norms", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_read_as_it_was_written(name, folded):
    model, shape = MODELS[name]
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    variables = trained(jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False)))
    want = model.apply(variables, x, training=False)
    if folded:
        variables = jbn.fold_model(model, x, variables=variables, training=False)
        model = model.copy(norm=None, use_bias=True)

    evaluate = jax.jit(lambda x: model.apply(variables, x, training=False))
    sizes = jax.export.symbolic_shape("b, " + ", ".join(map(str, shape)))
    exported = jax.export.export(evaluate)(jax.ShapeDtypeStruct(sizes, jnp.float32))
    read = jax.export.deserialize(exported.serialize())
    for batch in (x, x[:2]):
        got = read.call(batch)
        atol = TOLERANCE * np.abs(want).max()
        np.testing.assert_allclose(got, want[: len(batch)], rtol=0, atol=atol)


def test_a_training_step_is_read_as_it_was_written():
    """Gradients and statistics for a batch of any size; weights and statistics are arguments."""
    model, shape = MODELS["MLP"]
    x = np.random.default_rng(1).normal(size=(6, *shape)).astype(np.float32)
    variables = trained(jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False)))

    def loss(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        logits, new = model.apply(variables, x, training=True, mutable=["batch_stats"])
        return jnp.mean(logits**2), new["batch_stats"]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    arguments = variables["params"], variables["batch_stats"]
    sizes = jax.export.symbolic_shape("b, " + ", ".join(map(str, shape)))
    exported = jax.export.export(step)(*arguments, jax.ShapeDtypeStruct(sizes, jnp.float32))
    got = jax.export.deserialize(exported.serialize()).call(*arguments, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(step(*arguments, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1, np.abs(b).max()))
