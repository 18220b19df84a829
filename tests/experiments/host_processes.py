"""Start processes that act as hosts, connected over the loopback interface."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from environments import own_environment

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def processes(count, arguments, folder, environment=lambda i: {}):
    """Start `count` processes with these arguments and output to out.0, out.1, ..."""
    inherited = own_environment(PYTHONPATH=str(ROOT))
    started = []
    for i in range(count):
        with (folder / f"out.{i}").open("w") as out:
            started.append(
                subprocess.Popen(
                    [sys.executable, *arguments(i)],
                    env={**inherited, **environment(i)},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                )
            )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def told(folder, i):
    return (folder / f"out.{i}").read_text()


def wait_all(started, folder, seconds=240):
    """Wait for all processes to end; return their exit statuses."""
    until = time.monotonic() + seconds
    for i, process in enumerate(started):
        try:
            process.wait(until - time.monotonic())
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {i} did not end in {seconds} s:\n{told(folder, i)}")
    return [process.returncode for process in started]
