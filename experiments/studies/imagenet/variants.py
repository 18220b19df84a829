"""The variants of the paper's section 4.2.2, and which changes of section 4.2.1 each makes."""

import dataclasses
from typing import Any, Literal

Order = Literal["shuffled", "within_shards", "fixed"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a variant is trained, relative to the original network.

    - norm: whether there is batch normalization.
    - sigmoid: use sigmoid instead of ReLU.
    - rate, l2: factors of the learning rate and of the L2 weight.
    - decay: how many times the rate decays by the factor `rate_left` in a run.
    - dropout, lrn, distortion: whether to use dropout, local response normalization, and a
      photometric distortion as strong as the original's.
    - order: order of the examples; `fixed` is the same in every epoch.
    - dropped: share of features dropped, if not the original's.
    - init_scale: factor of the initial kernels.
    - per_activation: normalize the last two blocks per activation instead of per feature.
    """

    norm: bool = True
    sigmoid: bool = False
    rate: float = 1.0
    decay: float = 1.0
    l2: float = 1.0
    dropout: bool = True
    lrn: bool = True
    distortion: bool = True
    order: Order = "fixed"
    dropped: float | None = None
    init_scale: float = 1.0
    per_activation: bool = False


BASELINE = Variant()
ORIGINAL = dataclasses.replace(BASELINE, norm=False)
CHANGED = Variant(
    rate=5.0, decay=6.0, l2=0.2, dropout=False, lrn=False, distortion=False, order="within_shards"
)
VARIANTS = {
    "inception": ORIGINAL,
    "bn_baseline": BASELINE,
    "bn_x5": CHANGED,
    "bn_x30": dataclasses.replace(CHANGED, rate=30.0),
    "bn_x5_sigmoid": dataclasses.replace(CHANGED, sigmoid=True),
    "inception_x5": dataclasses.replace(ORIGINAL, rate=5.0),
    "sigmoid_without_bn": dataclasses.replace(ORIGINAL, sigmoid=True),
}
COMPARED = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")  # The rows of Fig. 3.


def change(variant: Variant, switches: dict[str, Any]) -> Variant:
    """Return the variant with some values replaced; those that are None are kept.

    Example:
      >>> from experiments.studies.imagenet.variants import VARIANTS, change
      >>> changed = change(VARIANTS["bn_x5"], {"dropout": True, "rate": None})
      >>> changed.dropout, changed.rate
      (True, 5.0)
    """
    given = {name: value for name, value in switches.items() if value is not None}
    return dataclasses.replace(variant, **given)
