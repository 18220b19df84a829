"""Placement: BN before or after the nonlinearity, the bias before it, and whether it replaces LRN.

Three-layer networks on binary images: activation(BN(Wu)) against BN(activation(Wu + b)), for three
nonlinearities; then the former with a bias kept before BN. A small convolutional network on gray
images of half the size: with and without BN, and with and without local response normalization
after every ReLU. LRN has AlexNet's constants, which are meant for gray levels of 0 to 255, so the
pixels are on that scale with the mean subtracted, and the optimizer is Adam, whose steps do not
depend on it.

Every network is trained at the rates of one grid, and tested at the best of them, chosen on
held-out images. With the same seed, all have the same initial weights and batches; at test time
they use population statistics.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.2 and 4.2.1. Krizhevsky, Sutskever,
Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 3.3 (LRN).

Command: python -m experiments placement --preset quick

Expected: in networks as small as these, the order matters little for ReLU and tanh, and sigmoids
are two points better with BN after them; the bias makes no difference; LRN gains several points
without BN and none with it.

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
