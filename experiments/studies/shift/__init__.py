"""Internal covariate shift by two measures, the landscape of the loss, and what adds up with depth.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, sections 1, 2 and 4.1; Santurkar, Tsipras,
Ilyas, Madry, "How Does Batch Normalization Help Optimization?", 2018, sections 2 and 3.

Shift: Fig. 1's network trains without BN, with it, and with BN followed by noise whose distribution
changes at every step; the same weights, batches and learning rate. While it trains, the medians of
the last sigmoids' inputs drift (Ioffe's measure), each layer's gradient changes when the layers
before it have taken their step (Santurkar's), and the loss varies along the gradient.
Batches: without BN, the same small set of examples in mini-batches and all at once.
Depth: accuracy after equal steps of deeper and deeper networks, each at its best rate.
Forward: untrained networks of 20 layers, of which something is changed.

Command: python -m experiments shift --preset quick

Expected: from step 1,000 on the medians drift by .6 without BN and .2 with; more with noise, which
costs little accuracy. By Santurkar's measure BN need not shift less. Sigmoids without BN do not
train at 20 layers. Outliers multiply the deviation by about 1.4 a layer, and weights 1.5 times He's
by about 1.5, without BN, and by 1 with it. A change of the first weights hardly grows through ReLU
without BN, and with BN by about (pi / (pi - 1))^.5 = 1.21 a layer (Yang et al., 2019).

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
