"""Run a network exported by `finetune.py`, with nothing but jax and NumPy.

python predict.py model.jax images.npy logits.npy
"""

import sys
from pathlib import Path

import jax
import numpy as np

model, images, logits = map(Path, sys.argv[1:])
network = jax.export.deserialize(bytearray(model.read_bytes()))
np.save(logits, network.call(np.load(images)))
