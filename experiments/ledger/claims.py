"""The registry of claims, each with the experiment that measures it and the rule for its verdict.

The rules, in the studies' claims.py, were written before the measurements; `git log -S` of a bound
shows when and why it changed. Sources: five study notes on batch normalization, "000" to "004",
"paper" for Ioffe & Szegedy, 2015, "later" for later findings of others. Many claims repeat the
paper; some are known to be false, and are listed as their sources make them.
"""

from experiments.stats.rules import Claim
from experiments.studies.batch_size import claims as batch_size
from experiments.studies.batches import claims as batches
from experiments.studies.compare import claims as compare
from experiments.studies.gradients import claims as gradients
from experiments.studies.identities import claims as identities
from experiments.studies.inception import claims as inception
from experiments.studies.inference import claims as inference
from experiments.studies.learning_rate import claims as learning_rate
from experiments.studies.mnist_mlp import claims as mnist_mlp
from experiments.studies.placement import claims as placement
from experiments.studies.recurrent import claims as recurrent
from experiments.studies.regularization import claims as regularization
from experiments.studies.saturation import claims as saturation
from experiments.studies.shift import claims as shift
from experiments.studies.titanic import claims as titanic
from experiments.studies.transfer import claims as transfer
from experiments.studies.whitening import claims as whitening

CLAIMS: tuple[Claim, ...] = (
    *mnist_mlp.CLAIMS,
    *identities.CLAIMS,
    *gradients.CLAIMS,
    *recurrent.CLAIMS,
    *whitening.CLAIMS,
    *titanic.CLAIMS,
    *learning_rate.CLAIMS,
    *regularization.CLAIMS,
    *batch_size.CLAIMS,
    *inference.CLAIMS,
    *shift.CLAIMS,
    *batches.CLAIMS,
    *saturation.CLAIMS,
    *placement.CLAIMS,
    *transfer.CLAIMS,
    *inception.CLAIMS,
    *compare.CLAIMS,
)
