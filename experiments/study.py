"""A study: an experiment in parts, its numbers and its figures.

parts/*.npz   what each part measured: a stopped study goes on after the last one
timing.jsonl  seconds of each part
summary.json  the numbers, with their intervals, and what figures there are; a study that has it is
              finished
"""

import sys
import time
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


class Study:
    """What an experiment is given to measure with, and to report to.

    Example of an experiment, after its `Config` and `PRESETS`:

        def measure(config: Config, study: Study) -> None:
            found = study.part("depth", lambda: gradient_by_depth(config))
            study.report("sigmoid_factor", estimates.ratio(found["sigmoid"]))
            study.figure("depth", lambda: draw(found), title="Gradient by depth", alt="...")
    """

    def __init__(self, name: str, run: Run, *, preset: str = OWN, data_dir: Path | None = None):
        """Begin, or go on, in a run directory."""
        self.name, self.run, self.preset, self.data_dir = name, run, preset, data_dir
        self.datasets: dict[str, Dataset] = {}
        self.estimates: dict[str, Estimate] = {}
        self.figures: list[dict[str, str]] = []

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
        """Load a data set, see `experiments.tasks.data.load`.

        Raises: WrongData: not the examples that the run began with.
        """
        if name not in self.datasets:
            loaded = data.load(name, data_dir=self.data_dir)
            self.datasets[name] = loaded
            self.describe_data(name, loaded.describe())
        return self.datasets[name]

    def describe_data(self, name: str, description: Mapping[str, Any]) -> None:
        """Keep what the examples are; for a run that goes on, compare.

        Raises: WrongData: not the examples that the run began with.
        """
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

    def figure(self, name: str, draw: Callable[[], Figure], *, title: str, alt: str) -> None:
        """Draw a figure in the common style, and keep it as PNG.

        Args:
          name: of the file.
          draw: makes the figure.
          title: a line above it in the report.
          alt: what a reader who cannot see it should know: what is drawn, and what it shows.
        """
        with mpl.rc_context(plotting.STYLE):
            plotting.save_png(draw(), self.run.path / name)
        self.figures.append({"file": f"{name}.png", "title": title, "alt": alt})

    def finish(self) -> None:
        """Write summary.json."""
        rows = self.run.path / "timing.jsonl"
        seconds = {row["part"]: row["seconds"] for row in read_rows(rows)} if rows.exists() else {}
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
                "seconds": seconds,
                "metrics": {name: to_json(made) for name, made in self.estimates.items()},
                "figures": self.figures,
            },
        )
