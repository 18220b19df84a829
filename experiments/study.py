"""A running study: where its parts, numbers and figures are stored.

parts/*.npz   what each part measured; a stopped study resumes after the last one
timing.jsonl  seconds each part took
data_*.json   descriptions of the data sets
summary.json  the numbers with their intervals, and a list of the figures; written when the study
              finishes
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, overload

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike
from matplotlib.figure import Figure

from experiments import plotting
from experiments.datasets import NAMES
from experiments.options import OWN
from experiments.run_dir import Damaged, Run, read_json, read_row, read_rows, replacing, say
from experiments.stats.estimates import Estimate, to_json
from experiments.tasks import cifar, data, own, titanic
from experiments.tasks.data import Dataset, WrongData
from experiments.tasks.titanic import Passengers
from experiments.training import hosts
from experiments.training.loop import Execution

OWNER = "__owner__"  # Stored with a part's arrays: the part's name and the hash of its config.


def load_all(
    needs: Mapping[str, tuple[int, int]], data_dir: Path | None
) -> dict[str, Dataset | Passengers]:
    """Load all data sets that a study needs, on every host.

    Args:
      needs: data set -> number of training and test images, as returned by a config's `needs`.

    Raises:
      ValueError, FileNotFoundError: raised on all hosts if one lacks a data set or has a different
        one.
    """
    # The digits may replace a single data set only: two that fell back would be the same.
    alone = len(needs) == 1
    loaded, missing = {}, []
    for name, needed in needs.items():
        try:
            loaded[name] = load(name, data_dir, needed=needed, digits_may_do=alone)
        except data.MissingData as error:  # Collected, to report all missing data sets at once.
            missing.append(error)
    if missing:
        raise data.all_missing(missing)
    return loaded


def load(
    name: str,
    data_dir: Path | None,
    *,
    needed: tuple[int, int] = (0, 0),
    digits_may_do: bool = True,
) -> Dataset | Passengers:
    """Load a data set, given by name or by the path of the user's own, on every host.

    Args:
      needed, digits_may_do: as in `experiments.tasks.data.load`.

    Raises:
      ValueError, FileNotFoundError: raised on all hosts if one lacks the data or has different
        data.
    """

    def read() -> Dataset | Passengers:
        if name == "titanic":
            return titanic.load(data_dir=data_dir)
        if name == "cifar10":
            batches = -(-needed[0] // cifar.IMAGES) or cifar.BATCHES
            dataset = cifar.load(train_batches=min(batches, cifar.BATCHES), data_dir=data_dir)
        elif name in NAMES:
            dataset = data.load(name, data_dir=data_dir, needed=needed, digits_may_do=digits_may_do)
        else:
            dataset = own.load(Path(name))
        data.check_enough(dataset, needed)
        return dataset

    loaded = hosts.run_on_all(read)
    hosts.check_same("examples", loaded.describe()["sha256"])
    return loaded


class Study:
    """The object that a study's `measure` receives: it caches parts, loads data, takes results.

    With several hosts every process has one, but only the first process has a run directory; the
    others record nothing.

    Example of a study's `measure.py`:

        def measure(config: Config, study: Study) -> None:
            results = study.part("depth", lambda: gradient_by_depth(config))
            study.report("sigmoid_factor", estimates.ratio(results["sigmoid"]))
            study.figure("depth", lambda: plot_depth(results), title="Gradient by depth", alt="...")
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
        """Start or resume in a run directory."""
        self.name, self.preset, self.data_dir = name, preset, data_dir
        self.execution = execution or Execution()
        self.datasets: dict[str, Any] = {}
        self.estimates: dict[str, Estimate] = {}
        self.figures: list[dict[str, str]] = []
        self.tables: list[str] = []
        self.has_run, self._run = run is not None, run

    @property
    def run(self) -> Run:
        """Return the run directory.

        Raises:
          RuntimeError: on a host other than the first, where `has_run` is False.
        """
        if self._run is None:
            raise RuntimeError("Expected the first host: the others have no run directory.")
        return self._run

    def part(
        self, name: str, measure: Callable[[], Mapping[str, ArrayLike]]
    ) -> dict[str, np.ndarray]:
        """Measure a part and store its named arrays, or read them if they are stored already.

        A stored file that is damaged, or belongs to another part or run, is reported and the part
        is measured again.
        """
        path = self.run.path / "parts" / f"{name}.npz"
        owner = f"{name} {hashlib.sha256((self.run.path / 'config.json').read_bytes()).hexdigest()}"
        if path.exists():
            try:
                return _KeptArrays(path, _read_part(path, owner))
            except Damaged as error:
                say(f"{self.name}: {error}; measuring it again")
        say(f"{self.name}: {name} ...")
        began = time.perf_counter()
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in measure().items()}
        _check_arrays(name, arrays)
        took = round(time.perf_counter() - began, 2)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays, **{OWNER: np.array(owner)})
            self.run.append("timing.jsonl", {"part": name, "seconds": took})
        say(f"{self.name}: {name} took {took:.1f} s")
        return _read_part(path, owner)

    @overload
    def dataset(self, name: Literal["titanic"]) -> Passengers: ...

    @overload
    def dataset(self, name: str) -> Dataset: ...

    def dataset(self, name: str) -> Any:
        """Return a data set, loading it with `load` unless it was added before.

        Raises:
          WrongData: the examples are not those that the run began with.
        """
        if name not in self.datasets:
            self.add_dataset(name, load(name, self.data_dir))
        return self.datasets[name]

    def add_dataset(self, name: str, dataset: Dataset | Passengers) -> None:
        """Add a data set that is already loaded, under the name it was requested by.

        Raises:
          WrongData: the examples are not those that the run began with.
        """
        self.describe_data(name, dataset.describe())
        self.datasets[name] = dataset

    def describe_data(self, name: str, description: Mapping[str, Any]) -> None:
        """Store a description of the examples; in a resumed run, compare with the stored one.

        Args:
          name: what was requested; of a path only the stem is used.

        Raises:
          WrongData: the examples are not those that the run began with.
        """
        hosts.run_on_all(lambda: self._describe_data(name, description) if self.has_run else None)

    def _describe_data(self, name: str, description: Mapping[str, Any]) -> None:
        file = f"data_{Path(name).resolve().stem}.json"
        try:
            before = read_json(self.run.path / file)
            before = {key: before[key] for key in ("name", "source", "sha256")}
        except FileNotFoundError:
            self.run.write(file, dict(description))
            return
        except (Damaged, KeyError) as error:
            path = self.run.path / file
            reason = error if isinstance(error, Damaged) else f"{path} is damaged: it lacks {error}"
            say(f"{reason}; rewriting it, assuming the run started with the current examples")
            self.run.write(file, dict(description))
            return
        if before["sha256"] != description["sha256"]:
            raise WrongData(
                f"Expected the examples that {self.run.path} started with, {before['name']}, got "
                f"{description['name']}. Pass the same --data-dir."
            )

    def report(self, metric: str, estimate: Estimate) -> None:
        """Report a number under the name that the claims' rules use for it.

        Raises:
          ValueError: the name is taken.
        """
        if metric in self.estimates:
            raise ValueError(f"Expected every number once, got {metric!r} again.")
        self.estimates[metric] = estimate

    def table(self, text: str) -> None:
        """Add a table to print at the end, above the verdicts."""
        self.tables.append(text)

    def figure(
        self,
        name: str,
        plot: Callable[[], Figure],
        *,
        title: str,
        alt: str,
        caption: str = "",
        listed: bool = True,
    ) -> None:
        """Plot a figure in the common style and save it as PNG and SVG.

        Args:
          name: name of the files, without suffix.
          plot: makes the figure.
          title: line above the figure in the report.
          alt: text for readers who cannot see the figure: what is drawn and what it shows.
          caption: what the figure is based on: data set, network, seeds, meaning of bands and bars.
          listed: False keeps the figure out of the report; it is only in the run directory.
        """
        if not self.has_run:
            return
        with mpl.rc_context(plotting.STYLE):
            plotting.save(plot(), self.run.path / name)
        if listed:
            about = {"title": title, "caption": caption, "alt": alt}
            self.figures.append({"file": f"{name}.png", **about})

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
                "metrics": {name: to_json(estimate) for name, estimate in self.estimates.items()},
                "figures": self.figures,
            },
        )

    def _seconds(self) -> dict[str, float]:
        """Sum up the seconds of each part, and those of a training loop by kind of work.

        Times that are unknown because a row is missing or damaged are left out, with a message.
        """
        path, metrics = self.run.path / "timing.jsonl", self.run.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [row for row in map(read_row, lines) if row is not None]
        parts, loop, steps = {}, Counter[str](), [0]
        for row in rows:
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            if "seconds" in numbers and "part" in row:
                parts[str(row["part"])] = numbers["seconds"]  # The latest measurement counts.
            if "step" in numbers:
                steps.append(row["step"])
                taken = {key: value for key, value in numbers.items() if key.endswith("_seconds")}
                loop.update({key.removesuffix("_seconds"): value for key, value in taken.items()})
        unknown = sorted({path.stem for path in self.run.path.glob("parts/*.npz")} - parts.keys())
        wanted = [row["step"] for row in read_rows(metrics)] if metrics.exists() else [0]
        if steps != wanted:
            unknown.append("training")
            loop.clear()
        what = ", ".join(unknown)
        if unknown:
            say(f"{path} has missing or damaged rows: leaving out how long {what} took")
        return {name: round(seconds, 2) for name, seconds in (parts | loop).items()}


class _KeptArrays(dict[str, np.ndarray]):
    """A part's arrays by name; looking up a missing one raises an error that names the file."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        """Raise an error that names the file; once removed, the part is measured again.

        Raises:
          Damaged: always.
        """
        raise Damaged(
            f"Expected {name!r} in {self.path}, got {list(self)}: another version wrote it. "
            "Remove it and resume the run to measure it again."
        )


def _check_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that an .npz file cannot store, or not restore unchanged.

    Raises:
      TypeError: an array of objects, or of a type that is not NumPy's own.
    """
    for key, array in arrays.items():
        if array.dtype.kind in "OV":
            raise TypeError(f"Expected {key!r} of {name} to hold numbers, got {array.dtype}.")


def _read_part(path: Path, owner: str) -> dict[str, np.ndarray]:
    """Read what a part measured.

    Args:
      owner: identifies part and run; must equal the string stored with the arrays.

    Raises:
      Damaged: the file is truncated, or otherwise not what was written.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        of = str(arrays.pop(OWNER, "no run"))
        _check_arrays(path.stem, arrays)
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen different types.
        raise Damaged(f"{path} is damaged: {error}") from None
    if not arrays:
        raise Damaged(f"{path} is damaged: it is empty")
    if of != owner:
        raise Damaged(
            f"{path} is damaged: it has {list(arrays)}, which this part of this run did not store"
        )
    return arrays
