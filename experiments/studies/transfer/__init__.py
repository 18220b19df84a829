"""Transfer: a network pretrained on digits, adapted to clothes, and what to do about statistics.

A network of three hidden layers with ReLU and BN is trained on MNIST, then moved to Fashion-MNIST
with a new last layer. Either the whole network is fine-tuned and compared with one trained from
scratch, in a race to a goal and to the end. Or only the new last layer is trained: with the
statistics of MNIST, with statistics re-estimated on Fashion-MNIST, or with the latter while gamma
and beta are trained as well.

Each of these is run at its best rate of one grid, chosen on held-out images. With the same seed,
all start from the same last layer and see the same batches. If source and target are the same data
set, as in the smoke preset, the target's pixels are permuted, in the same way for all images.

Source: a study note; Ioffe, Szegedy, "Batch Normalization", 2015, section 5, on adapting a network
to new data by its statistics alone; Li, Wang, Shi, Liu, Hou, "Revisiting Batch Normalization For
Practical Domain Adaptation", 2016.

Command: python -m experiments transfer --preset quick

Expected: if only a new last layer is trained, re-estimated statistics gain a point, and gamma and
beta four more. Fine-tuned as a whole, the pretrained network reaches the goal no sooner than one
from scratch: digits teach three dense layers little about clothes.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
