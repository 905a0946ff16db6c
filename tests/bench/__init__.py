"""Benchmarks: ratios within one run, each beside the simplest thing that does the same."""
