"""Flax networks for comparing normalizations."""

from jbn import _flax as _flax

# isort: split

from jbn.models.cnn import CNN as CNN
from jbn.models.inception import BNInception as BNInception
from jbn.models.inception import Inception as Inception
from jbn.models.inception import InceptionNet as InceptionNet
from jbn.models.inception import SmallBNInception as SmallBNInception
from jbn.models.inception import SmallInception as SmallInception
from jbn.models.mlp import MLP as MLP
from jbn.models.recurrent import GRU as GRU
from jbn.models.recurrent import LSTM as LSTM
from jbn.models.recurrent import RNN as RNN
from jbn.models.resnet import ResNet as ResNet
from jbn.models.resnets import resnet18 as resnet18
from jbn.models.resnets import resnet20 as resnet20
from jbn.models.resnets import resnet34 as resnet34
from jbn.models.resnets import resnet50 as resnet50
from jbn.models.resnets import resnet56 as resnet56
from jbn.models.resnets import resnet101 as resnet101
from jbn.models.resnets import resnet110 as resnet110
from jbn.models.resnets import resnet152 as resnet152
