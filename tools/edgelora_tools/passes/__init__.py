"""Transforms of a finished graph, one a file; each keeps the graph's outputs."""
