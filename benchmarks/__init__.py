"""Benchmarks: one command each, from the repository's root; results as JSON beside the device."""
