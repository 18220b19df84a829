"""What the study `imagenet` trains, evaluates and reports."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import run_dir
from experiments.plotting import describe_runs
from experiments.run_dir import Damaged, Run, read_json, read_rows, say
from experiments.stats import estimates
from experiments.studies.imagenet import results
from experiments.studies.imagenet.config import Config
from experiments.studies.imagenet.data.image_source import ImageSource
from experiments.studies.imagenet.data.source import check_enough, open_source
from experiments.studies.imagenet.evaluate import population
from experiments.studies.imagenet.figures import plot_accuracy
from experiments.studies.imagenet.network import make_mesh
from experiments.studies.imagenet.results import Trained
from experiments.studies.imagenet.train import Data, train
from experiments.studies.imagenet.variants import Variant
from experiments.study import Study
from experiments.tasks.data import WrongData
from experiments.training import hosts

RESULT, DEVICES = "result.json", "devices.json"


def open_data(config: Config, data_dir: Path | None) -> dict[str, ImageSource]:
    """Open the training and validation images on every host.

    Raises:
      ValueError, FileNotFoundError: invalid or missing data; the message says what is wrong.
    """
    if config.dataset == "folder" and data_dir is None:
        raise ValueError(
            "Expected --data-dir FOLDER with --dataset folder, got none. It has train/CLASS/*.jpg "
            "and validation/CLASS/*.jpg, or is the output of --prepare."
        )
    where = str(data_dir) if config.dataset == "folder" else config.dataset
    try:
        train = hosts.run_on_all(lambda: open_source(where, "train", data_dir))
    except FileNotFoundError as error:
        if where != "cifar10" or data_dir is None:
            raise
        raise FileNotFoundError(f"{error} For your own images, pass --dataset folder.") from None
    validation = hosts.run_on_all(lambda: open_source(where, "validation", data_dir))
    if train.classes != validation.classes:
        raise ValueError(
            f"Expected the same classes in both splits of {where}, got {len(train.classes)} and "
            f"{len(validation.classes)}."
        )
    check_enough(train, config.batch_size)
    for source in (train, validation):
        hosts.check_same("images", source.describe()["sha256"])
    return {"train": train, "validation": validation}


def measure(config: Config, study: Study) -> None:
    """Train every variant with every seed, one after another; report and plot."""
    sources: dict[str, Any] = study.datasets
    data = Data(sources["train"], sources["validation"])
    devices = study.execution.devices
    try:
        check_enough(data.train, config.batch_size * devices.count)
        make_mesh(list(devices.mesh.devices.flat), config.statistics)
    except ValueError as error:
        raise WrongData(str(error)) from None
    hosts.run_on_all(lambda: check_devices(study.run, devices.count) if study.has_run else None)
    trained = {
        name: [
            train_one(config, name, variant, seed, data, study)
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for name, variant in config.variants().items()
    }
    if study.has_run:
        report(config, study, trained, data.train.name)


def check_devices(run: Run, count: int) -> None:
    """Record the number of devices, which determines the batches; check it if the run is resumed.

    Raises:
      WrongData: the run was started with another number.
      Damaged: the recorded number cannot be read.
    """
    try:
        before = count_devices(run.path / DEVICES)
    except FileNotFoundError:
        run.write(DEVICES, {"devices": count})
        return
    if before != count:
        raise WrongData(
            f"Expected --devices {before}, with which {run.path} was started, got {count}: a batch "
            "spans all devices. Use as many, or start a new run."
        )


def count_devices(path: Path) -> int:
    """Read the number of devices that shared a run's batches.

    Raises:
      FileNotFoundError: the run recorded no number.
      Damaged: the number cannot be read.
    """
    try:
        count = read_json(path).get("devices")
    except Damaged:
        count = None
    if type(count) is not int or count < 1:
        raise Damaged(
            f"Expected {path} to say how many devices share a batch, but it is damaged. Write "
            f'{{"devices": 1}} into it, or the number under `spread` in env.json beside it.'
        )
    return count


def train_one(
    config: Config, name: str, variant: Variant, seed: int, data: Data, study: Study
) -> Trained:
    """Train and evaluate one network, or read its results if it is already finished."""
    run = open_network(config, f"{name}_{seed}", study.run) if study.has_run else None
    kept = hosts.broadcast_from_first(read_result(config, run) if run else None)
    if kept is None:
        say(f"{name}, seed {seed} ...")
        network, evaluator = train(config, variant, seed, data, run, study.execution)
        kept = {}
        averaged = population(
            config, variant, network, data.train, seed, evaluator.mesh, evaluator.log
        )
        for statistics, each in (("moving", network), ("population", averaged)):
            members = [evaluator.predictor(each.variables)]
            (accuracy,) = evaluator.accuracies(members, data.validation, config.crops)
            kept |= {f"{statistics}_{key}": value for key, value in accuracy.items()}
        if run:
            run.write(RESULT, kept)
    rows = list(read_rows(run.path / "metrics.jsonl")) if run else []
    return Trained(
        np.array([row["step"] for row in rows]), np.array([row["top_1"] for row in rows]), kept
    )


def open_network(config: Config, name: str, run: Run) -> Run:
    """Create or open the folder of one network within that of the run, under the same lock."""
    path = run.path / name
    path.mkdir(exist_ok=True)
    own = Run(path, run.lock)
    wanted = {"network": name, **run_dir.to_json(config)}
    try:
        if own.read("config.json") == wanted:
            return own
        say(f"{path / 'config.json'} does not match this run; the network is trained again")
    except FileNotFoundError:
        pass
    except Damaged as error:
        say(f"{error}; it is rewritten")
    own.write("config.json", wanted)
    return own


def read_result(config: Config, run: Run) -> dict[str, Any] | None:
    """Read the results of a trained network; None if they are missing or damaged."""
    try:
        kept = read_json(run.path / RESULT)
        rows = list(read_rows(run.path / "metrics.jsonl"))
        if not all(isinstance(kept.get(name), float) for name in results.NAMES):
            raise Damaged(f"{run.path / RESULT} is damaged: numbers are missing")
        every = config.evaluate_every
        steps = [row.get("step") for row in rows if isinstance(row.get("top_1"), float)]
        if steps != list(range(every, config.steps + 1, every)):
            raise Damaged(f"{run.path / 'metrics.jsonl'} is damaged: rows are missing or wrong")
        return kept
    except FileNotFoundError:
        return None
    except Damaged as error:
        say(f"{error}; the network is evaluated again")
        return None


def report(config: Config, study: Study, trained: dict[str, list[Trained]], data: str) -> None:
    """Report the numbers, plot Fig. 2, and format the table of Fig. 3."""
    for name, networks in trained.items():
        for key in sorted(results.NAMES):
            values = np.array([network.result[key] for network in networks])
            study.report(f"{name}_{key}", estimates.mean(values))
        best = np.array([network.accuracy.max() for network in networks])
        study.report(f"{name}_best", estimates.mean(best))
    steps = results.steps_to_best_of_inception(trained)
    for name, values in steps.items():
        study.report(f"{name}_steps", estimates.mean(values))
    study.table(results.table(config, trained, steps))
    study.figure(
        "accuracy",
        lambda: plot_accuracy(trained),
        title="Validation accuracy against training steps (the paper's Fig. 2)",
        caption=f"{data}, images of {config.size}x{config.size}, batches of {config.batch_size} on "
        f"each of {study.execution.devices}. Moving averages, {config.watched:,} validation images "
        f"at most. {describe_runs(config.seeds)}",
        alt="Top-1 accuracy on validation images against training steps, a line for each variant. "
        "Best, mean of seeds: "
        + ", ".join(
            f"{results.LABELS[name]} {np.mean([one.accuracy.max() for one in networks]):.3f}"
            for name, networks in trained.items()
        )
        + ".",
    )
