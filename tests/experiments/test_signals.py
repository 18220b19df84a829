"""Signals and sudden death: the last message, when the process ends, and its exit status."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
from experiments.training.signals import GracefulExit

with GracefulExit() as graceful_exit:
    graceful_exit.say("nothing was started")
    if "watchdog" in sys.argv:
        graceful_exit.start_watchdog()
    graceful_exit.say("resume with: this")
    if "patient" in sys.argv:
        with graceful_exit.deferred():
            print("ready", flush=True)
            while not graceful_exit.received or "deaf" in sys.argv:
                time.sleep(0.01)
        print(f"told {graceful_exit.received}", flush=True)
    elif "busy" in sys.argv:
        import hashlib
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # A minute in C, as a program of XLA.
    elif "done" in sys.argv:
        print("ready", flush=True)
    else:
        print("ready", flush=True)
        time.sleep(60)
"""


def run(*words, signals=()):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
            if number != signals[-1]:
                assert "repeat to stop at once" in process.stderr.readline() + (
                    process.stderr.readline()
                )
        out, error = process.communicate(timeout=30)
    return process.returncode, out, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_the_last_words(number):
    code, _, error = run(signals=[number])
    assert code == 128 + number
    assert error.strip() == "resume with: this"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_while_python_waits_for_a_long_program(number):
    code, _, error = run("busy", signals=[number])
    assert code == 128 + number
    assert error.strip() == "resume with: this"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_patient_loop_ends_itself(number):
    code, out, error = run("patient", signals=[number])
    assert code == 0
    assert out == f"told {int(number)}\n"
    assert "stopping within seconds" in error


def test_a_second_signal_does_not_wait():
    code, _, error = run("patient", "deaf", signals=[signal.SIGTERM, signal.SIGINT])
    assert code == 128 + signal.SIGINT
    assert error.strip().endswith("resume with: this")


def test_a_watchdog_speaks_for_the_killed():
    code, _, error = run("watchdog", signals=[signal.SIGKILL])
    assert code == -signal.SIGKILL
    assert error.strip() == "resume with: this"


@pytest.mark.parametrize("words", [("watchdog", "done"), ("done",)])
def test_nothing_is_said_at_the_end(words):
    assert run(*words) == (0, "", "")


def test_a_watchdog_does_not_repeat_what_was_said():
    code, _, error = run("watchdog", signals=[signal.SIGTERM])
    assert code == 128 + signal.SIGTERM
    assert error.strip() == "resume with: this"
