"""Estimates with intervals, selection of settings, and the rules that decide a claim."""
