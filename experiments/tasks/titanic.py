"""Titanic: class, fare and age of 891 passengers, and who survived; or a similar made-up table.

The table is that of the Kaggle competition (train.csv). No file is parsed before its checksum is
verified.
"""

import csv
import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
from jaxtyping import Float, Int

from experiments import sampling
from experiments.tasks.data import DOWNLOAD_TIMEOUT, check_sha256, how_to_give

URL = "https://raw.githubusercontent.com/datasciencedojo/datasets/master/titanic.csv"
SHA256 = "4a437fde05fe5264e1701a7387ac6fb75393772ba38bb2c9c566405af5af4bd7"
FEATURES = ("Pclass", "Fare", "Age")


@dataclass(frozen=True)
class Passengers:
    """A table of passengers, NaN where a value is missing, and its origin."""

    name: str
    source: str
    features: Float[np.ndarray, "N 3"] = field(repr=False)
    survived: Int[np.ndarray, "N"] = field(repr=False)

    def describe(self) -> dict[str, str | int]:
        """Describe what a run was trained on, with a checksum of the values themselves."""
        digest = hashlib.sha256(self.features.tobytes() + self.survived.tobytes())
        return {
            "name": self.name,
            "source": self.source,
            "examples": len(self.survived),
            "sha256": digest.hexdigest(),
        }


def load(*, data_dir: Path | None = None) -> Passengers:
    """Load the passengers from a folder, or download them once.

    Args:
      data_dir: folder that holds `titanic/titanic.csv`; None uses the environment variable
        JBN_DATA. Without either, the file is downloaded once to the user's cache.

    Raises:
      FileNotFoundError: the given folder lacks the file, or the download failed.
      ValueError: the file is not the official one.
    """
    given = data_dir or os.environ.get("JBN_DATA")
    if not given:
        return Passengers("titanic", "download", *parse(_download(pooch.os_cache("jbn"))))
    path = Path(given) / "titanic" / "titanic.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the data file {path}, found none there. Put it there, or set neither "
            "--data-dir nor JBN_DATA to download it."
        )
    check_sha256(path, SHA256)
    return Passengers("titanic", "data folder", *parse(path))


def _download(cache: Path) -> Path:
    """Download the file unless it is cached; pooch keeps no file with a wrong checksum."""
    pooch.get_logger().setLevel(logging.CRITICAL)
    fetch: Any = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT)
    try:
        got = pooch.retrieve(
            URL,
            known_hash=f"sha256:{SHA256}",
            fname="titanic.csv",
            path=cache / "titanic",
            downloader=fetch,
        )
    except (OSError, ValueError) as error:  # No connection, or not the official file.
        raise FileNotFoundError(
            f"Expected to download {URL}, got {type(error).__name__}. "
            f"{how_to_give('titanic/titanic.csv')} --source synthetic, a made-up table, also "
            "works."
        ) from error
    return Path(got)


def parse(path: Path) -> tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, "N"]]:
    """Read features, NaN where a cell is empty, and labels from the table."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    features = [[float(row[name] or "nan") for name in FEATURES] for row in rows]
    return np.array(features), np.array([int(row["Survived"]) for row in rows])


def sample_passengers(count: int = 891) -> Passengers:
    """Draw a random table that resembles the real one, for trials without the file.

    Classes 1, 2, 3 have shares .24, .21, .55. The logarithm of the fare is normal with mean
    5.2 - class and standard deviation .6. The age is normal, 30 +- 14 and at least 0.4 years, and
    missing for one passenger in five. The log-odds of survival are 2.6 - class - age / 50.
    """
    rng = sampling.rng(0, "passengers")
    pclass = rng.choice(3, count, p=(0.24, 0.21, 0.55)) + 1.0
    fare = np.exp(rng.normal(5.2 - pclass, 0.6))
    age = np.maximum(rng.normal(30, 14, count), 0.4)
    odds = np.exp(2.6 - pclass - age / 50)
    survived = (rng.random(count) < odds / (1 + odds)).astype(np.int64)
    age[rng.random(count) < 0.2] = np.nan
    features = np.stack([pclass, fare, age], axis=1)
    return Passengers("a table made up", "titanic.sample_passengers", features, survived)


# ---- Folds ---------------------------------------------------------------------------------------


class Fold(NamedTuple):
    """One fold of one seed, or all of them with a leading axis.

    - x: features of all passengers, raw and standardized.
    - test, weight: rows of the test part, with weight 1; padded with row 0 and weight 0, since the
      sizes of folds differ by one passenger.
    """

    x: Float[np.ndarray, "scalings N features"]
    test: Int[np.ndarray, "tested"]
    weight: Float[np.ndarray, "tested"]


def sample_folds(
    survived: Int[np.ndarray, "N"], *, seeds: int, folds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split into training and test rows: all folds of the first seed, then those of the next."""
    from sklearn.model_selection import StratifiedKFold  # Slow to import.

    splits = []
    for seed in range(seeds):
        state = int(sampling.rng(seed, "folds").integers(2**32))
        folding = StratifiedKFold(folds, shuffle=True, random_state=state)
        splits += list(folding.split(survived, survived))
    return splits


def raw_and_standardized(
    features: Float[np.ndarray, "N features"], train: Int[np.ndarray, "trained"]
) -> Float[np.ndarray, "2 N features"]:
    """Impute missing values, then standardize, both by the training rows only; return both."""
    raw = np.where(np.isnan(features), np.nanmedian(features[train], axis=0), features)
    return np.stack([raw, (raw - raw[train].mean(0)) / raw[train].std(0)])


def stack_folds(passengers: Passengers, splits: list[tuple[np.ndarray, np.ndarray]]) -> Fold:
    """Scale the passengers' features for every split, and stack the splits."""
    size = max(len(test) for _, test in splits)
    scaled = [
        Fold(
            raw_and_standardized(passengers.features, train).astype(np.float32),
            np.pad(test, (0, size - len(test))),
            np.pad(np.ones(len(test), np.float32), (0, size - len(test))),
        )
        for train, test in splits
    ]
    return Fold(*(np.stack(leaves) for leaves in zip(*scaled, strict=True)))
