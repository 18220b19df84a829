"""The training loop: batches, seeds, and runs that die at any moment and resume."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import run_dir
from experiments.sampling import batch_indices
from experiments.training import loop
from experiments.training.devices import BatchShard, Devices, scan_steps
from experiments.training.loop import Execution, train
from experiments.training.signals import Stopped


@dataclasses.dataclass(frozen=True)
class Options:
    """No options."""


NUM_EXAMPLES, STEPS = 50, 20
EXAMPLES = (
    np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 3)).astype(np.float32),
    np.random.default_rng(1).normal(size=NUM_EXAMPLES).astype(np.float32),
)


def step(state, batch, share):
    x, y = batch
    gradient, _ = share.gradient(lambda w: (share.mean((x @ w - y) ** 2), None), state["w"])
    return {"w": state["w"] - 0.1 * gradient, "count": state["count"] + 1}


def initial(seeds):
    w = np.arange(seeds, dtype=np.float32)[:, None].repeat(3, 1)
    return jax.device_put({"w": w, "count": np.zeros(seeds, np.int32)})


def evaluate(state):
    return {"w": np.asarray(state["w"]).astype(float).tolist()}


def go(run, evaluate=evaluate, seeds=2, every=3, **carried):
    with run:
        return train(
            run,
            initial(seeds),
            step=step,
            evaluate=evaluate,
            examples=EXAMPLES,
            seeds=seeds,
            steps=STEPS,
            batch_size=8,
            evaluate_every=every,
            execution=Execution(**{"checkpoint_every": 1, **carried}),
        )


def metrics(run):
    return (run.path / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics of an uninterrupted run."""
    run = run_dir.create(tmp_path_factory.mktemp("whole"), "demo", Options())
    go(run)
    return metrics(run)


@pytest.fixture
def run(tmp_path):
    """A new run directory."""
    return run_dir.create(tmp_path, "demo", Options())


# ---- Batches -------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step():
    drawn = batch_indices(3, 0, STEPS, 8, NUM_EXAMPLES)
    assert drawn.shape == (STEPS, 8)
    assert drawn.dtype == np.int32
    for start, stop in ((0, 1), (5, 9), (6, 7), (12, 20)):
        np.testing.assert_array_equal(
            batch_indices(3, start, stop, 8, NUM_EXAMPLES), drawn[start:stop]
        )
    assert (batch_indices(4, 0, STEPS, 8, NUM_EXAMPLES) != drawn).any()


@pytest.mark.parametrize("batch_size", [1, 7, 8, 50, 120])
def test_every_epoch_has_every_example_once(batch_size):
    order = batch_indices(0, 0, 3 * NUM_EXAMPLES, batch_size, NUM_EXAMPLES).ravel()
    epochs = order[: len(order) // NUM_EXAMPLES * NUM_EXAMPLES].reshape(-1, NUM_EXAMPLES)
    assert (np.sort(epochs) == np.arange(NUM_EXAMPLES)).all()
    assert (epochs[0] != epochs[1]).any()


# ---- The loop ------------------------------------------------------------------------------------


def test_equals_a_loop_in_python(run):
    first, state = jax.device_get((initial(2), go(run)))
    step_alone = jax.jit(lambda state, batch: step(state, batch, BatchShard(8)))
    for seed in range(2):
        expected = jax.tree.map(lambda leaf, seed=seed: leaf[seed], first)
        for rows in batch_indices(seed, 0, STEPS, 8, NUM_EXAMPLES):
            expected = step_alone(expected, tuple(values[rows] for values in EXAMPLES))
        got = jax.tree.map(lambda leaf, seed=seed: leaf[seed], state)
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_one_seed_equals_the_first_of_many():
    rows = np.stack([batch_indices(seed, 0, 5, 8, NUM_EXAMPLES) for seed in range(3)], axis=1)
    examples = jax.tree.map(jnp.asarray, EXAMPLES)
    many = scan_steps(step, BatchShard(8), initial(3), examples, rows)
    one = scan_steps(step, BatchShard(8), initial(1), examples, rows[:, :1])
    chex.assert_trees_all_close(one, jax.tree.map(lambda leaf: leaf[:1], many), rtol=1e-5)


def test_rows_come_at_the_start_every_chunk_and_the_end(run):
    go(run)
    steps = [row["step"] for row in run_dir.read_rows(run.path / "metrics.jsonl")]
    assert steps == [0, 3, 6, 9, 12, 15, 18, 20]
    timed = [row["step"] for row in run_dir.read_rows(run.path / "timing.jsonl")]
    assert timed == steps[1:]


# ---- Death and resumption ------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, 2, 4, 8])
def test_dies_in_an_evaluation(run, whole, calls):
    left = [calls]

    def dying(state):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("power cut")
        return evaluate(state)

    with pytest.raises(RuntimeError, match="power cut"):
        go(run, dying)
    go(run_dir.open_run(run.path))
    assert metrics(run) == whole


@pytest.mark.parametrize("saves", [1, 3])
def test_dies_between_a_row_and_its_checkpoint(run, whole, monkeypatch, saves):
    save, left = ocp.CheckpointManager.save, [saves]

    def dying(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("power cut")
        return save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            go(run)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step":9,')  # As if it died while writing.
    go(run_dir.open_run(run.path))
    assert metrics(run) == whole


def test_finished_run_stays_as_it_is(run, whole):
    state = go(run)
    again = go(run_dir.open_run(run.path))
    chex.assert_trees_all_equal(again, state)
    assert metrics(run) == whole


# ---- Damage --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run; its last two checkpoints are of steps 18 and 20."""
    run = run_dir.create(tmp_path_factory.mktemp("finished"), "demo", Options())
    go(run)
    return run.path


def steps_of(path):
    return [row["step"] for row in run_dir.read_rows(path)]


@pytest.mark.parametrize(
    ("i", "rows", "begins"),
    [
        (7, b"", 18),  # The newest checkpoint before the damage.
        (7, b'{"step":15,"w":[[NaN,0,0],[0,0,0]]}\n', 18),
        (5, b"", 0),
        (5, b'{"step":15,"w":[[1.0,0.5,0.5],[0.5,0.5,0.5]]}\n', 0),
    ],
)
def test_a_damaged_row_is_said_and_written_again(
    finished, whole, tmp_path, capsys, monkeypatch, i, rows, begins
):
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join([*lines[:i], rows, *lines[i + 1 :]]))
    began = []
    monkeypatch.setattr(loop, "Progress", lambda steps, done: began.append(done) or Quiet())
    go(run_dir.open_run(path))
    assert (path / "metrics.jsonl").read_bytes() == whole
    assert steps_of(path / "timing.jsonl") == [3, 6, 9, 12, 15, 18, 20]
    assert began == [begins]
    told = capsys.readouterr().err
    assert f"checkpoint {path / 'checkpoints' / '20'} is refused" in told
    assert "up to it are missing or changed" in told


class Quiet(contextlib.nullcontext):
    """Shows no progress."""

    def __enter__(self):
        return self

    def advance(self, steps, note):
        pass


def test_a_damaged_row_of_times_is_said(finished, tmp_path, capsys, whole):
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = (path / "timing.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = b'{"step":6,\n'
    (path / "timing.jsonl").write_bytes(b"".join(lines))
    go(run_dir.open_run(path))
    assert f"{path / 'timing.jsonl'} has damaged rows: left out 1" in capsys.readouterr().err
    assert (path / "metrics.jsonl").read_bytes() == whole


def test_a_run_that_diverges_ends_with_a_reason(run):
    def diverging(state):
        return {"w": float(np.nan if int(state["count"][0]) > 5 else 1.0)}

    with pytest.raises(FloatingPointError, match=r"at step 6, got NaN .* diverged"):
        go(run, diverging)
    assert steps_of(run.path / "metrics.jsonl") == [0, 3]


# ---- Chunks in pieces, and signals between them --------------------------------------------------


class Impatient:
    """Reports a signal after it has been checked `looks` times."""

    message = ""

    def __init__(self, looks):
        self.looks = looks

    @property
    def received(self):
        self.looks -= 1
        return 15 if self.looks < 0 else 0

    def deferred(self):
        return contextlib.nullcontext()


def in_pieces(monkeypatch, length):
    """Limit a call to `length` steps; return a list that collects the lengths of calls."""
    lengths, compiled = [], Devices.compile

    def compile(self, step, batch_size):
        run_steps = compiled(self, step, batch_size)

        def counted(state, examples, indices):
            lengths.append(len(indices))
            return run_steps(state, examples, indices)

        return counted

    weights = 2 * 3 + 2
    monkeypatch.setattr(loop, "WORK", length * (8 * weights + loop.WORK_OF_ANY_STEP))
    monkeypatch.setattr(Devices, "compile", compile)
    return lengths


def test_a_chunk_of_much_work_is_cut_into_few_lengths(run, whole, monkeypatch):
    lengths = in_pieces(monkeypatch, 4)
    go(run, every=10)
    assert lengths == [4, 4, 2] * 2
    assert steps_of(run.path / "metrics.jsonl") == [0, 10, 20]


def test_usual_runs_are_not_cut():
    """Fig. 1 with its usual options needs one call per chunk, which costs no speed."""
    weights = sum(np.size(leaf) for leaf in jax.tree.leaves(initial(3)))
    assert loop.piece_length(100, 60, np.zeros(600_000)) == 100
    assert loop.piece_length(1000, 60, np.zeros(weights)) == 1000
    assert loop.piece_length(10**9, 1, np.zeros(1)) <= 2000
    assert loop.piece_length(5, 10**6, np.zeros(10**6)) == 1


@pytest.mark.parametrize("looks", [0, 3, 5])
def test_a_signal_does_not_wait_for_the_chunk(run, tmp_path, monkeypatch, looks):
    lengths = in_pieces(monkeypatch, 4)
    go(run_dir.create(tmp_path, "other", Options()), every=10)
    (other,) = (tmp_path / "other").iterdir()
    del lengths[:]
    with pytest.raises(Stopped):
        go(run, every=10, checkpoint_every=10, graceful_exit=Impatient(looks))
    assert len(lengths) == looks + 1  # No further calls.
    go(run_dir.open_run(run.path), every=10)
    assert lengths[looks + 1 :] == [4, 4, 2] * (2 if looks < 2 else 1 if looks < 5 else 0)
    assert metrics(run) == (other / "metrics.jsonl").read_bytes()
