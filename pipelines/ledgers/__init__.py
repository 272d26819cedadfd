"""The ledger of an output: what came in by the hour, and whether the tables hold it."""
