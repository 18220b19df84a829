"""Ensembles, which average the class probabilities of several networks: the paper's Fig. 4."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from tqdm import tqdm

from experiments import run_dir, sampling
from experiments.run_dir import Damaged, read_json
from experiments.studies.imagenet import network as networks
from experiments.studies.imagenet.config import SWITCHES, Config, group_size
from experiments.studies.imagenet.data.image_source import ImageSource
from experiments.studies.imagenet.evaluate import Evaluator, population
from experiments.studies.imagenet.measure import DEVICES, RESULT, count_devices, open_data
from experiments.studies.imagenet.variants import Variant
from experiments.training.checkpoints import Checkpoints
from experiments.training.networks import Network

# Top-1 and top-5 error in percent, by (networks, crops).
PAPER = {(1, 1): (25.2, 7.82), (1, 144): (21.99, 5.82), (6, 144): (20.1, 4.9)}
BAR: Any = {"delay": 2, "disable": None}  # Only on a terminal, and if it takes long.
MEND = "Pass folders such as runs/imagenet/<time>, or folders of single networks in them."


class Member(NamedTuple):
    """A trained network: its folder and how it was trained."""

    path: Path
    config: Config
    name: str
    seed: int

    @property
    def variant(self) -> Variant:
        """Return its variant, with the changes applied."""
        return self.config.variants()[self.name]

    def describe(self) -> str:
        """Describe the variant, its changes and the seed."""
        changes = {switch: getattr(self.config, switch) for switch in SWITCHES}
        given = [f"{name} {value}" for name, value in changes.items() if value is not None]
        return ", ".join([self.name, *given, f"seed {self.seed}"])


class Error(NamedTuple):
    """Shares of validation images whose class is not the likeliest, or not among the top five."""

    top_1: float
    top_5: float


def find_members(paths: Sequence[Path]) -> list[Member]:
    """Find the trained networks in folders of runs or of single networks.

    Raises:
      ValueError: no folder, or one without trained networks; a network given twice; networks
        trained on different images.
    """
    if not paths:
        raise ValueError(f"Expected runs of imagenet with --ensemble, got none. {MEND}")
    members = []
    for path in paths:
        folders = [path, *sorted(folder for folder in path.glob("*/") if folder.is_dir())]
        inside = [member for folder in folders if (member := read_member(folder))]
        if not inside:
            raise ValueError(
                f"Expected runs of imagenet with --ensemble, got {path}, which has no trained "
                f"network. {MEND}"
            )
        members += inside
    (member, count), *_ = Counter(member.path.resolve() for member in members).most_common(1)
    if count > 1:
        raise ValueError(f"Expected each network once, got {member} {count} times. Pass it once.")
    seen = [(member.config.dataset, member.config.size) for member in members]
    if len(set(seen)) > 1:
        raise ValueError(
            "Expected networks trained on the same images, got "
            f"{', '.join(f'{name} at {size}x{size}' for name, size in dict.fromkeys(seen))}. Pass "
            "runs with the same data set and size."
        )
    return members


def read_member(folder: Path) -> Member | None:
    """Read how a network was trained; None if the folder is not that of a finished network.

    Raises:
      Damaged: the config is damaged or of another version.
    """
    if not (folder / RESULT).is_file() or not (folder / "config.json").is_file():
        return None
    values = read_json(folder / "config.json")
    name, _, seed = str(values.pop("network", "")).rpartition("_")
    try:
        member = Member(folder, run_dir.to_config(Config, values), name, int(seed))
        member.config.variants()[name]  # Raises KeyError for an unknown name.
        return member
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{folder / 'config.json'} is damaged or from another version: {error}"
        ) from None


def evaluate(
    members: Sequence[Member], data_dir: Path | None, crops: Literal[1, 144]
) -> dict[str, Error]:
    """Evaluate each network, and all of them together, with population statistics.

    Args:
      members: result of `find_members`.
      data_dir: the --data-dir of the runs.
      crops: crops of each validation image.

    Returns:
      Errors by the network's folder, and that of several networks as an ensemble by "together".

    Raises:
      ValueError, FileNotFoundError: invalid or missing images, or others than those of the runs.
      Damaged: a network without an intact checkpoint.
    """
    data: dict[str, ImageSource] = open_data(members[0].config, data_dir)
    for member in members:
        check_images(member, data)
    mesh = networks.make_mesh(jax.devices()[:1], "device")
    classes = len(data["train"].classes)
    predictors = []
    for member in tqdm(members, "population statistics", unit=" networks", **BAR):
        model = networks.make_model(member.config, member.variant, classes)
        averaged = population(
            as_on_one_device(member),
            member.variant,
            restore(member, classes),
            data["train"],
            member.seed,
            mesh,
        )
        evaluator = Evaluator(member.config, model, data["validation"], mesh)
        predictors.append(evaluator.predictor(averaged.variables))
    with tqdm(total=len(data["validation"]), desc="evaluating", unit=" images", **BAR) as bar:
        found = evaluator.accuracies(predictors, data["validation"], crops, bar.update)
    names = [*(str(member.path) for member in members), "together"]
    return {name: error_of(accuracy) for name, accuracy in zip(names, found, strict=False)}


def as_on_one_device(member: Member) -> Config:
    """Return the config with batches that give the statistics of the run's devices on one device.

    Each group of the run's devices had its own statistics, which are averaged like those of
    batches, so a group's part of a batch becomes a batch.
    """
    config, path = member.config, member.path.parent / DEVICES
    try:
        count = count_devices(path)
    except FileNotFoundError:  # The network's folder was copied by itself.
        count = 1
        if config.statistics != "device":
            run_dir.say(
                f"{path}, which says how many devices shared batches, is missing: population "
                "statistics assume one device. Move the folder back into its run to use the run's"
            )
    size = group_size(config.statistics, count)
    return dataclasses.replace(
        config,
        batch_size=config.batch_size * size,
        population_batches=config.population_batches * (count // size),
    )


def check_images(member: Member, data: Mapping[str, ImageSource]) -> None:
    """Check that the images are those of the member's run: others may number classes differently.

    Raises:
      ValueError: the images differ.
    """
    for split, source in data.items():
        try:
            before = read_json(member.path.parent / f"data_{split}.json")
        except FileNotFoundError:  # The network's folder was copied by itself.
            continue
        if before.get("sha256") != source.sha256:
            raise ValueError(
                f"Expected the {split} images of {member.path}, {before.get('name')}, got "
                f"{source.name}, which differ. Pass the --data-dir of its run."
            )


def restore(member: Member, classes: int) -> Network:
    """Read the weights of a finished network.

    Raises:
      Damaged: there is no intact checkpoint of its last step.
    """
    model = networks.make_model(member.config, member.variant, classes)
    optimizer = networks.make_optimizer(member.config, member.variant, 1)
    key = sampling.keys([member.seed], "weights")[0]
    like = networks.init(model, optimizer, key, member.config.size)
    with run_dir.open_run(member.path) as run, Checkpoints(run) as checkpoints:
        restored = checkpoints.newest(like)
    if restored is None or restored[0] != member.config.steps:
        raise Damaged(
            f"Expected a checkpoint of step {member.config.steps:,} in {member.path}, got "
            f"{f'one of step {restored[0]:,}' if restored else 'none'}. Remove "
            f"{member.path / RESULT}, which marks it as finished, and resume its run: "
            f"--resume {member.path.parent}"
        )
    return restored[1]


def error_of(accuracy: dict[str, Any]) -> Error:
    """Convert accuracies to errors."""
    return Error(1 - accuracy["top_1"], 1 - accuracy["top_5"])


def table(members: Sequence[Member], errors: dict[str, Error], crops: int) -> str:
    """Format our errors and those of the paper's Fig. 4 as a table, in percent."""
    width = max(map(len, errors)) + 2
    described = {str(member.path): member.describe() for member in members}
    lines = [f"{'error in percent':{width}}  top-1  top-5"]
    lines += [
        f"{name:{width}}  {100 * error.top_1:5.1f}  {100 * error.top_5:5.1f}  "
        f"{described.get(name, '')}".rstrip()
        for name, error in errors.items()
    ]
    lines += [
        "",
        f"{crops} crop{'s' * (crops > 1)} of each validation image. The paper's, ImageNet:",
    ]
    for (networks_, of_crops), (top_1, top_5) in PAPER.items():
        what = f"{networks_} network{'s' * (networks_ > 1)}, {of_crops} crop{'s' * (of_crops > 1)}"
        lines.append(f"{what:{width}}  {top_1:5.1f}  {top_5:5.1f}")
    return "\n".join(lines)
