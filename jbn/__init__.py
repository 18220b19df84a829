"""Batch normalization for JAX as pure functions over explicit state."""

from jbn.batch_norm import batch_norm as batch_norm
from jbn.batch_norm import init as init
from jbn.batch_norm import normalize as normalize
from jbn.fold import fold as fold
from jbn.moments import merge_moments as merge_moments
from jbn.moments import moments as moments
from jbn.running import cumulative as cumulative
from jbn.running import debiased as debiased
from jbn.running import moving_average as moving_average
from jbn.running import population as population
from jbn.running import update as update
from jbn.synchronize import is_synchronized as is_synchronized
from jbn.synchronize import synchronize as synchronize
from jbn.types import BatchNormParams as BatchNormParams
from jbn.types import BatchNormState as BatchNormState
from jbn.types import Moments as Moments
