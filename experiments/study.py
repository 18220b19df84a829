"""A study under way: where its parts, its numbers and its figures go.

parts/*.npz   what each part measured: a stopped study goes on after the last one
timing.jsonl  seconds of each part
data_*.json   what the examples are
summary.json  the numbers, with their intervals, and what figures there are; a study that has it is
              finished
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike
from matplotlib.figure import Figure

from experiments import plotting
from experiments.options import OWN
from experiments.run_dir import Run, read_rows
from experiments.stats.estimates import Estimate, to_json
from experiments.tasks import data
from experiments.tasks.data import Dataset, WrongData
from experiments.training import hosts
from experiments.training.loop import Execution


def load(name: str, data_dir: Path | None) -> Dataset:
    """Load a data set on every host, see `experiments.tasks.data.load`.

    Raises: ValueError, FileNotFoundError: on all hosts where one of them lacks it or has another.
    """
    loaded = hosts.run_on_all(lambda: data.load(name, data_dir=data_dir))
    hosts.check_same("examples", loaded.describe()["sha256"])
    return loaded


class Study:
    """What `measure` is given to measure with, and to report to.

    On several hosts every process has one; that of the first alone has a run directory, and the
    others report to nothing.

    Example of a study's `measure.py`:

        def measure(config: Config, study: Study) -> None:
            found = study.part("depth", lambda: gradient_by_depth(config))
            study.report("sigmoid_factor", estimates.ratio(found["sigmoid"]))
            study.figure("depth", lambda: plot_depth(found), title="Gradient by depth", alt="...")
    """

    def __init__(
        self,
        name: str,
        run: Run | None,
        *,
        preset: str = OWN,
        data_dir: Path | None = None,
        execution: Execution | None = None,
    ):
        """Begin, or go on, in a run directory."""
        self.name, self.preset, self.data_dir = name, preset, data_dir
        self.execution = execution or Execution()
        self.datasets: dict[str, Dataset] = {}
        self.estimates: dict[str, Estimate] = {}
        self.figures: list[dict[str, str]] = []
        self.tables: list[str] = []
        self.has_run, self._run = run is not None, run

    @property
    def run(self) -> Run:
        """Return the run directory.

        Raises: RuntimeError: on a host other than the first, where `has_run` is False.
        """
        if self._run is None:
            raise RuntimeError("Expected the first host: the others have no run directory.")
        return self._run

    def part(
        self, name: str, measure: Callable[[], Mapping[str, ArrayLike]]
    ) -> dict[str, np.ndarray]:
        """Measure a part, named arrays, and keep it; where it is kept already, read it."""
        path = self.run.path / "parts" / f"{name}.npz"
        if not path.exists():
            print(f"{self.name}: {name} ...", file=sys.stderr, flush=True)
            began = time.perf_counter()
            arrays: dict[str, Any] = {key: np.asarray(made) for key, made in measure().items()}
            took = round(time.perf_counter() - began, 2)
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            self.run.append("timing.jsonl", {"part": name, "seconds": took})
            partial.replace(path)
            print(f"{self.name}: {name} took {took:.1f} s", file=sys.stderr, flush=True)
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)

    def dataset(self, name: str) -> Dataset:
        """Load a data set, see `load`.

        Raises: WrongData: not the examples that the run began with.
        """
        if name not in self.datasets:
            self.add_dataset(name, load(name, self.data_dir))
        return self.datasets[name]

    def add_dataset(self, name: str, dataset: Dataset) -> None:
        """Take a data set that is loaded already.

        Raises: WrongData: not the examples that the run began with.
        """
        self.describe_data(name, dataset.describe())
        self.datasets[name] = dataset

    def describe_data(self, name: str, description: Mapping[str, Any]) -> None:
        """Keep what the examples are; for a run that goes on, compare.

        Raises: WrongData: not the examples that the run began with.
        """
        hosts.run_on_all(lambda: self._describe_data(name, description) if self.has_run else None)

    def _describe_data(self, name: str, description: Mapping[str, Any]) -> None:
        file = f"data_{name}.json"
        if not (self.run.path / file).exists():
            self.run.write(file, dict(description))
            return
        before = self.run.read(file)
        if before["sha256"] != description["sha256"]:
            raise WrongData(
                f"Expected the examples that {self.run.path} began with, {before['name']}, got "
                f"{description['name']}. Pass the same --data-dir."
            )

    def report(self, metric: str, estimate: Estimate) -> None:
        """Report a number under the name that a claim's rule calls it by.

        Raises: ValueError: that name is taken.
        """
        if metric in self.estimates:
            raise ValueError(f"Expected every number once, got {metric!r} again.")
        self.estimates[metric] = estimate

    def table(self, text: str) -> None:
        """Have a table printed at the end, above the verdicts."""
        self.tables.append(text)

    def figure(
        self, name: str, plot: Callable[[], Figure], *, title: str, alt: str, listed: bool = True
    ) -> None:
        """Plot a figure in the common style, and keep it as PNG and SVG.

        Args:
          name: of the files.
          plot: makes the figure.
          title: a line above it in the report.
          alt: what a reader who cannot see it should know: what is drawn, and what it shows.
          listed: False leaves it in the run directory alone.
        """
        if not self.has_run:
            return
        with mpl.rc_context(plotting.STYLE):
            plotting.save(plot(), self.run.path / name)
        if listed:
            self.figures.append({"file": f"{name}.png", "title": title, "alt": alt})

    def finish(self) -> None:
        """Write summary.json."""
        if not self.has_run:
            return
        self.run.write(
            "summary.json",
            {
                "preset": self.preset,
                "config": self.run.read("config.json"),
                "environment": self.run.read("env.json"),
                "data": {
                    path.stem.removeprefix("data_"): self.run.read(path.name)
                    for path in sorted(self.run.path.glob("data_*.json"))
                },
                "seconds": self._seconds(),
                "metrics": {name: to_json(made) for name, made in self.estimates.items()},
                "figures": self.figures,
            },
        )

    def _seconds(self) -> dict[str, float]:
        """Add up the seconds of each part, and those of a training loop by what took them."""
        taken: Counter[str] = Counter()
        path = self.run.path / "timing.jsonl"
        for row in read_rows(path) if path.exists() else ():
            if "part" in row:
                taken[row["part"]] += row["seconds"]
            for key in row:
                if key.endswith("_seconds"):
                    taken[key.removesuffix("_seconds")] += row[key]
        return {name: round(seconds, 2) for name, seconds in taken.items()}
