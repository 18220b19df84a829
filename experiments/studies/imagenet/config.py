"""Options and presets of the study `imagenet`."""

from dataclasses import dataclass
from typing import Any, Literal

from experiments.checks import check, check_divides
from experiments.studies.imagenet.variants import COMPARED, VARIANTS, Order, Variant, change

MANY_DEVICES = True
WAYS = ("shard_map", "jit")
DEFAULT_PRESET = "cifar"
Name = Literal[
    "inception",
    "bn_baseline",
    "bn_x5",
    "bn_x30",
    "bn_x5_sigmoid",
    "inception_x5",
    "sigmoid_without_bn",
    "all",
]
SWITCHES = ("rate", "decay", "l2", "dropout", "lrn", "distortion", "order", "dropped",
            "init_scale", "per_activation")  # fmt: skip


def group_size(statistics: str, devices: int) -> int:
    """Return the number of devices that share batch statistics, from the option `statistics`.

    Raises:
      ValueError: a group that does not divide the number of devices.

    Example:
      >>> from experiments.studies.imagenet.config import group_size
      >>> [group_size(statistics, 8) for statistics in ("device", "4", "global")]
      [1, 4, 8]
    """
    size = {"device": 1, "global": devices}.get(statistics) or int(statistics)
    if devices % size:
        raise ValueError(
            f"Expected --statistics to be a number of devices that divides {devices}, got {size}. "
            f"Pass --devices with a multiple of {size}, or another --statistics."
        )
    return size


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    variant: Name = "all"
    """a row of Fig. 3, or all five of them"""
    dataset: str = "cifar10"
    """cifar10; digits, the small images in scikit-learn; folder, the images or shards in
    --data-dir"""
    seeds: int = 1
    """number of seeds for weights, batches, distortion and dropout"""
    seed: int = 0
    """the first seed"""
    stem: Literal["full", "separable", "small"] = "small"
    """full and separable are for images of 224x224; see `jbn.models.InceptionNet`"""
    blocks: int = 10
    """number of Fig. 5's 10 blocks, from the first, in the network"""
    width: int = 16
    """divisor of every number of features of Fig. 5"""
    size: int = 32
    """side of an image in pixels"""
    batch_size: int = 32
    """images per device in a batch"""
    steps: int = 6_000
    """training steps"""
    evaluate_every: int = 250
    """steps between evaluations"""
    watched: int = 2_000
    """validation images for evaluations during training; at the end, all are used"""
    learning_rate: float = 0.01
    """learning rate of the original; variants have multiples. Of .003, .01, .03 and .1, the one
    with the best accuracy of the original (.284, .311, .236, .111) after 1,000 steps with another
    seed"""
    scale_rate: bool = False
    """multiply the rate by the number of devices, like the total batch size"""
    momentum: float = 0.9
    """momentum of SGD"""
    rate_left: float = 0.5
    """share of the original's rate that is left at the end of its exponential decay; the changed
    variants decay six times as fast, to rate_left**6"""
    weight_decay: float = 5e-4
    """L2 of the original: weight of half the sum of squares of the kernels"""
    drop: float = 0.4
    """share of the last features that the original drops"""
    lrn_alpha: float = 0.067
    """alpha of the original's LRN: 2e-5, meant for pixels of standard deviation 58, times 58**2"""
    strength: tuple[float, float] = (0.4, 0.1)
    """strength of photometric distortion, original and changed"""
    lighting: float = 0.0
    """lighting noise at a strength of 1; .1 is usual for ImageNet"""
    min_area: float = 0.5
    """smallest share of an image in a random crop; the paper's is .08"""
    rate: float | None = None
    """change of a variant: factor of the learning rate"""
    decay: float | None = None
    """change: factor by which the rate decays faster"""
    l2: float | None = None
    """change: factor of the L2 weight"""
    dropout: bool | None = None
    """change: use dropout or not"""
    lrn: bool | None = None
    """change: use local response normalization or not"""
    distortion: bool | None = None
    """change: distort as strongly as the original, or weakly"""
    order: Order | None = None
    """change: examples newly shuffled, shuffled within shards, or in the same order every epoch"""
    dropped: float | None = None
    """for ensembles: share of features dropped, such as .05"""
    init_scale: float | None = None
    """for ensembles: factor of the initial kernels, such as 1.4"""
    per_activation: bool | None = None
    """for ensembles: BN of the last two blocks per activation instead of per feature"""
    statistics: str = "device"
    """devices that share batch statistics: device, each its own, as the paper's workers; global,
    all; or the number of devices in a group"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the computation; weights and statistics stay float32"""
    remat: bool = False
    """keep only the outputs of blocks, and recompute the rest for the gradient"""
    workers: int = 0
    """processes that read images on each host; 0 reads in threads"""
    unreadable: int = 100
    """number of unreadable images that are skipped before the run ends"""
    population_batches: int = 100
    """training batches over which the final statistics are averaged"""
    crops: Literal[1, 144] = 1
    """crops of each validation image at the end"""
    tensorboard: bool = False
    """write event files for TensorBoard as well"""

    def __post_init__(self) -> None:
        """Refuse options that cannot be trained with."""
        check(
            self,
            batch_size="[2, inf)",
            blocks="[1, 10]",
            width="[1, 32]",  # The first block has a layer of 32 features.
            seed="[0, inf)",
            momentum="[0, 1)",
            rate_left="(0, 1]",
            weight_decay="[0, inf)",
            drop="[0, 1)",
            dropped="[0, 1)",
            l2="[0, inf)",
            decay="[0, inf)",
            strength="[0, 1]",
            lighting="[0, inf)",
            min_area="(0, 1]",
            workers="[0, inf)",
            unreadable="[0, inf)",
        )
        check_divides("evaluate_every", "steps", self)
        if self.dataset not in ("cifar10", "digits", "folder"):
            raise ValueError(
                f"Expected cifar10, digits or folder, got {self.dataset!r}. For your own images, "
                "pass --dataset folder --data-dir FOLDER."
            )
        if self.statistics not in ("device", "global") and not (
            self.statistics.isdecimal() and int(self.statistics)
        ):
            raise ValueError(
                "Expected `statistics` to be device, global or a number of devices, got "
                f"{self.statistics!r}."
            )

        if self.dropped and self.dropout is False:
            raise ValueError(
                f"Expected `dropped` only with dropout, got {self.dropped} and `dropout` False. "
                "Pass only one of the two."
            )
        lacking = [name for name, of in self.variants().items() if not of.norm]
        if self.per_activation and lacking:
            raise ValueError(
                f"Expected `per_activation` with a variant that has BN, got {lacking[0]}. Choose "
                "another --variant, or omit --per-activation."
            )

    def check_devices(self, count: int) -> None:
        """Refuse groups that do not divide the number of devices."""
        group_size(self.statistics, count)

    def reads_files(self) -> bool:
        """Return whether --data-dir is used."""
        return self.dataset != "digits"

    def variants(self) -> dict[str, Variant]:
        """Return the variants to train by name, with the changes applied."""
        names = COMPARED if self.variant == "all" else (self.variant,)
        switches: dict[str, Any] = {name: getattr(self, name) for name in SWITCHES}
        return {name: change(VARIANTS[name], switches) for name in names}


PRESETS = {
    "smoke": Config(
        dataset="digits", blocks=2, width=32, size=16, batch_size=8, steps=6, evaluate_every=3,
        watched=32, population_batches=2,
    ),
    "cifar": Config(),
    "imagenet": Config(
        dataset="folder", stem="full", width=1, size=224, steps=31_000_000, evaluate_every=10_000,
        watched=10_000, learning_rate=0.0015, rate_left=0.02, weight_decay=1e-4,
        strength=(1.0, 0.25), lighting=0.1, min_area=0.08, dtype="bfloat16", workers=8,
    ),
}  # fmt: skip
