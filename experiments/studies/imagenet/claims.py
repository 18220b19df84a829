"""Claims of the study `imagenet`: none, as those of section 4.2 are measured by `inception`."""

from experiments.stats.rules import Claim

CLAIMS: tuple[Claim, ...] = ()
