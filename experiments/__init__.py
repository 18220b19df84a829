"""Experiments, each run with `python -m experiments NAME`."""
