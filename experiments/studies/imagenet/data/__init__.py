"""The input pipeline of `imagenet`: sources of images, shards of them, crops, and batches.

image_source  the interface of a source, and a source of arrays in memory
folder        a source of image files, one folder per class
shards        a source of files with many records each, and the format of a record
source        opens any of these by name or path
prepare       turns a folder into shards
crops         crops, mirroring and photometric distortion
order         the order of the examples in an epoch
unreadable    logs and counts unreadable images; too many are an error
loader        batches from several threads or processes, for one of several hosts
rate          images per second of the loader alone
photographs   generated JPEG files to measure with
"""
