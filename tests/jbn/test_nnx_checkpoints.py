"""Checkpoints of jbn.nnx.BatchNorm and of Flax, each restored in the other."""

import chex
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from nnx_layers import LAYERS, Network, arrays, close, sample

import jbn
from jbn.nnx import BatchNorm


@pytest.mark.parametrize(("writer", "reader"), [LAYERS, LAYERS[::-1]])
def test_orbax_checkpoint_of_one_restores_in_the_other(writer, reader, tmp_path):
    x = sample((8, 3))
    written = Network(writer, nnx.Rngs(0))
    written(x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(written))
        checkpointer.wait_until_finished()
        blank = Network(reader, nnx.Rngs(1))
        target = nnx.state(nnx.eval_shape(lambda: Network(reader, nnx.Rngs(1))))
        nnx.update(blank, checkpointer.restore(tmp_path / "state", target))
    chex.assert_trees_all_equal(arrays(blank), arrays(written))
    for model in (written, blank):
        model.eval()
    close(blank(x), written(x))
    for model in (written, blank):  # Training continues alike, too.
        model.train()
    close(blank(x), written(x))
    close(arrays(blank), arrays(written))


def test_orbax_checkpoint_of_a_schedule_has_its_count(tmp_path):
    model = Network(BatchNorm, nnx.Rngs(0), momentum=jbn.cumulative)
    model(sample((8, 3)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", nnx.state(model))
    assert int(restored["norm"]["count"][...]) == 1
