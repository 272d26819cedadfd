"""Proving that two ways lead to the same rows: comparing tables, outputs, and a batch with a stream of the same events."""
