"""A study under way: where its parts, its numbers and its figures go.

parts/*.npz   what each part measured: a stopped study goes on after the last one
timing.jsonl  seconds of each part
data_*.json   what the examples are
summary.json  the numbers, with their intervals, and what figures there are; a study that has it is
              finished
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

OWNER = "__owner__"  # Beside the arrays of a part: which part it is, and of which config.


def load_all(
    needs: Mapping[str, tuple[int, int]], data_dir: Path | None
) -> dict[str, Dataset | Passengers]:
    """Load all that a study needs, on every host.

    Args:
      needs: data set -> how many training and test images, as a config's `needs` has it.

    Raises:
      ValueError, FileNotFoundError: on all hosts where one of them lacks it or has another.
    """
    # Two that fall back on the digits would be one: each is then to be itself.
    alone = len(needs) == 1
    loaded, missing = {}, []
    for name, needed in needs.items():
        try:
            loaded[name] = load(name, data_dir, needed=needed, digits_may_do=alone)
        except data.MissingData as error:  # Whoever lacks several is told of all at once.
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
    """Load a data set, by its name or the path of one's own, on every host.

    Args:
      needed, digits_may_do: as in `experiments.tasks.data.load`.

    Raises:
      ValueError, FileNotFoundError: on all hosts where one of them lacks it or has another.
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
    """What `measure` is given to measure with, and to report to.

    On several hosts every process has one; that of the first alone has a run directory, and the
    others report to nothing.

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
        """Begin, or go on, in a run directory."""
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
        """Measure a part, named arrays, and keep it; where it is kept already, read it.

        One that is kept but damaged, or not what this part of this run kept, is named, and measured
        again.
        """
        path = self.run.path / "parts" / f"{name}.npz"
        owner = f"{name} {hashlib.sha256((self.run.path / 'config.json').read_bytes()).hexdigest()}"
        if path.exists():
            try:
                return _KeptArrays(path, _read_part(path, owner))
            except Damaged as error:
                say(f"{self.name}: {error}; it is measured again")
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
        """Return a data set; one that was not added is loaded, see `load`.

        Raises:
          WrongData: not the examples that the run began with.
        """
        if name not in self.datasets:
            self.add_dataset(name, load(name, self.data_dir))
        return self.datasets[name]

    def add_dataset(self, name: str, dataset: Dataset | Passengers) -> None:
        """Take a data set that is loaded already, under the name that it was asked for by.

        Raises:
          WrongData: not the examples that the run began with.
        """
        self.describe_data(name, dataset.describe())
        self.datasets[name] = dataset

    def describe_data(self, name: str, description: Mapping[str, Any]) -> None:
        """Keep what the examples are; for a run that goes on, compare.

        Args:
          name: what was asked for; of a path the last part, without its ending, is kept.

        Raises:
          WrongData: not the examples that the run began with.
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
            say(
                f"{reason}; written anew, for the examples of now are taken for those it began with"
            )
            self.run.write(file, dict(description))
            return
        if before["sha256"] != description["sha256"]:
            raise WrongData(
                f"Expected the examples that {self.run.path} began with, {before['name']}, got "
                f"{description['name']}. Pass the same --data-dir."
            )

    def report(self, metric: str, estimate: Estimate) -> None:
        """Report a number under the name that a claim's rule calls it by.

        Raises:
          ValueError: that name is taken.
        """
        if metric in self.estimates:
            raise ValueError(f"Expected every number once, got {metric!r} again.")
        self.estimates[metric] = estimate

    def table(self, text: str) -> None:
        """Have a table printed at the end, above the verdicts."""
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
        """Plot a figure in the common style, and keep it as PNG and SVG.

        Args:
          name: of the files.
          plot: makes the figure.
          title: a line above it in the report.
          alt: what a reader who cannot see it should know: what is drawn, and what it shows.
          caption: what it rests on: data set, network, seeds, what bands and bars are.
          listed: False leaves it in the run directory alone.
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
        """Take the seconds of each part, and those of a training loop by what took them.

        What is not known for a missing or damaged row is left out, and it is said.
        """
        path, metrics = self.run.path / "timing.jsonl", self.run.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [row for row in map(read_row, lines) if row is not None]
        parts, loop, steps = {}, Counter[str](), [0]
        for row in rows:
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            if "seconds" in numbers and "part" in row:
                parts[str(row["part"])] = numbers["seconds"]  # Of what was measured last.
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
            say(f"{path} lacks rows, or has damaged ones: left out is how long {what} took")
        return {name: round(seconds, 2) for name, seconds in (parts | loop).items()}


class _KeptArrays(dict[str, np.ndarray]):
    """The arrays of a part by name; of one that it lacks, the file is to blame."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        """Name the file: the part is measured again once it is gone.

        Raises:
          Damaged: always.
        """
        raise Damaged(
            f"Expected {name!r} in {self.path}, got {list(self)}: another version kept it. Remove "
            "it, and resume the run: it is measured again."
        )


def _check_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what a file of arrays cannot hold, or does not give back as it was.

    Raises:
      TypeError: an array of objects, or of a type that is not NumPy's own.
    """
    for key, array in arrays.items():
        if array.dtype.kind in "OV":
            raise TypeError(f"Expected {key!r} of {name} to hold numbers, got {array.dtype}.")


def _read_part(path: Path, owner: str) -> dict[str, np.ndarray]:
    """Read what a part measured.

    Args:
      owner: what the part wrote beside its arrays, to tell them from those of any other.

    Raises:
      Damaged: it is cut short, or otherwise not what was written.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        of = str(arrays.pop(OWNER, "no run"))
        _check_arrays(path.stem, arrays)
    except Exception as error:  # Of zip, zlib, NumPy's headers: there are a dozen kinds.
        raise Damaged(f"{path} is damaged: {error}") from None
    if not arrays:
        raise Damaged(f"{path} is damaged: it is empty")
    if of != owner:
        raise Damaged(
            f"{path} is damaged: it has {list(arrays)}, which this part of this run did not keep"
        )
    return arrays
