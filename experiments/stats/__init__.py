"""Estimates with intervals, and the rules by which they decide a claim."""
