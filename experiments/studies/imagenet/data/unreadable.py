"""Images that cannot be read: each is named once, and too many are an error."""

import fcntl
import json
import threading
from pathlib import Path

from experiments.run_dir import read_row
from experiments.tasks.data import WrongData

LOG = "unreadable.jsonl"  # Its name in the folder of a run, or of shards.
_THREADS = threading.Lock()  # A lock on a file is between processes.


class UnreadableImages:
    """Names the images that could not be read, in a file that several processes share."""

    def __init__(self, log: Path | None, limit: int) -> None:
        """Count from what the file has.

        Args:
          log: gets a line {"name": ..., "why": ...} for each; None counts in this process alone,
            from zero.
          limit: how many may be unreadable.
        """
        self.log = log
        self.limit = limit
        self._names: set[str] = set()

    def add(self, name: str, why: str) -> int:
        """Name an image, if it was not before.

        Returns:
          How many there are.

        Raises:
          WrongData: more than may be.
          OSError: the file cannot be written.
        """
        with _THREADS:
            is_new = name not in self._names
            self._names.add(name)
            count = self._write(name, why) if self.log and is_new else len(self._names)
        if count > self.limit:
            listed = f", listed in {self.log}" if self.log else ""
            raise WrongData(
                f"Expected at most {self.limit} unreadable images, got {count}{listed}, the last "
                f"one {name}: {why}. Mend or remove them, or allow more with --unreadable."
            )
        return count

    def _write(self, name: str, why: str) -> int:
        """Add a line, and take over the names that other processes wrote."""
        assert self.log is not None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):  # Cut short, as by a kill.
                file.truncate(sum(map(len, lines[:-1])))
            rows = [row for line in lines if (row := read_row(line))]
            self._names.update(row["name"] for row in rows if isinstance(row.get("name"), str))
            if not any(row.get("name") == name for row in rows):
                file.write(f"{json.dumps({'name': name, 'why': why})}\n".encode())
        return len(self._names)
