"""Run a network that `finetune.py` exported: jax and NumPy are all that this needs.

python predict.py model.jax images.npy logits.npy
"""

import sys
from pathlib import Path

import jax
import numpy as np

model, images, logits = map(Path, sys.argv[1:])
network = jax.export.deserialize(bytearray(model.read_bytes()))
np.save(logits, network.call(np.load(images)))
