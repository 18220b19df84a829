"""Population statistics of models that call a layer under scan, remat and jit."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from population_models import (
    AVERAGED,
    LINEN,
    NNX,
    RECOVERED,
    Nnx,
    algorithm_2,
    batches_of,
    check,
    init,
    linen_step,
)

import jbn
import jbn.linen
import jbn.nnx


class Cell(nn.Module):
    """A block to be lifted by transforms."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, use_bias=False, name="dense")(jnp.tanh(x))
        return self.norm(use_running_average=False, name="norm")(x), None


@pytest.mark.parametrize("library", LINEN)
def test_linen_shared_in_a_scan_over_steps(library):
    """The layer is traced once and called three times."""
    steps = nn.scan(
        Cell,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
        length=3,
    )
    batches, plain = batches_of(), Cell(LINEN[library])
    variables = init(plain, batches[0])

    def step(batch_stats, x):
        tree = {**variables, "batch_stats": batch_stats}
        return steps(LINEN[library]).apply(tree, x, mutable=["batch_stats"])[1]["batch_stats"]

    got = jbn.linen.population(step, variables["batch_stats"], batches)
    w = variables["params"]["dense"]["kernel"]
    check(got["norm"], algorithm_2(w, batches, 3), AVERAGED)


@pytest.mark.parametrize("library", LINEN)
@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_linen_under(lift, library):
    """`nn.jit` caches the earlier trace, which is for statistics of another kind."""
    model, batches = lift(Cell)(LINEN[library]), batches_of()
    step, stats, _ = linen_step(model, batches[0])
    step(stats, batches[0])
    got = jbn.linen.population(step, stats, batches)
    w = init(model, batches[0])["params"]["dense"]["kernel"]
    check(got["norm"], algorithm_2(w, batches, 1), AVERAGED)
    again = step(stats, batches[0])
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, stats)


@pytest.mark.parametrize("library", LINEN)
def test_linen_stack_of_layers(library):
    axes = {"params": 0, "batch_stats": 0}
    stack = nn.scan(Cell, variable_axes=axes, split_rngs={"params": True}, length=3)
    batches = batches_of()
    step, stats, _ = linen_step(stack(LINEN[library]), batches[0])
    got = jbn.linen.population(step, stats, batches)
    want = jbn.population(step, stats, batches)
    check(got["norm"], (want["norm"]["mean"], want["norm"]["var"]), RECOVERED)


@pytest.mark.parametrize("library", NNX)
def test_nnx_shared_in_a_scan_under_jit_and_remat(library):
    batches, model = batches_of(), Nnx(NNX[library], 0.99)

    def forward(model, x):
        @nnx.scan(in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=3)
        def steps(carry, _):
            model, x = carry
            return model, nnx.remat(lambda model, x: model(x))(model, x)

        return nnx.jit(lambda model, x: steps((model, x), None))(model, x)

    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 3), AVERAGED)
