"""Backfills: dates of archived Parquet to the dates of a lake."""
