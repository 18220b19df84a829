"""Inception's seven changes: a miniature of the paper's section 4.2, and an ablation of each.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2, Fig. 2 and 3. The paper trains on
ImageNet, for 31 million steps on many machines; here, three blocks of Inception are trained on
CIFAR-10, with images of 16x16 and some 1,000 steps. The original has dropout, local response
normalization (LRN), L2, strong photometric distortion, the same batches in every epoch, and a slow
decay of its rate. BN-Baseline only adds BN; BN-x5, BN-x30 and the sigmoids with BN make all changes
of section 4.2.1, at 5, 30 and 5 times the original's rate. All runs with the same seed start from
the same weights and see the same first epoch. As in the paper, accuracy is the best over all
evaluations on test images, so for every variant alike the step is chosen on the images reported.

Command: python -m experiments inception --preset quick

Expected from the paper: steps to the original's best accuracy .43 (BN-Baseline), .068 (BN-x5) and
.087 (BN-x30) of the original's; best accuracy half a point, .8 and 2.6 points above it; sigmoids
train only with BN. A miniature need not agree on the effect of each change: a small network hardly
overfits in a few epochs.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
