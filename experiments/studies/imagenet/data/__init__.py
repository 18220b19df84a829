"""The input pipeline of `imagenet`: sources of images, shards of them, crops, and batches.

image_source  what a source is; arrays in memory as one
folder        a source from image files, a folder a class
shards        a source from files of many records each, and what such a record is
source        opens one of these by its name or path
prepare       makes shards of a folder
crops         windows of an image, mirrors, photometric distortion
order         the order in which an epoch meets the examples
unreadable    images that cannot be read: named, counted, and too many of them
loader        batches, from several threads or processes, for one of several hosts
rate          images per second of the loader alone
"""
