"""Estimates with intervals, the choice of settings, and the rules that decide a claim."""
