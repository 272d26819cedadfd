"""The nightly pipeline: the lake's events of one calendar date to the tables of a warehouse."""
