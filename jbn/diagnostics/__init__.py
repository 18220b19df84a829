"""Pure functions on pytrees that show what batch normalization does in a network, and a table.

Layers are named by their path in the pytree, such as "block_0/norm". Statistics may be
`BatchNormState` or dicts with `mean` and `var`, as in a Flax `batch_stats` collection.
"""

from jbn.diagnostics._activations import dead_units as dead_units
from jbn.diagnostics._activations import percentiles as percentiles
from jbn.diagnostics._activations import saturation as saturation
from jbn.diagnostics._activations import slopes as slopes
from jbn.diagnostics._drift import Drift as Drift
from jbn.diagnostics._drift import drift as drift
from jbn.diagnostics._gap import Gap as Gap
from jbn.diagnostics._gap import effective_batches as effective_batches
from jbn.diagnostics._gap import initial_weight as initial_weight
from jbn.diagnostics._gap import train_eval_gap as train_eval_gap
from jbn.diagnostics._gradients import GradientShift as GradientShift
from jbn.diagnostics._gradients import Landscape as Landscape
from jbn.diagnostics._gradients import gradient_norms as gradient_norms
from jbn.diagnostics._gradients import gradient_shift as gradient_shift
from jbn.diagnostics._gradients import landscape as landscape
from jbn.diagnostics._statistics import Statistics as Statistics
from jbn.diagnostics._statistics import statistics as statistics
from jbn.diagnostics._summary import summarize as summarize
