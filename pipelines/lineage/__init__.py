"""Lineage: what a run read and wrote, told to a collector as OpenLineage events."""
