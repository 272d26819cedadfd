"""Versioned JSON Schemas of the event families and what is derived from them."""
