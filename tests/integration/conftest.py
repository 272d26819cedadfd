"""Fixtures that all modules here share."""

from tests.integration.servers import flink, kafka, prism, prism_program, pubsub, spark

__all__ = ["flink", "kafka", "prism", "prism_program", "pubsub", "spark"]
