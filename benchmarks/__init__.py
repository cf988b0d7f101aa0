"""Benchmarks: ours and its rivals in turn, on the same data, each measurement in a fresh process."""
