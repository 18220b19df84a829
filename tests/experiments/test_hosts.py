"""Several hosts: two processes of four virtual devices each, on the loopback interface."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from host_processes import free_port, processes, told, wait_all

from experiments import run_dir
from experiments.__main__ import main
from experiments.studies.mnist_mlp import fig1
from experiments.studies.mnist_mlp import measure as mnist_mlp
from experiments.studies.mnist_mlp.config import Config
from experiments.study import Study
from experiments.training import hosts
from experiments.training.devices import Devices
from experiments.training.hosts import Hosts, expected, processes_of_launcher
from experiments.training.loop import Execution

ROOT = Path(__file__).parents[2]
# Gloo usually notices a dead peer at once; else JAX does after its heartbeat timeout, and ends
# within seconds.
BOUND = hosts.HEARTBEAT_SECONDS + 30
PERCENTILE = 1.01e-4  # Metrics have four decimals.


def on_two_hosts(*options):
    port = free_port()
    return lambda i: [
        *("-m", "experiments", "mnist_mlp", *options, "--devices", "8"),
        *("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(i)),
    ]


# ---- Equal to one host ---------------------------------------------------------------------------

WAYS = ("shard_map", "pmap")
CONFIG = {
    **{"dataset": "digits", "seeds": 2, "steps": 20, "evaluate_every": 10},
    **{"hidden": (8,), "population_batches": 2},
}
WORK = f"""
from pathlib import Path
import jax, numpy as np
from experiments.tasks import data
from experiments.training import hosts
from experiments.studies.mnist_mlp import fig1, measure as mnist_mlp
from experiments.studies.mnist_mlp.config import Config
from experiments.study import Study
from experiments import run_dir
from experiments.training import loop as train
from experiments.training.devices import Devices

hosts.connect(hosts.expected(None, None, None), 8)
fig1.report = lambda *a: None
config = Config(**{CONFIG})
of_train = mnist_mlp.train
for way in {WAYS}:
    final = []
    mnist_mlp.train = lambda *a, **k: final.append(of_train(*a, **k))
    run = run_dir.create(Path(way), "mnist_mlp", config) if hosts.is_first() else None
    devices = Devices(8, way)
    study = Study("mnist_mlp", run, execution=train.Execution(devices))
    mnist_mlp.measure(config, study)
    np.savez(f"{{way}}.{{jax.process_index()}}.npz", *jax.tree.leaves(final[0]))
    rows = list(run_dir.read_rows(run.path / "metrics.jsonl")) if run else None
    rows = hosts.broadcast_from_first(rows)
    print(jax.process_count(), jax.local_device_count(), devices, len(rows))
"""


@pytest.fixture
def no_figures(monkeypatch):
    """Draw no figures: these tests compare numbers, and drawing takes longer."""
    monkeypatch.setattr(fig1, "report", lambda *_: None)


def test_two_hosts_equal_one(tmp_path, no_figures):
    """Hosts find each other as under Slurm; command line options are tested below.

    One test covers both ways, as the two processes train first in one way and then in the other.
    `test_train_devices.py` shows that both are equal on one host.
    """
    # JAX derives the port from the job id.
    job = free_port() % 4096
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}

    def environment(i):
        return {**slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_PLATFORMS": "cpu"}

    with processes(2, lambda i: ["-c", WORK], tmp_path, environment) as started:
        assert wait_all(started, tmp_path) == [0, 0], told(tmp_path, 0) + told(tmp_path, 1)
    config = Config(**CONFIG)
    with run_dir.create(tmp_path / "one", "mnist_mlp", config) as one:
        mnist_mlp.measure(config, Study("mnist_mlp", one, execution=Execution(Devices(8))))
    for way in WAYS:
        for i in range(2):
            assert f"2 4 8 devices on 2 hosts, {way} 3" in told(tmp_path, i)
        first, second = (np.load(tmp_path / f"{way}.{i}.npz") for i in range(2))
        assert len(first.files) > 10
        for name in first.files:
            assert first[name].tobytes() == second[name].tobytes()
        (path,) = (tmp_path / way / "mnist_mlp").iterdir()
        assert_same(path, one.path)


def assert_same(path, other):
    """Compare metrics: accuracies exactly, percentiles to their last decimal."""
    got, want = (list(run_dir.read_rows(p / "metrics.jsonl")) for p in (path, other))
    assert [row["step"] for row in got] == [row["step"] for row in want]
    for a, b in zip(got, want, strict=True):
        assert a["accuracy"] == b["accuracy"]
        for name in b["percentiles"]:
            np.testing.assert_allclose(
                a["percentiles"][name], b["percentiles"][name], rtol=0, atol=PERCENTILE
            )


# ---- Death and resumption ------------------------------------------------------------------------

# Small, but with sixty chunks of steps, so that no host finishes before it is stopped.
LONG = ("--preset", "smoke", "--seeds", "1", "--steps", "300", "--evaluate-every", "5")
LONG += ("--hidden", "8", "--population-batches", "2")


def await_checkpoint(path, started, folder, after=-1):
    """Wait for a checkpoint later than the step `after`; return its step."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        steps = [int(p.parent.name) for p in path().glob("checkpoints/*/manifest.json")]
        if max(steps, default=-1) > after:
            return max(steps)
        if any(process.poll() is not None for process in started):
            break
        time.sleep(0.05)
    pytest.fail(f"no checkpoint:\n{told(folder, 0)}\n{told(folder, 1)}")


def test_hosts_that_are_stopped_or_die(tmp_path, no_figures):
    """SIGTERM to one host, SIGKILL to each in turn, then one host alone finishes the run.

    Before the second kill, the newest checkpoint is damaged, and both resume from the one before.
    """
    runs = tmp_path / "runs"

    def path():
        found = list((runs / "mnist_mlp").glob("*")) if runs.exists() else []
        return found[0] if found else tmp_path / "none"

    start = on_two_hosts(*LONG, "--checkpoint-every", "1", "--runs", "runs")
    with processes(2, start, tmp_path) as started:
        await_checkpoint(path, started, tmp_path)
        started[1].send_signal(signal.SIGTERM)
        assert wait_all(started, tmp_path, BOUND) == [143, 143]
    for i in range(2):
        last = told(tmp_path, i).splitlines()[-1]
        assert last.startswith("stopped; resume with: python -m experiments mnist_mlp --resume")
        assert f"--process-id {i}" in last
    steps = [row["step"] for row in run_dir.read_rows(path() / "metrics.jsonl")]
    done = await_checkpoint(path, [], tmp_path)
    assert done == steps[-1] < 300  # Written when stopped.

    for victim in (1, 0):
        if victim == 0:
            done = await_checkpoint(path, [], tmp_path)
            (path() / "checkpoints" / str(done) / "manifest.json").write_bytes(b"")
        resume = on_two_hosts("--resume", str(path()), "--checkpoint-every", "1")
        with processes(2, resume, tmp_path) as started:
            done = await_checkpoint(path, started, tmp_path, after=done)
            started[victim].kill()
            codes = wait_all(started, tmp_path, BOUND)
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] not in (0, None)
        wait_for_words(tmp_path, 1 - victim)
        assert ("is refused" in told(tmp_path, 0)) == (victim == 0)
        assert not (path() / "summary.json").exists()

    assert main(["mnist_mlp", "--resume", str(path())]) == 0
    assert main(["mnist_mlp", *LONG, "--runs", str(tmp_path / "one")]) == 0
    (one,) = (tmp_path / "one" / "mnist_mlp").iterdir()
    assert_same(path(), one)
    assert len(list((runs / "mnist_mlp").iterdir())) == 1


def wait_for_words(folder, i):
    """Wait for the last message of a process that JAX ended, which its watchdog prints."""
    until = time.monotonic() + 10
    while "stopped; resume with: python -m experiments mnist_mlp" not in told(folder, i):
        assert time.monotonic() < until, told(folder, i)
        time.sleep(0.05)


OTHER = """
import dataclasses, sys
from experiments.tasks import data
from experiments.training import hosts
from experiments.__main__ import main

connect, load = hosts.connect, data.load

def first_time(*arguments):
    hosts.connect = lambda *arguments: None
    connect(*arguments)

def missing(name, **options):
    raise FileNotFoundError("Expected the data files nowhere/mnist, found none there.")

def changed(name, **options):
    found = load(name, **options)
    return dataclasses.replace(found, train_labels=found.train_labels[::-1])

hosts.connect = first_time
for other in missing, changed:
    if {other!r}:
        data.load = other
    print(other.__name__, file=sys.stderr)
    status = main(sys.argv[1:])
    print("status", status, file=sys.stderr)
sys.exit(status)
"""


def test_host_without_the_data_ends_all(tmp_path):
    """It prints its own message, and the other host one that names it.

    One test covers two cases: the processes start a run first without data, then with other data.
    """
    start = on_two_hosts("--preset", "smoke", "--runs", "runs")

    def arguments(i):
        return ["-c", OTHER.format(other=i == 1), *start(i)[2:]]

    with processes(2, arguments, tmp_path) as started:
        assert wait_all(started, tmp_path, 120) == [2, 2]
    missing, changed = zip(*(told(tmp_path, i).split("changed\n") for i in range(2)), strict=True)
    assert all("status 2" in text for text in (*missing, *changed))
    assert "stopped because process 1 failed: see its own message" in missing[0]
    assert "nowhere/mnist" in missing[1]
    assert "stopped because process 1 failed" in changed[0]
    assert "Expected the same examples on every host" in changed[1]
    assert not (tmp_path / "runs").exists()


# ---- Options and launchers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("h:1", 2, None), "got no --process-id"),
        ((None, 2, 0), "got no --coordinator"),
        (("h:1", None, 0), "got no --num-processes"),
        (("h", 2, 0), "HOST:PORT, got 'h'"),
        (("h:p", 2, 0), "HOST:PORT, got 'h:p'"),
        (("h:1", 2, 2), "--process-id from 0 to 1"),
        (("h:1", 2, -1), "--process-id from 0 to 1"),
    ],
)
def test_hosts_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        expected(*given)


def test_devices_that_hosts_cannot_share():
    with pytest.raises(ValueError, match="2 processes can share evenly, got 3"):
        hosts.connect(Hosts(2, "h:1", 0), 3)


def test_processes_of_launcher():
    assert processes_of_launcher({}) == 1
    assert processes_of_launcher({"SLURM_NTASKS": "4"}) == 1  # An allocation, not a job step.
    assert processes_of_launcher({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == 4
    assert processes_of_launcher({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}) == 3


def test_one_host_needs_no_connection(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    hosts.connect(expected(None, None, None))
    assert hosts.count() == 1
    assert hosts.is_first()
    assert hosts.broadcast_from_first({"a": (1,)}) == {"a": (1,)}
    assert hosts.largest(3) == 3
    assert json.dumps(hosts.run_on_all(lambda: 5)) == "5"
