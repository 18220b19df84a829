"""Data sets: loaded, checked and split."""
