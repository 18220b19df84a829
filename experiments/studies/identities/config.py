"""Options and presets of the study `identities`."""

from dataclasses import dataclass

from experiments.checks import check


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    draws: int = 20
    """random cases, each with its own seed"""
    batches: int = 20_000
    """batches over which a variance is averaged, in each draw"""
    fan: int = 400
    """fan-in of the weights whose variance is measured; fan-out is half of it"""

    def __post_init__(self) -> None:
        """Reject invalid options."""
        check(self, fan="[2, inf)")


BATCH_SIZES = (2, 5, 32, 60)  # At which the variance is measured.
PRESETS = {
    "smoke": Config(draws=3, batches=2_000, fan=200),
    "quick": Config(),
    "paper": Config(draws=50, batches=50_000),
}
