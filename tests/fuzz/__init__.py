"""Hostile input: `python -m tests.fuzz adapters|bundles|data|store --seconds 600`."""
