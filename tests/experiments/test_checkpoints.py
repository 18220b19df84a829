"""Checkpoints: reading returns exactly what this run wrote, complete, or nothing."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import own_environment

from experiments import run_dir
from experiments.training.checkpoints import MANIFEST, Checkpoints


@dataclasses.dataclass(frozen=True)
class Config:
    """A config, which tells runs apart."""

    rate: float = 0.1


def state(step):
    return {
        "w": jnp.full((2, 3), float(step)),
        "half": jnp.ones(2, jnp.bfloat16) * step,
        "nested": [jnp.arange(4, dtype=jnp.int32) + step, {"scalar": jnp.float32(step)}],
        "zero": jnp.array([-0.0, jnp.nan]),
    }


def save(path, step):
    """Save one more state; before that, orbax has removed what an unfinished write left."""
    with run_dir.open_run(path) as run, Checkpoints(run) as checkpoints:
        checkpoints.save(step, state(step))


def make(root, steps=(10, 20), config=Config()):
    run = run_dir.create(root, "demo", config)
    with run, Checkpoints(run) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
    return run.path


def newest(path):
    with run_dir.open_run(path) as run, Checkpoints(run) as checkpoints:
        return checkpoints.newest(state(0))


def data_file(checkpoint):
    """Return the largest file other than the manifest."""
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST]
    return max(files, key=lambda p: p.stat().st_size)


def test_reads_back_what_was_written_bit_for_bit(tmp_path):
    step, got = newest(make(tmp_path))
    assert step == 20
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state(20)), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert newest(make(tmp_path, ())) is None


def test_keeps_two_and_no_leftovers(tmp_path):
    path = make(tmp_path, (10, 20, 30))
    (path / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()  # Left by a kill.
    assert newest(path)[0] == 30
    save(path, 50)
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["30", "50"]
    assert not (path / "refused").exists()


def truncate(checkpoint):
    file = data_file(checkpoint)
    file.write_bytes(file.read_bytes()[:-7])
    return f"its file {file.relative_to(checkpoint)} is changed"


def flip(checkpoint):
    file = data_file(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return f"its file {file.relative_to(checkpoint)} is changed"


def lose(checkpoint):
    file = data_file(checkpoint)
    file.unlink()
    return f"its file {file.relative_to(checkpoint)} is missing"


def add(checkpoint):
    (checkpoint / "stray").write_text("x")
    return "its file stray is missing or not its own"


def unfinished(checkpoint):
    (checkpoint / MANIFEST).unlink()
    return f"it has no readable {MANIFEST}"


def scramble(checkpoint):
    (checkpoint / MANIFEST).write_text('{"step": 20, ')
    return f"it has no readable {MANIFEST}"


def rename(checkpoint):
    (checkpoint.parent / "10").rename(checkpoint.parent / "5")
    shutil.copytree(checkpoint.parent / "5", checkpoint.parent / "10")
    shutil.rmtree(checkpoint.parent / "5")
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.parent / "10", checkpoint)
    return "it is step 10 of"


@pytest.mark.parametrize("damage", [truncate, flip, lose, add, unfinished, scramble, rename])
def test_damaged_one_is_refused_by_name_and_the_one_before_used(tmp_path, capsys, damage):
    path = make(tmp_path)
    reason = damage(path / "checkpoints" / "20")
    step, got = newest(path)
    told = capsys.readouterr().err
    assert step == 10
    chex.assert_trees_all_close(got["w"], state(10)["w"])
    assert f"{path / 'checkpoints' / '20'} is refused: {reason}" in told
    assert "continues from that of step 10" in told
    assert (path / "refused" / "20.0").is_dir()
    # A refused checkpoint does not block a new one of the same step, nor the new one's refusal.
    with run_dir.open_run(path) as run, Checkpoints(run) as checkpoints:
        checkpoints.save(20, state(20))
    assert newest(path)[0] == 20
    truncate(path / "checkpoints" / "20")
    assert newest(path)[0] == 10
    assert (path / "refused" / "20.1").is_dir()


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        ({"w": jnp.zeros((2, 3))}, ""),
        ({"w": jnp.zeros((2, 4))}, r"\['w'\] of shape \(2, 3\), not \(2, 4\)"),
        ({"v": jnp.zeros((2, 3))}, ".*'v'.*"),
    ],
)
def test_one_with_other_arrays_is_refused(tmp_path, capsys, like, reason):
    """Another version of the code may have other arrays."""
    with run_dir.create(tmp_path, "demo", Config()) as run:
        with Checkpoints(run) as checkpoints:
            checkpoints.save(10, {"w": np.zeros((2, 3), np.float32)})
        with Checkpoints(run) as checkpoints:
            found = checkpoints.newest(like)
            if reason:
                assert found is None
                checkpoints.save(10, like)  # The refused one does not block it.
                assert checkpoints.newest(like)[0] == 10
    told = capsys.readouterr().err
    if not reason:
        assert found[0] == 10
        assert not told
        return
    assert re.search(
        f"10 is refused: it has other arrays than this version expects: {reason}", told
    )
    assert told.endswith("continues from the beginning.\n")
    assert (run.path / "refused" / "10.0").is_dir()


def test_another_runs_checkpoint_is_refused(tmp_path, capsys):
    path, foreign = make(tmp_path), make(tmp_path, (10, 20, 30), Config(rate=0.2))
    shutil.copytree(foreign / "checkpoints" / "30", path / "checkpoints" / "30")
    assert newest(path)[0] == 20
    assert "30 is refused: it is step 30 of a run with another config" in capsys.readouterr().err


def test_without_a_good_one_it_begins_anew(tmp_path, capsys):
    path = make(tmp_path)
    for step in ("10", "20"):
        truncate(path / "checkpoints" / step)
    assert newest(path) is None
    assert capsys.readouterr().err.count("continues from the beginning") == 2


def test_the_manifest_has_the_digest_of_every_file(tmp_path):
    path = make(tmp_path)
    manifest = json.loads((path / "checkpoints" / "20" / MANIFEST).read_text())
    files = {
        str(p.relative_to(path / "checkpoints" / "20"))
        for p in (path / "checkpoints" / "20").rglob("*")
        if p.is_file() and p.name != MANIFEST
    }
    assert set(manifest["files"]) == files
    assert all(len(digest) == 64 for digest in manifest["files"].values())


FULL = """
import resource, signal, sys
from pathlib import Path

import numpy as np

from experiments import run_dir
from experiments.training.checkpoints import Checkpoints

with run_dir.open_run(Path(sys.argv[1])) as run, Checkpoints(run) as checkpoints:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
    try:
        checkpoints.save(30, {name: np.random.normal(size=(300, 300)) for name in "abcd"})
    except OSError as error:
        print(error.filename, error.strerror)
"""


def test_a_disk_that_takes_no_more_is_said_and_the_one_before_used(tmp_path):
    """A limit on file size stands in for a full disk, as orbax's C++ writers fail alike."""
    path = make(tmp_path)
    environment = own_environment(PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{path / 'checkpoints' / '30'} File too large\n", done.stderr
    assert not done.stderr
    assert newest(path)[0] == 20
    save(path, 30)
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["20", "30"]


def test_rows_that_changed_since_are_refused_with_it(tmp_path, capsys):
    run = run_dir.create(tmp_path, "demo", Config())
    with run, Checkpoints(run) as checkpoints:
        for step in (10, 20):
            run.append("metrics.jsonl", {"step": step})
            checkpoints.save(step, state(step))
        run.append("metrics.jsonl", {"step": 30})  # Not in any checkpoint yet.
    rows = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(rows.replace("30", "31"))
    assert newest(run.path)[0] == 20
    (run.path / "metrics.jsonl").write_text(rows.replace("20", "21"))
    assert newest(run.path)[0] == 10
    assert "metrics.jsonl up to it are missing or changed" in capsys.readouterr().err
    (run.path / "metrics.jsonl").unlink()
    assert newest(run.path) is None


# ---- Written in a thread -------------------------------------------------------------------------


def test_a_thread_writes_what_there_was_when_it_was_asked_to(tmp_path):
    beside = {"losses": [1.5, float("nan")]}
    with run_dir.create(tmp_path, "demo", Config()) as run:
        with Checkpoints(run, asynchronous=True) as checkpoints:
            for step in (10, 20, 30):
                checkpoints.save(step, state(step), {**beside, "step": step})
                beside["losses"].append(step)
            checkpoints.finish()
            kept = checkpoints.beside(20)
        assert kept["losses"][0] == 1.5
        assert kept["losses"][2:] == [10]
        assert kept["step"] == 20
    step, got = newest(run.path)
    assert step == 30
    np.testing.assert_array_equal(got["w"], state(30)["w"])


def test_one_whose_thread_was_killed_is_refused_for_the_one_before(tmp_path, capsys):
    path = make(tmp_path)
    (path / "checkpoints" / "20" / MANIFEST).unlink()  # It is written last.
    assert newest(path)[0] == 10
    assert "as if its writing was interrupted" in capsys.readouterr().err


def test_a_full_disk_is_told_by_the_next_one(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    with run_dir.create(tmp_path, "demo", Config()) as run:
        checkpoints = Checkpoints(run, asynchronous=True)
        monkeypatch.setattr("experiments.training.checkpoints._digests", full)
        checkpoints.save(10, state(10))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.finish()
        monkeypatch.undo()
        checkpoints.save(20, state(20))
        checkpoints.__exit__(None, None, None)
    assert newest(run.path)[0] == 20
