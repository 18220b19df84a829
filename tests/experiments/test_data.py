"""Data files: only official ones are read, and the cache never holds anything else."""

import functools
import gzip
import hashlib
import http.server
import struct
import subprocess
import sys
import threading

import numpy as np
import pooch
import pytest

from experiments.tasks import data

SIZES = {"train_images": (7, 4, 4), "train_labels": (7,), "test_images": (3, 4, 4)}
VALUES = {
    role: np.arange(np.prod(SIZES.get(role, (3,)))).astype(np.uint8).reshape(SIZES.get(role, (3,)))
    for role in data.ROLES
}


def idx(values):
    header = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape)
    return header + values.tobytes()


def write_folder(folder):
    folder.mkdir(parents=True)
    for role, file in data.ROLES.items():
        (folder / file).write_bytes(gzip.compress(idx(VALUES[role]), mtime=0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with a small MNIST whose checksums are registered as the official ones."""
    write_folder(tmp_path / "data" / "mnist")
    sums = {
        role: hashlib.sha256((tmp_path / "data" / "mnist" / file).read_bytes()).hexdigest()
        for role, file in data.ROLES.items()
    }
    monkeypatch.setitem(data.SHA256, "mnist", sums)
    monkeypatch.delenv("JBN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def cache(folder):
    """The folder for downloads."""
    del folder
    return pooch.os_cache("jbn") / "mnist"


class Server:
    """A local mirror that counts requests."""

    def __init__(self, folder):
        self.requests = requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                requests.append(arguments)

        handler = functools.partial(Handler, directory=str(folder))
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


# ---- idx files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", data.ROLES)
def test_reads_what_was_written(folder, role):
    np.testing.assert_array_equal(
        data.read_idx(folder / "mnist" / data.ROLES[role]), VALUES[role], strict=True
    )


BAD = {
    "truncated gzip": (gzip.compress(idx(np.arange(200, dtype=np.uint8)))[:-9], "complete gzip"),
    "not gzip": (b"<html>Not found</html>", "complete gzip"),
    "damaged gzip": (gzip.compress(b"x" * 99)[:12] + b"\xff" * 9, "complete gzip"),
    "wrong magic": (gzip.compress(struct.pack(">II", 1234, 0)), "got 1234"),
    "floats": (gzip.compress(struct.pack(">II", 0x0D01, 0)), "magic number"),
    "no header": (gzip.compress(b"\0\0"), "magic number"),
    "header cut": (gzip.compress(struct.pack(">II", 2051, 5)), "magic number"),
    "too few values": (gzip.compress(idx(np.arange(9, dtype=np.uint8))[:-1]), "got 8"),
    "too many values": (gzip.compress(idx(np.arange(9, dtype=np.uint8)) + b"\0"), "got 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_idx_file_is_refused_by_name(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "bad-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path)
    assert str(path) in str(error.value)


# ---- Folders -------------------------------------------------------------------------------------


def test_folder_by_argument_or_environment(folder, monkeypatch):
    for role, values in VALUES.items():
        np.testing.assert_array_equal(getattr(data.load("mnist", data_dir=folder), role), values)
    monkeypatch.setenv("JBN_DATA", str(folder))
    assert data.load("mnist").describe() == data.load("mnist", data_dir=folder).describe()


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "another file"])
@pytest.mark.parametrize("role", ["train_images", "test_labels"])
def test_file_with_wrong_checksum_is_refused_unopened(folder, monkeypatch, damage, role):
    path = folder / "mnist" / data.ROLES[role]
    good = path.read_bytes()
    bad = {
        "truncated": good[:-1],
        "one bit": good[:20] + bytes([good[20] ^ 1]) + good[21:],
        "empty": b"",
        "another file": gzip.compress(idx(np.zeros(5, np.uint8))),
    }
    path.write_bytes(bad[damage])
    monkeypatch.setattr(data, "read_idx", lambda path: pytest.fail(f"unpacked {path}"))
    with pytest.raises(ValueError, match="sha256") as error:
        data.load("mnist", data_dir=folder)
    assert str(path) in str(error.value)


def test_missing_file_is_named(folder):
    (folder / "mnist" / data.ROLES["test_labels"]).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        data.load("mnist", data_dir=folder)


def test_unknown_name(folder):
    with pytest.raises(ValueError, match="imagenet"):
        data.load("imagenet", data_dir=folder)


# ---- Downloads -----------------------------------------------------------------------------------


def test_downloads_once(folder, cache, monkeypatch):
    with Server(folder / "mnist") as server:
        monkeypatch.setitem(data.MIRRORS, "mnist", (server.url,))
        first = data.load("mnist")
        asked = len(server.requests)
        assert data.load("mnist").describe() == first.describe()
        assert len(server.requests) == asked == 4
    assert first.source == "download"
    assert {path.name for path in cache.iterdir()} == set(data.ROLES.values())


def test_second_mirror_stands_in(folder, tmp_path, monkeypatch):
    write_folder(tmp_path / "bad")
    (tmp_path / "bad" / data.ROLES["test_images"]).write_bytes(b"<html>Busy</html>")
    with Server(tmp_path / "bad") as bad, Server(folder / "mnist") as good:
        monkeypatch.setitem(data.MIRRORS, "mnist", (bad.url, good.url))
        np.testing.assert_array_equal(data.load("mnist").test_images, VALUES["test_images"])


@pytest.mark.parametrize("damage", ["absent", "truncated", "unreachable"])
def test_failed_download_leaves_nothing_and_falls_back(folder, cache, monkeypatch, capsys, damage):
    path = folder / "mnist" / data.ROLES["train_images"]
    if damage == "absent":
        path.unlink()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    with Server(folder / "mnist") as server:
        if damage == "unreachable":
            server.url = "http://127.0.0.1:9/"
        monkeypatch.setitem(data.MIRRORS, "mnist", (server.url,))
        assert data.load("mnist").name == "digits"
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "mnist could not be downloaded" in told.err
    assert not told.out
    assert list(cache.iterdir()) == []


def test_damaged_file_in_the_cache_is_replaced(folder, cache, monkeypatch):
    with Server(folder / "mnist") as server:
        monkeypatch.setitem(data.MIRRORS, "mnist", (server.url,))
        data.load("mnist")
        (cache / data.ROLES["train_labels"]).write_bytes(b"half")
        np.testing.assert_array_equal(data.load("mnist").train_labels, VALUES["train_labels"])


def test_processes_download_at_once(folder, cache):
    program = """
import sys
from pathlib import Path
from experiments.tasks import data
data.MIRRORS["mnist"] = (sys.argv[1],)
data.SHA256["mnist"] = dict(zip(data.ROLES, sys.argv[3:]))
for role, path in data.download("mnist", Path(sys.argv[2])).items():
    data.check_sha256(path, data.SHA256["mnist"][role])
"""
    with Server(folder / "mnist") as server:
        command = [sys.executable, "-c", program, server.url, str(cache)]
        command += data.SHA256["mnist"].values()
        processes = [subprocess.Popen(command) for _ in range(4)]
        assert [process.wait(60) for process in processes] == [0] * 4
    assert {path.name for path in cache.iterdir()} == set(data.ROLES.values())


# ---- Digits --------------------------------------------------------------------------------------


def test_digits_look_like_mnist():
    digits = data.load("digits")
    assert digits.train_images.shape == (1438, 28, 28)
    assert digits.test_images.shape == (359, 28, 28)
    assert digits.train_images.dtype == digits.train_labels.dtype == np.uint8
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    assert set(digits.test_labels) == set(range(10))
    assert digits.describe() == data.load_digits().describe()


def test_digits_are_scikit_learns_whether_it_is_imported_or_not(monkeypatch):
    code = "import sys; from experiments.tasks import data; data.load_digits(); "
    code += "assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    digits = data.load_digits().describe()
    monkeypatch.setattr(data, "DIGITS_SHA256", "that of another version")
    assert data.load_digits().describe() == digits
