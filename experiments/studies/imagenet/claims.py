"""Claims that the study `imagenet` measures: none, for those of section 4.2 rest on `inception`."""

from experiments.stats.rules import Claim

CLAIMS: tuple[Claim, ...] = ()
