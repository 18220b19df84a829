"""Inception's seven changes: a miniature of the paper's section 4.2, and each change left out.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2, Fig. 2 and 3. There on ImageNet,
31 million steps on many machines; here three blocks of Inception on CIFAR-10, with images of 16x16
and some 1,000 steps. The original has dropout, local response normalization (LRN), L2, strong
photometric distortion, the same batches in every epoch, and a slow decay of its rate. BN-Baseline
is the original with BN alone; BN-x5, BN-x30 and the sigmoids with BN take all changes of section
4.2.1, at 5, 30 and 5 times the original's rate. All runs of a seed begin with the same weights and
see the same first epoch. Accuracy is the paper's: the best that a network shows on test images, of
all that it is evaluated at; the step it is chosen at is so chosen on what is reported, for every
variant alike.

Command: python -m experiments inception --preset quick

Expected, of the paper: steps to the original's best accuracy .43 (BN-Baseline), .068 (BN-x5) and
.087 (BN-x30) of the original's; best accuracy half a point, .8 and 2.6 points above it; sigmoids
train with BN alone. A miniature need not agree on what each of the seven changes gives: there is
little to overfit, and no time to, in a few epochs of a small network.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
