"""The comparisons behind the claims of the study `compare`, paired by seed, and its table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.plotting import counted
from experiments.stats import estimates, selection
from experiments.stats.estimates import Estimate
from experiments.studies.compare.config import Config
from experiments.studies.compare.figures import DATASETS, STYLES, name_of
from experiments.studies.compare.models import BFLOAT16

Key = tuple[str, str, int]  # Network, norm, batch size.


class Results(NamedTuple):
    """Results of all networks.

    - tests: test accuracies, (seeds, evaluations), by data set, then by `Key`.
    - rates: the best learning rates, by the same keys.
    - seconds: median seconds per step over rounds.
    """

    tests: Mapping[str, Mapping[Key, Float[np.ndarray, "seeds evaluations"]]]
    rates: Mapping[str, Mapping[Key, float]]
    seconds: Mapping[Key, float]

    def has(self, *keys: Key) -> bool:
        """Return whether all of these were trained."""
        return set(keys) <= set(self.seconds)

    def gain(self, ours: Key, theirs: Key) -> Float[np.ndarray, "seeds"]:
        """Return the difference of final test accuracies, averaged over the data sets."""
        return np.mean(
            [
                accuracies[ours][:, -1] - accuracies[theirs][:, -1]
                for accuracies in self.tests.values()
            ],
            0,
        )

    def share_of_steps(self, ours: Key, theirs: Key) -> Float[np.ndarray, "seeds"]:
        """Return the share of all steps until `ours` reaches the final accuracy of `theirs`.

        It is 1 if that is never reached. Data sets are combined by their geometric mean.
        """
        shares = []
        for accuracies in self.tests.values():
            count = accuracies[ours].shape[1]
            steps = np.arange(1, count + 1)
            shares.append(
                selection.steps_to(accuracies[theirs][:, -1], accuracies[ours], steps) / count
            )
        return np.exp(np.mean(np.log(shares), axis=0))


def report(config: Config, results: Results, tell: Callable[[str, Estimate], None]) -> None:
    """Report all final accuracies, and the differences that the claims are about.

    Args:
      tell: called with a name and an estimate.
    """
    for dataset, accuracies in results.tests.items():
        for (model, norm, size), accuracy in accuracies.items():
            last = estimates.mean(accuracy[:, -1])
            tell(f"accuracy_{model}_{norm}_{size}_{dataset}", last)
    small, large = config.batch_sizes[0], config.batch_sizes[-1]
    for model in config.models:
        batch, none, group = ((model, norm, large) for norm in ("batch", "none", "group"))
        if results.has(batch, none):
            tell(f"batch_gain_{model}", estimates.mean(results.gain(batch, none)))
            share = results.share_of_steps(batch, none)
            slowness = results.seconds[batch] / results.seconds[none]
            tell(f"batch_steps_{model}", estimates.ratio(share))
            tell(f"batch_seconds_{model}", estimates.ratio(share * slowness))
        for norm in (BFLOAT16, "ghost", "layer", "weight"):
            if results.has(batch, (model, norm, large)):
                gain = results.gain((model, norm, large), batch)
                tell(f"{norm}_gain_{model}", estimates.mean(gain))
        few = (model, "group", small), (model, "batch", small)
        if results.has(*few, group, batch):
            gain, gain_of_large = results.gain(*few), results.gain(group, batch)
            tell(f"group_gain_small_{model}", estimates.mean(gain))
            tell(f"group_gain_excess_{model}", estimates.paired(gain, gain_of_large))


def table(config: Config, results: Results) -> str:
    """Format final accuracies, rates and times as text: a row per network and norm."""

    def line(cells: Sequence[str]) -> str:
        return f"{cells[0]:32}" + "".join(f"{cell:>24}" for cell in cells[1:])

    def cell(dataset: str, key: Key) -> str:
        estimate = estimates.mean(results.tests[dataset][key][:, -1])
        half = (estimate.high - estimate.low) / 2
        accuracy = f"{estimate.value:.3f}" + f" ± {half:.3f}" * (estimate.runs > 1)
        return f"{accuracy} at {results.rates[dataset][key]:.3g}"

    def rows(keys: Iterable[Key]) -> Iterable[str]:
        for key in keys:
            cells = [cell(dataset, key) for dataset in results.tests]
            milliseconds = f"{1000 * results.seconds[key]:.2f}"
            yield line([f"  {STYLES[key[1]].label}", *cells, milliseconds])

    lines = []
    for size in config.batch_sizes[::-1]:
        for model in config.models:
            names = [DATASETS[dataset].label for dataset in results.tests]
            lines.append(
                line([f"{name_of(config, model)}, batches of {size}", *names, "ms a step"])
            )
            lines += rows(key for key in results.seconds if (key[0], key[2]) == (model, size))
            lines.append("")
    ends = "half the width of its 95 % interval"
    about = f"test accuracy, mean ± {ends}, {counted(config.seeds, 'seed')}, at the best first rate"
    return "\n".join([*lines, about])
