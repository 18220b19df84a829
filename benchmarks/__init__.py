"""Benchmarks of jbn against its peers: `python -m benchmarks.op`, `python -m benchmarks.fig1`."""
