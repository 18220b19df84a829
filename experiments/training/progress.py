"""Progress: on a terminal a bar with rate and time left, elsewhere a plain line now and then."""

import math
import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Show the progress of a run: `with Progress(50_000) as bar: bar.advance(100, "...")`."""

    def __init__(self, total: int, *, done: int = 0):
        """Start at `done` steps of `total`."""
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=" steps",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.total, self.first, self.done = total, done, done
        self.started, self.printed = time.monotonic(), -math.inf

    def advance(self, steps: int, note: str = "") -> None:
        """Advance by a number of steps; `note` is shown next to them."""
        self.done += steps
        if not self.bar.disable:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
            return
        now = time.monotonic()
        if now - self.printed < SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.printed = now
        rate = (self.done - self.first) / (now - self.started)
        left = (self.total - self.done) / rate
        where = f"step {self.done:,} of {self.total:,}"
        speed = f"{rate:,.0f} steps/s  {left:,.0f} s left"
        print(f"{where}  {speed}  {note}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        self.bar.close()
