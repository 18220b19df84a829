"""Convert batch norm layers from and to PyTorch, Keras, Flax, Haiku and Equinox.

Each `from_...` returns `(params, state, options)`: the trees that `jbn.batch_norm` takes and the
hyperparameters, in jbn's convention, with which it behaves as the framework's layer does:

    params, state, options = jbn.convert.from_torch(model, "bn1")
    y, state = jbn.batch_norm(x, params, state, training=True, **options._asdict())

Each `to_...` returns the framework's own containers. Whatever a format does not hold is lost: Keras
and Flax have no count, so it comes back as 0, or as the `count` you pass; Haiku and Equinox store
sums that are debiased when read, which come back with rounding errors. Everything else makes the
round trip bit for bit.

Whole networks, `jbn.models.ResNet` and `BNInception`, are converted by the layer names of public
weights: `network_from_torch` and back with `network_to_torch`, `network_from_keras`,
`network_from_flax` and `network_from_haiku`.

A framework is imported only when a function that creates its objects is called.
"""

from jbn.convert.common import ConversionError as ConversionError
from jbn.convert.common import Converted as Converted
from jbn.convert.common import Options as Options
from jbn.convert.common import convert_layers as convert_layers
from jbn.convert.equinox import from_equinox as from_equinox
from jbn.convert.equinox import to_equinox as to_equinox
from jbn.convert.flax import from_linen as from_linen
from jbn.convert.flax import from_nnx as from_nnx
from jbn.convert.flax import to_linen as to_linen
from jbn.convert.flax import to_nnx as to_nnx
from jbn.convert.flax_network import network_from_flax as network_from_flax
from jbn.convert.flax_network import network_from_haiku as network_from_haiku
from jbn.convert.haiku import from_haiku as from_haiku
from jbn.convert.haiku import to_haiku as to_haiku
from jbn.convert.keras import from_keras as from_keras
from jbn.convert.keras import to_keras as to_keras
from jbn.convert.keras_network import network_from_keras as network_from_keras
from jbn.convert.options import Debiased as Debiased
from jbn.convert.options import FirstBatch as FirstBatch
from jbn.convert.options import framework_kwargs as framework_kwargs
from jbn.convert.torch import from_torch as from_torch
from jbn.convert.torch import from_torch_kernel as from_torch_kernel
from jbn.convert.torch import to_torch as to_torch
from jbn.convert.torch import to_torch_kernel as to_torch_kernel
from jbn.convert.torch_network import network_from_torch as network_from_torch
from jbn.convert.torch_network import network_to_torch as network_to_torch
