"""Simulated event traffic for the demo, the tests and the benchmarks."""
