"""The streaming pipeline: numbered polls through stateful stages to exactly-once commits."""
