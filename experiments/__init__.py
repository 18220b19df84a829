"""Experiments: one file each, run by `python -m experiments NAME`."""
