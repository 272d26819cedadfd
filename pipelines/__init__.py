"""Assembled pipelines, their configuration and the command line."""
