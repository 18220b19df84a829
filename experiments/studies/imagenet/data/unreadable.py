"""Unreadable images: each is logged once, and too many are an error."""

import fcntl
import json
import threading
from pathlib import Path

from experiments.run_dir import read_row
from experiments.tasks.data import WrongData

LOG = "unreadable.jsonl"  # Name of the log in the folder of a run or of shards.
_THREADS = threading.Lock()  # For the threads of this process; the lock on the file is for others.


class UnreadableImages:
    """Logs unreadable images in a file that several processes share."""

    def __init__(self, log: Path | None, limit: int) -> None:
        """Create a log; images that the file already lists count.

        Args:
          log: file that gets a line {"name": ..., "why": ...} for each image; None counts from zero
            and in this process only.
          limit: number of images that may be unreadable.
        """
        self.log = log
        self.limit = limit
        self._names: set[str] = set()

    def add(self, name: str, why: str) -> int:
        """Log an image, unless it is already logged.

        Returns:
          The number of unreadable images so far.

        Raises:
          WrongData: more images than the limit.
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
                f"one {name}: {why}. Fix or remove them, or allow more with --unreadable."
            )
        return count

    def _write(self, name: str, why: str) -> int:
        """Append a line, and add the names that other processes have written."""
        assert self.log is not None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):  # Incomplete, for example after a kill.
                file.truncate(sum(map(len, lines[:-1])))
            rows = [row for line in lines if (row := read_row(line))]
            self._names.update(row["name"] for row in rows if isinstance(row.get("name"), str))
            if not any(row.get("name") == name for row in rows):
                file.write(f"{json.dumps({'name': name, 'why': why})}\n".encode())
        return len(self._names)
