"""Graceful shutdown: handle signals, and print the command that resumes a stopped run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from types import TracebackType

# Keeps the latest message from the pipe, and prints it when the other end is closed.
WATCHDOG = """
import sys
message = ""
for line in sys.stdin:
    message = line.strip()
if message:
    print(f"\\n{message}", file=sys.stderr)
"""


class Stopped(Exception):
    """The run was told to stop and has written a checkpoint."""

    def __init__(self, number: int):
        """Remember the signal's number."""
        super().__init__(f"signal {number}")
        self.number = number


class GracefulExit:
    """Prints how to resume when the run is stopped: `graceful_exit.say("...")`, within a `with`.

    Ctrl-C or SIGTERM end the process at once, whatever it is doing. A thread receives them, because
    Python's own handlers wait until an XLA program ends, which may take minutes. Within `deferred`
    the first signal only sets `received` to its number, so that a training loop can finish its
    current steps and write a checkpoint. A KeyboardInterrupt, by contrast, is lost if it is raised
    inside an XLA callback.
    """

    def __init__(self) -> None:
        """Start without a message."""
        self.message = ""
        self.patient = False
        self.received = 0
        self.watchdog: subprocess.Popen[str] | None = None

    def say(self, message: str) -> None:
        """Set the line that is printed if the process ends now."""
        self.message = message
        if self.watchdog and self.watchdog.stdin:
            self.watchdog.stdin.write(f"{message}\n")
            self.watchdog.stdin.flush()

    def start_watchdog(self) -> None:
        """Print the last message even if JAX kills this process, as when another host is lost."""
        self.watchdog = subprocess.Popen(
            [sys.executable, "-S", "-I", "-X", "utf8", "-c", WATCHDOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            encoding="utf-8",
            errors="surrogateescape",
            start_new_session=True,  # Keep Ctrl-C in the terminal from ending the watchdog.
        )

    @contextlib.contextmanager
    def deferred(self) -> Generator[None]:
        """Defer a signal to the code inside, which has to check `received`."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def _listen(self, signals: socket.socket) -> None:
        """Read signal numbers until the other end is closed."""
        with signals:
            while received := signals.recv(1):
                if received[0] in (signal.SIGINT, signal.SIGTERM):
                    self._on_signal(received[0])

    def _on_signal(self, number: int) -> None:
        if self.patient and not self.received:
            self.received = number
            os.write(2, b"\nstopping within seconds; repeat to stop at once\n")
            return
        # Not by print, which may be what was interrupted. Bytes of paths may not be UTF-8.
        os.write(2, f"\n{self.message}\n".encode(errors="surrogateescape"))
        self._dismiss_watchdog()
        os._exit(128 + number)

    def _dismiss_watchdog(self) -> None:
        if self.watchdog:
            self.say("")
            self.watchdog.stdin.close()  # type: ignore[union-attr]
            self.watchdog.wait()

    def __enter__(self) -> "GracefulExit":
        """Install the signal handlers."""
        # Without a Python handler, a signal would end the process without waking the thread.
        self.before = {
            number: signal.signal(number, lambda number, frame: None)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        ours, self.signals = socket.socketpair()
        self.signals.setblocking(False)
        self.wakeup = signal.set_wakeup_fd(self.signals.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the previous signal handlers."""
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.signals.close()
        self._dismiss_watchdog()
