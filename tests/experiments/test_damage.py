"""A study whose stored files are damaged says so and measures what it needs again."""

import dataclasses
import errno
import io
import os
import pickle

import numpy as np
import pytest

from experiments import run_dir
from experiments.study import Study


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of an experiment."""

    seeds: int = 3


@pytest.fixture
def run(tmp_path):
    """A new run directory."""
    with run_dir.create(tmp_path, "demo", Config()) as made:
        made.write("env.json", {})
        yield made


VALUES = np.arange(300.0)


def bytes_of(save, *arguments, **arrays):
    made = io.BytesIO()
    save(made, *arguments, **arrays)
    return made.getvalue()


def flipped(content):
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


OBJECTS = np.array([{"a": 1}, None], object)
DAMAGES = {
    "empty": lambda kept: b"",
    "cut": lambda kept: kept[: len(kept) // 2],
    "cut at its end": lambda kept: kept[:-5],
    "flipped": flipped,
    "text": lambda kept: b"not an archive",
    "no archive": lambda kept: bytes_of(np.save, VALUES),
    "no arrays": lambda kept: bytes_of(np.savez),
    "pickled": lambda kept: pickle.dumps({"x": 1}),
    "objects": lambda kept: bytes_of(np.savez, x=OBJECTS),
    "fields": lambda kept: bytes_of(np.savez, x=np.zeros(2, "i4,f4")),
    "other names": lambda kept: bytes_of(np.savez, y=VALUES),
    "other shape and type": lambda kept: bytes_of(np.savez, x=np.zeros((2, 2), np.int8)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_said_and_measured_again(run, capsys, damage):
    path = run.path / "parts" / "depth.npz"
    Study("demo", run).part("depth", lambda: {"x": VALUES})
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    capsys.readouterr()
    found = Study("demo", run).part("depth", lambda: {"x": VALUES + 1})
    np.testing.assert_array_equal(found["x"], VALUES + 1)
    line, *_ = capsys.readouterr().err.splitlines()
    assert line.startswith(f"demo: {path} is damaged: ")
    assert line.endswith("; measuring it again")
    again = Study("demo", run).part("depth", lambda: pytest.fail("measured again"))
    np.testing.assert_array_equal(again["x"], VALUES + 1)
    assert set(Study("demo", run)._seconds()) == {"depth"}


def test_what_another_part_or_run_kept_is_said_and_measured_again(run, tmp_path, capsys):
    with run_dir.create(tmp_path, "demo", Config(seeds=4)) as other:
        for each, name in ((run, "width"), (other, "depth")):
            Study("demo", each).part(name, lambda: {"y": VALUES})
            (run.path / "parts").mkdir(exist_ok=True)
            path = run.path / "parts" / "depth.npz"
            path.write_bytes((each.path / "parts" / f"{name}.npz").read_bytes())
            capsys.readouterr()
            found = Study("demo", run).part("depth", lambda: {"x": VALUES})
            np.testing.assert_array_equal(found["x"], VALUES)
            line, *_ = capsys.readouterr().err.splitlines()
            assert line == (
                f"demo: {path} is damaged: it has ['y'], which this part of this run did not "
                "store; measuring it again"
            )


def test_a_part_that_another_version_kept_is_named(run):
    """It lacks an array, which shows only on access: only measuring tells what a part contains."""
    Study("demo", run).part("depth", lambda: {"x": VALUES})
    found = Study("demo", run).part("depth", lambda: pytest.fail("measured again"))
    with pytest.raises(
        run_dir.Damaged, match=r"Expected 'y' in .*depth.npz, got \['x'\]: .*Remove"
    ):
        found["y"]


def test_objects_are_not_kept(run):
    with pytest.raises(TypeError, match="Expected 'x' of depth to hold numbers, got object"):
        Study("demo", run).part("depth", lambda: {"x": OBJECTS})
    assert not list(run.path.glob("parts/*"))


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"name": "mnist"}', b"\xff", b"[" * 100_000])
def test_a_damaged_description_of_data_is_said_and_written_anew(run, capsys, content):
    mnist = {"name": "mnist", "sha256": "a"}
    (run.path / "data_mnist.json").write_bytes(content)
    Study("demo", run).describe_data("mnist", mnist)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.path / 'data_mnist.json'} is damaged: ")
    assert run.read("data_mnist.json") == mnist


@pytest.mark.parametrize(
    "content", ["", '{"part":"depth","sec\n', '{"part":"depth","seconds":"x"}\n']
)
def test_times_that_are_not_known_are_left_out(run, capsys, content):
    study = Study("demo", run)
    for name in ("depth", "width"):
        study.part(name, lambda: {"x": 1})
    _, width = (run.path / "timing.jsonl").read_text().splitlines(keepends=True)
    (run.path / "timing.jsonl").write_text(content + width)
    capsys.readouterr()
    study.finish()
    assert set(run.read("summary.json")["seconds"]) == {"width"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("leaving out how long depth took")


def test_times_of_a_part_of_the_training_are_not_those_of_all(run, capsys):
    for step in (0, 10, 20):
        run.append("metrics.jsonl", {"step": step})
    run.append("timing.jsonl", {"step": 10, "train_seconds": 1.5, "evaluate_seconds": 0.5})
    study = Study("demo", run)
    assert study._seconds() == {}
    assert "leaving out how long training took" in capsys.readouterr().err
    run.append("timing.jsonl", {"step": 20, "train_seconds": 2, "evaluate_seconds": 0.25})
    assert study._seconds() == {"train": 3.5, "evaluate": 0.75}
    assert not capsys.readouterr().err


def test_a_full_disk_leaves_no_half_a_part(run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    study = Study("demo", run)
    study.part("depth", lambda: {"x": 1})
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left") as raised:
            study.part("width", lambda: {"x": 2})
    assert raised.value.filename == str(run.path / "parts" / "width.npz")
    assert [path.name for path in (run.path / "parts").iterdir()] == ["depth.npz"]
    assert study.part("width", lambda: {"x": 3})["x"] == 3
