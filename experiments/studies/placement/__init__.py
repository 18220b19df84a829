"""Placement: BN before or after the nonlinearity, the bias before it, and what it makes of LRN.

Three-layer networks on binary images: activation(BN(Wu)) against BN(activation(Wu + b)), for three
nonlinearities; then the former with a bias kept before BN. A small convolutional network on gray
images of half the size: without and with BN, without and with local response normalization after
every ReLU, by AlexNet's constants, which are meant for gray levels of 0 to 255; so the pixels are
those, less their mean, and the optimizer is Adam, whose steps do not depend on that scale.

Every network trains at the rates of one grid, and is tested at the best of them, chosen on images
neither trained nor tested on. All have the same initial weights and batches, seed by seed; at test
they use population statistics.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.2 and 4.2.1. Krizhevsky, Sutskever,
Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 3.3 (LRN).

Command: python -m experiments placement --preset quick

Expected: in networks as small as these the order matters little for ReLU and tanh, and sigmoids are
better off with BN after them, by two points; the bias matters nothing; LRN gains several points
without BN, and with it none.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
