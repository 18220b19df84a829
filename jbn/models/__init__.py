"""Models in Flax linen: init and apply over explicit variables, the library's own shape."""

from jbn.models.mlp import MLP as MLP
