"""Proof by killing: a stream under a seeded plan of faults, and a checker that holds every record against what is left."""
