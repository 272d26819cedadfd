"""Retention: what is older than a policy's ages goes to a cold place, and from there for good."""
