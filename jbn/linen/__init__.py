"""Flax linen layers: `BatchNorm`, its variants, and the norms it is compared with."""

from jbn import _flax as _flax

# isort: split

from jbn.linen._batch_norm import BatchNorm as BatchNorm
from jbn.linen._batch_norm import population as population
from jbn.linen._norms import BatchRenorm as BatchRenorm
from jbn.linen._norms import GhostBatchNorm as GhostBatchNorm
from jbn.linen._norms import GroupNorm as GroupNorm
from jbn.linen._norms import InstanceNorm as InstanceNorm
from jbn.linen._norms import LayerNorm as LayerNorm
