"""Benchmarks against named peers in the same run; not part of the installed package, run from the checkout."""
