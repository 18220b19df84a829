"""ImageNet on two hosts: two processes of two devices each, on a folder of JPEGs."""

import json

import jax
import numpy as np
from host_processes import free_port, processes, told, wait_all
from imagenet_folders import make_folder

from experiments import run_dir
from experiments.__main__ import main

OPTIONS = ("--preset", "smoke", "--variant", "bn_x5", "--dataset", "folder", "--blocks", "1",
           "--size", "8", "--batch-size", "2", "--statistics", "2", "--steps", "4",
           "--evaluate-every", "2", "--devices", "4")  # fmt: skip


def rows(runs):
    (path,) = (runs / "imagenet").iterdir()
    result = json.loads((path / "bn_x5_0" / "result.json").read_text())
    return list(run_dir.read_rows(path / "bn_x5_0" / "metrics.jsonl")), result


def test_two_hosts_have_the_numbers_of_one(tmp_path, capsys):
    """Every host makes its part of each batch; crops are sampled again but are the same."""
    images = make_folder(tmp_path / "images")
    (images / "train" / "ant" / "bad.JPEG").write_bytes(b"no JPEG")
    port = free_port()
    assert (
        len(jax.devices()) == 8
    )  # Start the backend first: the command asks for four, which all later tests would get.

    def arguments(i):
        shared = ["--data-dir", str(images), "--runs", str(tmp_path / "two")]
        hosts = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
        hosts += ["--process-id", str(i)]
        return ["-m", "experiments", "imagenet", *OPTIONS, *shared, *hosts]

    with processes(2, arguments, tmp_path) as started:
        one = ["--data-dir", str(images), "--runs", str(tmp_path / "one")]
        assert main(["imagenet", *OPTIONS, *one]) == 0
        assert wait_all(started, tmp_path) == [0, 0], told(tmp_path, 0)
    assert "BN-x5" in told(tmp_path, 0)
    (of_two, result), (of_one, expected) = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert result == expected
    for a, b in zip(of_two, of_one, strict=True):
        assert a["step"] == b["step"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
