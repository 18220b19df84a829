"""The variants of the paper's section 4.2.2, and the changes of 4.2.1 that each of them takes."""

import dataclasses
from typing import Any, Literal

Order = Literal["shuffled", "within_shards", "fixed"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a variant trains with; numbers are factors of what the original has.

    - norm: batch normalization, or none.
    - sigmoid: instead of ReLU.
    - rate, decay, l2: the learning rate, how often it falls to `rate_left` in a run, the L2 weight.
    - dropout, lrn, distortion: whether there is dropout, local response normalization, and as
      strong a photometric distortion as the original's.
    - order: of the examples; `fixed` has the same batches in every epoch.
    - dropped: share of the features that are dropped, where it is not the original's.
    - init_scale: factor of the initial convolution kernels.
    - per_activation: batch normalization of the last two blocks is per activation.
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
COMPARED = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")  # Those of Fig. 3.


def change(variant: Variant, switches: dict[str, Any]) -> Variant:
    """Set what is given, and leave what is None as the variant has it.

    Example:
      >>> from experiments.studies.imagenet.variants import VARIANTS, change
      >>> changed = change(VARIANTS["bn_x5"], {"dropout": True, "rate": None})
      >>> changed.dropout, changed.rate
      (True, 5.0)
    """
    given = {name: value for name, value in switches.items() if value is not None}
    return dataclasses.replace(variant, **given)
