"""All norms side by side: test accuracy by steps and seconds, three networks, three data sets.

An MLP, a plain CNN and ResNet-20 learn MNIST, Fashion-MNIST and CIFAR-10 without a norm, with batch
norm in float32 and in bfloat16, ghost batch norm, batch renorm, layer, group, instance and weight
norm, in batches of 8 and of 128, at an equal number of examples seen. Each takes its own best rate:
SGD with momentum .9 and a cosine decay to 0, whose first rate is chosen from one grid, common to
all, by accuracy on images that are neither trained nor tested on. Runs of a seed share initial
weights, images and batches. At test batch norm, ghost and renorm have their running averages, which
remember equally many examples at every batch size.

Left out, for there is nothing to compare: instance norm in an MLP, where each feature of an example
is one value; ghost batches larger than half the batch, which are no parts of it. Layer norm is that
of Flax, over the features at each position. Weight norm starts from Flax's kernels of length one,
not from data.

All images have one shape, and so one program serves all data sets: digits get a margin, gray levels
stand for all three colors. Seconds are steps times the median time of a step, measured when nothing
is left to compile, all norms by turns. `quick` is shrunk to be measured on two cores: images of
8x8, ResNet-20 of half its width, a CNN of two stages, one pass over 10,240 images, rates chosen by
the first seed alone.

Source: Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2; Ba, Kiros, Hinton, "Layer
Normalization", 2016; Salimans, Kingma, "Weight Normalization", 2016; Ioffe, "Batch
Renormalization", 2017; Gitman, Ginsburg, "Comparison of batch normalization and weight
normalization", 2017; Wu, He, "Group Normalization", 2018; Kalamkar et al., "A study of BFLOAT16",
2019; Summers, Dinneen, "Four things everyone should know to improve batch normalization", 2020, for
ghost batches.

Command: python -m experiments compare --preset quick

Expected: at batches of 128 BN ends above no norm and needs fewer steps; at batches of 8 group norm
is as good as BN; layer and weight norm are worse in the CNNs; bfloat16 changes nothing.

Time: smoke takes half a minute, most of it to compile; that of quick, measured, is in
docs/results/LEDGER.md. `full` is for an accelerator: 30 epochs of the usual widths.
"""
