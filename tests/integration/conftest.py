"""Fixtures that all modules here share."""

from tests.integration.servers import flink, kafka, prism, pubsub

__all__ = ["flink", "kafka", "prism", "pubsub"]
