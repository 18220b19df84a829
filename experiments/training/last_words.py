"""How a run ends that does not reach its end: told to stop, or dead."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from types import FrameType, TracebackType

# Reads what would be the last words, and says them when the other end of the pipe is gone.
WITNESS = """
import sys
words = ""
for line in sys.stdin:
    words = line.strip()
if words:
    print(f"\\n{words}", file=sys.stderr)
"""


class Stopped(Exception):
    """The run was told to stop, and has written a checkpoint."""

    def __init__(self, number: int):
        """Remember the signal's number."""
        super().__init__(f"signal {number}")
        self.number = number


class LastWords:
    """Tells how to go on when the run is stopped: `with LastWords() as words: words.say("...")`.

    Ctrl-C or SIGTERM end the process at once. Within `patience` the first one only sets `told`, to
    the signal's number, so that a training loop can finish its chunk of steps and write a
    checkpoint. A KeyboardInterrupt, by contrast, gets lost where it strikes inside a callback of
    XLA.
    """

    def __init__(self) -> None:
        """Have nothing to say yet."""
        self.words = ""
        self.patient = False
        self.told = 0
        self.witness: subprocess.Popen[str] | None = None

    def say(self, words: str) -> None:
        """Set the line that is printed if the process ends now."""
        self.words = words
        if self.witness and self.witness.stdin:
            self.witness.stdin.write(f"{words}\n")
            self.witness.stdin.flush()

    def call_witness(self) -> None:
        """Have the last words said even if this process is killed, as JAX does without a peer."""
        self.witness = subprocess.Popen(
            [sys.executable, "-S", "-I", "-c", WITNESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is not for the witness.
        )

    @contextlib.contextmanager
    def patience(self) -> Generator[None]:
        """Let a signal wait for the loop inside, which looks at `told`."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.patient and not self.told:
            self.told = number
            os.write(2, b"\nstopping after this chunk of steps; again, to stop at once\n")
            return
        os.write(2, f"\n{self.words}\n".encode())  # print might be what was interrupted.
        self._dismiss_witness()
        os._exit(128 + number)

    def _dismiss_witness(self) -> None:
        if self.witness:
            self.say("")
            self.witness.stdin.close()  # type: ignore[union-attr]
            self.witness.wait()

    def __enter__(self) -> "LastWords":
        """Take the signals."""
        self.before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self._dismiss_witness()
