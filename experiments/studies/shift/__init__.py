"""Internal covariate shift by two measures, the loss landscape, and what accumulates with depth.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 1, 2 and 4.1; Santurkar, Tsipras,
Ilyas, Madry, "How Does Batch Normalization Help Optimization?", 2018, sections 2 and 3.

Shift: Fig. 1's network is trained without BN, with BN, and with BN followed by noise whose
distribution changes at every step, from the same weights, with the same batches and learning rate.
Measured are the drift of the medians of the last sigmoids' inputs (Ioffe's measure), the change of
each layer's gradient after the layers before it have taken their step (Santurkar's), and the
variation of the loss along the gradient.
Batches: without BN, the same small set of examples in mini-batches and as one batch.
Depth: accuracy after equal steps of networks of increasing depth, each at its best rate.
Forward: untrained networks of 20 layers, before and after a change of inputs or weights.

Command: python -m experiments shift --preset quick

Expected: from step 1,000 on, the medians drift by .6 without BN and by .2 with it, and more with
noise, which costs little accuracy. By Santurkar's measure, BN need not reduce the shift. Sigmoids
without BN do not train at 20 layers. Without BN, outliers multiply the standard deviation by about
1.4 per layer, and weights of 1.5 times He's by about 1.5; with BN, both by 1. With ReLU, a change
of the first weights hardly grows without BN; with BN it grows by about (pi / (pi - 1))^.5 = 1.21
per layer (Yang et al., 2019).

Time: smoke takes seconds; the measured time of quick is in docs/results/LEDGER.md.
"""
