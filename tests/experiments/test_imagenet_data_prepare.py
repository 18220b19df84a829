"""Shards of a folder: the same bytes however they are made, and nothing half-written."""

import errno
import json
import resource
import signal

import pytest
from imagenet_folders import CLASSES, make_folder

from experiments.studies.imagenet.data import prepare as module
from experiments.studies.imagenet.data.prepare import prepare
from experiments.studies.imagenet.data.source import open_source
from experiments.tasks.data import WrongData


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images", [("train", 20), ("validation", 4)])


def content(output):
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


def test_shards_are_random_samples_and_the_index_tells_all(folder, tmp_path):
    index = prepare(folder, tmp_path / "out", shards=4)
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == index
    assert index["classes"] == list(CLASSES)
    assert index["unreadable"] == []
    train, validation = index["splits"]["train"], index["splits"]["validation"]
    assert train["counts"] == [20] * 3
    assert validation["counts"] == [4] * 3
    assert [shard["examples"] for shard in train["shards"]] == [15] * 4
    assert [shard["examples"] for shard in validation["shards"]] == [12]
    source = open_source(str(tmp_path / "out"), "train", None)
    for shard in source.shards:
        assert {source[i]["label"] for i in shard} == {0, 1, 2}
    names = {"index.json", *(shard["file"] for shard in train["shards"] + validation["shards"])}
    assert content(tmp_path / "out").keys() == names


def test_what_was_interrupted_goes_on_and_makes_the_same_bytes(folder, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    prepare(folder, whole, shards=6, workers=2)
    write, written = module._write, []

    def interrupted(path, records):
        if len(written) == 3:
            records = (record if i < 5 else stop() for i, record in enumerate(records))
        written.append(path.name)
        write(path, records)

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, parts, shards=6)
    kept = content(parts)
    assert not any("partial" in name or name == "index.json" for name in kept)
    assert sum(name.endswith("record") for name in kept) == 3
    # Damage one of the finished shards, so that it has to be made again.
    (parts / written[1]).write_bytes(b"damaged")
    monkeypatch.setattr(module, "_write", lambda *args: (again.append(args[0].name), write(*args)))
    again = []
    prepare(folder, parts, shards=6)
    assert sorted(again) == sorted({*content(whole)} - {"index.json", written[0], written[2]})
    assert content(parts) == content(whole)


def test_finished_shards_of_another_plan_are_not_kept(folder, tmp_path):
    prepare(folder, tmp_path / "out", shards=3)
    (tmp_path / "out" / "index.json").unlink()
    (tmp_path / "out" / "train-00000-of-00003.array_record.partial").write_bytes(b"killed")
    prepare(folder, tmp_path / "out", shards=2)
    (tmp_path / "out" / "index.json").unlink()
    (folder / "train" / "ant" / "0.JPEG").rename(folder / "train" / "ant" / "x.JPEG")
    prepare(folder, tmp_path / "out", shards=2)
    prepare(folder, tmp_path / "new", shards=2)
    assert content(tmp_path / "out") == content(tmp_path / "new")


def test_unreadable_images_are_named_counted_and_left_out_up_to_a_limit(folder, tmp_path):
    bad = {"train/ant/3.JPEG": b"", "train/bee/5.JPEG": b"\xff\xd8\xff", "train/cat/1.JPEG": None}
    for name, text in bad.items():
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2] if text is None else text)
    index = prepare(folder, tmp_path / "out", shards=3, limit=3)
    assert set(index["unreadable"]) == set(bad)
    assert index["splits"]["train"]["counts"] == [19] * 3
    log = tmp_path / "out" / "unreadable.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["name"] for row in rows} == set(bad)
    assert all(row["why"] for row in rows)
    source = open_source(str(tmp_path / "out"), "train", None)
    assert not {source[i]["name"] for i in range(len(source))} & set(bad)
    with pytest.raises(WrongData, match=r"most 2 unreadable images, got 3, listed in .*: ") as told:
        prepare(folder, tmp_path / "few", shards=3, limit=2)
    assert "\n" not in str(told.value)
    # With one image repaired, it resumes; unreadable images of finished shards still count.
    (folder / "train/bee/5.JPEG").write_bytes((folder / "train/bee/6.JPEG").read_bytes())
    assert len(prepare(folder, tmp_path / "few", shards=3, limit=2)["unreadable"]) == 2


def test_a_class_without_a_readable_image_is_refused(folder, tmp_path):
    for path in (folder / "train" / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(WrongData, match=r"of every class in .* got none of bee"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_full_disk_leaves_nothing_half_written(folder, tmp_path):
    """A limit on file size stands in for a full disk, as the writer gets the same kind of error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*\.array_record'") as told:
            prepare(folder, tmp_path / "out", shards=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert told.value.errno == errno.EFBIG
    assert content(tmp_path / "out").keys() <= {"lock"}
    full = module._os_error(
        RuntimeError("write() failed: No space left on device; writing x"), folder
    )
    assert full.errno == errno.ENOSPC
    assert full.filename == str(folder)


def test_wrong_arguments_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"`shards` and `workers` of at least 1, .* 0, 1 and 100"):
        prepare(folder, tmp_path / "out", shards=0)
    with pytest.raises(ValueError, match="`unreadable` of at least 0, got None, 1 and -1"):
        prepare(folder, tmp_path / "out", limit=-1)
    with pytest.raises(FileNotFoundError, match="Expected a folder of images, got "):
        prepare(tmp_path / "none", tmp_path / "out")
    for output in (folder, folder / "out", tmp_path):
        with pytest.raises(ValueError, match="an output outside the folder of images"):
            prepare(folder, output)
    prepare(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"new or empty output, got .*: it is finished"):
        prepare(folder, tmp_path / "out")


def test_one_process_at_a_time(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with module._hold(tmp_path / "out"), pytest.raises(ValueError, match="another process is"):
        prepare(folder, tmp_path / "out")


def test_a_split_without_a_readable_image_is_refused(folder, tmp_path):
    for path in folder.glob("validation/*/*"):
        path.write_bytes(b"")
    with pytest.raises(WrongData, match=r"Expected readable validation images in .*, got none"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


def test_files_of_others_are_left_alone(folder, tmp_path):
    other = tmp_path / "out" / "imagenet-train-00000-of-01024.json"
    other.parent.mkdir()
    other.write_text("{}")
    with pytest.raises(ValueError, match=rf"new or empty output, got .*, which has {other.name}"):
        prepare(folder, other.parent)
    assert content(other.parent) == {other.name: b"{}"}
    with pytest.raises(ValueError, match="Expected a folder as output, got the file"):
        prepare(folder, other)
