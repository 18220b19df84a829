"""Accuracy on validation images, with moving averages and with population statistics."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, UInt8

import jbn
from experiments import sampling
from experiments.studies.imagenet.config import Config
from experiments.studies.imagenet.data import loader
from experiments.studies.imagenet.data.image_source import Example, ImageSource
from experiments.studies.imagenet.network import BATCH, GROUP, forward_in_groups, inputs
from experiments.studies.imagenet.stream import place
from experiments.studies.imagenet.variants import Order, Variant
from experiments.tasks.data import WrongData
from experiments.training import hosts
from experiments.training.networks import Network
from jbn.models import InceptionNet

Predictor = Callable[[Array], Array]
LARGEST = 64  # Images per device in an evaluation batch; each crop counts.


class Sample:
    """A fixed random sample of the images of a source, in their order there."""

    def __init__(self, source: ImageSource, count: int):
        """Draw `count` images, or take all if there are fewer."""
        self.source, self.name = source, source.name
        order = sampling.rng(0, "watched").permutation(len(source))
        self.rows = np.sort(order[: min(count, len(source))])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Return an example of the source."""
        return self.source[int(self.rows[index])]

    def name_of(self, index: int) -> str:
        """Return the name of an example."""
        return self.source.name_of(int(self.rows[index]))


class Evaluator:
    """Evaluates networks of one model on the images of one source."""

    def __init__(
        self,
        config: Config,
        model: InceptionNet,
        source: ImageSource,
        mesh: Mesh,
        log: Path | None = None,
    ):
        """Create an evaluator, without compiling; `log` lists unreadable images."""
        self.config, self.model, self.source, self.log = config, model, source, log
        self.mesh, self.sharding = mesh, NamedSharding(mesh, BATCH)
        self.local = mesh.size // hosts.count()

        @jax.jit
        def probabilities(variables: Any, image: UInt8[Array, "N crops H W 3"]) -> Array:
            def of_crop(image: Array) -> Array:
                outputs: Any = model.apply(variables, inputs(image), training=False)
                return jax.nn.softmax(outputs)

            return jax.lax.map(of_crop, image.swapaxes(0, 1)).mean(0)

        self.probabilities = probabilities

    def watch(self, network: Network) -> dict[str, float]:
        """Evaluate with moving averages on the watched images, one crop of each."""
        watched = Sample(self.source, self.config.watched)
        (accuracy,) = self.accuracies([self.predictor(network.variables)], watched, 1)
        return accuracy

    def predictor(self, variables: Any) -> Predictor:
        """Make the function from images to class probabilities, averaged over their crops."""
        return functools.partial(self.probabilities, variables)

    def accuracies(
        self,
        members: Sequence[Predictor],
        source: Any,
        crops: Literal[1, 144],
        progress: Callable[[int], object] = lambda images: None,
    ) -> list[dict[str, float]]:
        """Evaluate members, and the mean of their class probabilities if there are several.

        Args:
          members: results of `predictor`, of this or other networks.
          source: the images.
          crops: crops of each image, 1 or 144.
          progress: called after each batch with the number of its images.

        Returns:
          For each member, then for their mean, the shares of images whose class is the likeliest
          (`top_1`) or among the five likeliest (`top_5`). A diverged network predicts NaN, which
          never counts as correct.

        Raises:
          WrongData: no readable image, or more unreadable ones than the config allows.
        """
        correct: Any = 0
        for image, label, mask in self._batches(source, crops):
            scores: list[Any] = [member(image) for member in members]
            if len(members) > 1:
                scores.append(sum(scores))
            correct += jnp.stack([count_correct(each, label, mask) for each in scores])
            progress(len(label))
        counts = np.asarray(correct, np.float64)
        if not counts.any():
            raise WrongData(
                f"Expected readable validation images in {source.name}, got none among "
                f"{len(source):,}. Fix them, or add others."
            )
        return [
            {"top_1": float(top_1 / count), "top_5": float(top_5 / count)}
            for top_1, top_5, count in counts
        ]

    def _batches(self, source: Any, crops: Literal[1, 144]) -> Iterator[tuple[Array, Array, Array]]:
        size = max(1, LARGEST // crops) * self.local
        batches = loader.evaluation_batches(
            source,
            batch_size=size,
            size=self.config.size,
            crops=crops,
            host=jax.process_index(),
            hosts=hosts.count(),
            workers=self.config.workers,
            log=self.log,
            limit=self.config.unreadable,
        )
        put = functools.partial(jax.make_array_from_process_local_data, self.sharding)
        for batch in batches:
            image = batch["image"] if crops > 1 else batch["image"][:, None]
            yield put(image), put(batch["label"]), put(batch["mask"])


@jax.jit
def count_correct(
    scores: Float[Array, "N classes"], label: Int[Array, "N"], mask: Bool[Array, "N"]
) -> Float[Array, "3"]:
    """Count the images that are correct by top 1, correct by top 5, and present."""
    own = jnp.take_along_axis(scores, label[:, None], 1)
    before = jnp.sum(scores > own, 1)  # All False for NaN, which is excluded below.
    right = [mask & (before < first) & ~jnp.isnan(own[:, 0]) for first in (1, 5)]
    return jnp.stack([jnp.sum(of, dtype=jnp.float32) for of in (*right, mask)])


def train_batches(
    config: Config,
    variant: Variant,
    train: ImageSource,
    *,
    seed: int,
    devices: int,
    log: Path | None,
    order: Order | None = None,
) -> loader.Batches:
    """Return this host's training batches, in the variant's order unless `order` is given."""
    return loader.train_batches(
        train,
        batch_size=config.batch_size * devices // hosts.count(),
        size=config.size,
        seed=seed,
        strength=config.strength[0 if variant.distortion else 1],
        lighting=config.lighting,
        min_area=config.min_area,
        order=order or variant.order,
        host=jax.process_index(),
        hosts=hosts.count(),
        workers=config.workers,
        log=log,
        limit=config.unreadable,
    )


def population(
    config: Config,
    variant: Variant,
    network: Network,
    train: ImageSource,
    seed: int,
    mesh: Mesh,
    log: Path | None = None,
) -> Network:
    """Return a network with the statistics of Algorithm 2, averaged anew over training batches.

    As in training, each group of a batch has its own statistics; they are averaged like those of
    separate batches.
    """
    if not network.batch_stats:
        return network
    forward = forward_in_groups(config, variant, len(train.classes), mesh.shape[GROUP])
    key = sampling.keys([seed], "dropout of the population")[0]

    def absorb(batch_stats: Any, batch: Any) -> Any:
        return forward(network.params, batch_stats, batch, key)[1]

    sharding = NamedSharding(mesh, BATCH)
    drawn = int(sampling.rng(seed, "population").integers(2**31))
    with train_batches(
        config, variant, train, seed=drawn, devices=mesh.size, log=log, order="shuffled"
    ) as batches:
        some = itertools.islice(batches, config.population_batches)
        placed = (place(batch, sharding) for batch in some)
        batch_stats = jbn.population(absorb, network.batch_stats, placed)
    return network._replace(batch_stats=batch_stats)
