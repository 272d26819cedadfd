"""Simulated event traffic for the demo, the tests and the benchmarks.

``simulate.py`` is the front door; ``simulation.py`` the engine; ``traffic.py`` says when, ``people.py`` who does what,
``writers.py`` and ``weblog.py`` how it is written, ``faults.py`` what is wrong with it; ``summary.py`` holds the truth.
"""
