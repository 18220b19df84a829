"""Transfer: a network pretrained on digits, adapted to clothes, and what to do about statistics.

Three layers of ReLU and BN, trained on MNIST, then moved to Fashion-MNIST with a new last layer.
All of it is trained on, beside a network from scratch: in a race to a goal, and to the end. Or the
new last layer is trained alone: with the statistics of MNIST, with those of Fashion-MNIST,
estimated again, or with these and gamma and beta trained as well.

Every way is taken at the rate of one grid that is best on images neither trained nor tested on. All
begin with the same last layer, and see the same batches, seed by seed. Where source and target are
the same data set, as in the smoke preset, the target's pixels are permuted, all images alike.

Source: a study note; Ioffe, Szegedy, "Batch Normalization", 2015, section 5, on adapting a network
to new data by its statistics alone; Li, Wang, Shi, Liu, Hou, "Revisiting Batch Normalization For
Practical Domain Adaptation", 2016.

Command: python -m experiments transfer --preset quick

Expected: for a new last layer alone, statistics estimated again are worth a point, gamma and beta
four more. Trained on whole, the pretrained network is no sooner at the goal than one from scratch:
digits teach three dense layers little about clothes.

Time: smoke takes seconds; that of quick, measured, is in docs/results/LEDGER.md.
"""
