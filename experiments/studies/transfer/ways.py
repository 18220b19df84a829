"""Ways to adapt a network to another data set."""

from typing import Literal, NamedTuple


class Way(NamedTuple):
    """A way to adapt: where it starts, and what is trained besides the last layer."""

    start: Literal["scratch", "pretrained", "estimated again"]
    weights: bool
    scale_bias: bool
    label: str


WAYS = {
    "scratch": Way("scratch", True, True, "from scratch"),
    "pretrained": Way("pretrained", True, True, "pretrained, all trained on"),
    "frozen": Way("pretrained", False, False, "last layer; statistics frozen"),
    "reestimated": Way("estimated again", False, False, "last layer; statistics estimated again"),
    "scale_bias": Way("estimated again", False, True, "the same, gamma and beta trained"),
}
