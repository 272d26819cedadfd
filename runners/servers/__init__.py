"""Real servers on this machine, from package registries and without containers: Kafka, Flink, Prism, Pub/Sub."""
